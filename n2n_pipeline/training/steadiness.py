"""How far in time the target of a ladder may reach: as far as its input shows no change, pixel by pixel.

A target of few frames is noisy, one of many blurs what changes. The averages of one half over longer and longer
windows tell how far a pixel may be averaged: those that agree within their noise are of the same thing, and the
longest of them is taken. That is Lepski's rule; Katkovnik's intersection of confidence intervals is another form
of it. The half that decides is the network's input: the noise of the target, which is the other half, stays
independent of the choice, and what a wider target blurs is what the network could hardly have seen either.

References
----------
Lepskii (1991), On a problem of adaptive estimation in Gaussian white noise, Theory Probab. Appl. 35, 454-466.
Katkovnik (1999), A new method for varying adaptive bandwidth selection, IEEE Trans. Signal Process. 47, 2567-2571.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from n2n_pipeline.training.stacks import Stack

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]

BIN_PX = 2
BOXES = (3, 5, 11)
"""Sides, in bins, of the squares over which averages are compared: for what is small and what is faint."""
FINE = 2
"""How many of them are averaged over the whole movie; the largest are too few to."""
SMOOTH = 17
"""Side, in bins, of the squares over which the noise is averaged."""
TRIPLES = 16
SURE = 3.0
"""Standard deviations of the noise by which levels may differ at a pixel."""
BLUR = 0.02
"""Of the noise that is left when all is averaged: what a wider target may blur, over the whole movie."""


def measure_noise(stack: Stack) -> npt.NDArray[np.float32]:
    """Measure the variance of the mean of one frame over squares, from second differences in time.

    What drifts at a constant pace has none to first order.

    Returns
    -------
    numpy.ndarray
        ``(box, y, x)``, a value for each bin.
    """
    n = len(stack.sums)
    span = min(n, 3)
    weights = np.array({2: (1, -1), 3: (1, -2, 1)}[span]) / np.sqrt({2: 2, 3: 6}[span])
    starts = np.unique(np.linspace(0, n - span, TRIPLES).astype(int))
    found = []
    for start in starts:
        part = slice(start, start + span)
        difference = np.tensordot(weights, stack.sums[part] / np.maximum(stack.counts[part], 1), 1)
        difference[(stack.counts[part] == 0).any(axis=0)] = 0
        found.append(_average_boxes(_bin(difference)) ** 2)
    return np.stack([ndimage.uniform_filter(image, SMOOTH) for image in np.mean(found, axis=0)])


def _bin(images: Floats) -> npt.NDArray[np.float32]:
    """Return means of ``(..., y, x)`` bins; an odd row or column at the end is left out."""
    height, width = (length // BIN_PX * BIN_PX for length in images.shape[-2:])
    parts = [images[..., row:height:BIN_PX, col:width:BIN_PX] for row in range(BIN_PX) for col in range(BIN_PX)]
    return np.asarray(sum(parts[1:], parts[0]) / len(parts), np.float32)


def _average_boxes(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return ``(box, y, x)`` means over squares of bins."""
    return np.stack([ndimage.uniform_filter(image, side) for side in BOXES])


class Levels(NamedTuple):
    """Averages of one half of a ladder over longer and longer windows about one frame, in bins."""

    values: Floats
    """``(level, y, x)``."""
    frames: Floats
    """How many they hold."""
    noise: Floats
    """``(box, y, x)`` as `measure_noise` returns it."""

    @classmethod
    def of_pixels(cls, values: Floats, frames: Floats, noise: Floats) -> Levels:
        """Bin averages of pixels; the noise is that of their place."""
        return cls(_bin(values), _bin(frames), noise)


def deviations(levels: Levels) -> npt.NDArray[np.float32]:
    """Return ``(step, box, y, x)``: a level less the next longer one, in standard deviations of its noise.

    0 where both are of the same frames.
    """
    held = 1 / np.maximum(levels.frames, 1)
    pairs = itertools.pairwise(zip(levels.values, held, strict=True))
    return np.stack([_deviate(a - b, x - y, levels.noise) for (a, x), (b, y) in pairs])


def count_steady(levels: Levels, before: Levels) -> Ints:
    """Return ``(y, x)``, for each pixel, how many levels beyond the first a target may be of.

    All levels up to there agree with the one before them, which what comes and goes does not, and so do their
    frames ``before`` and after the middle, which what begins or ends there does not. Where a longer level does
    not, one level less is taken: what shows in it may be in the one before it already, hidden in the noise.
    """
    agrees = np.abs(deviations(levels)) <= SURE
    after = np.maximum(levels.frames - before.frames, 0)
    late = (levels.values * levels.frames - before.values * before.frames) / np.maximum(after, 1)
    for step in range(len(agrees)):
        sides = before.frames[step + 1], after[step + 1]
        variance = np.where(np.minimum(*sides) > 0, sum(1 / np.maximum(side, 1) for side in sides), 0)
        apart = _deviate(late[step + 1] - before.values[step + 1], variance, levels.noise)
        agrees[step] &= np.abs(apart) <= SURE
    steady = np.logical_and.accumulate(agrees.all(axis=1), axis=0).sum(axis=0, dtype=np.int64)
    steady = np.where(steady < len(agrees), np.maximum(steady - 1, 0), steady)
    return np.asarray(steady.repeat(BIN_PX, axis=0).repeat(BIN_PX, axis=1))


def _deviate(difference: Floats, variance: Floats, noise: Floats) -> npt.NDArray[np.float32]:
    """Return ``(box, y, x)``: the means of squares in standard deviations; 0 where the variance is."""
    scale = np.where(variance > 0, 1 / np.sqrt(np.maximum(variance, 1e-30)), 0).astype(np.float32)
    found = _average_boxes(difference.astype(np.float32)) * scale / np.sqrt(np.maximum(noise, 1e-30))
    return np.asarray(found, np.float32)


class Reach(NamedTuple):
    """Frames of a target."""

    everywhere: int
    where_steady: int
    """Where a pixel's own test sees no change, if more."""


def choose_reach(samples: Sequence[tuple[Levels, Levels]], windows: Sequence[int]) -> Reach:
    """Return how wide targets may be.

    What drifts everywhere by little, or has little contrast, shows at no pixel, but in the mean of all. Noises of
    two halves have nothing in common, so the mean product of what a level has over the next in one half and in the
    other is the square of what that blurs. Halves are to be symmetric in time: what moves would be ahead in one
    and behind in the other.

    Only where hardly anything moves are pixels trusted to say where. Else a target has up to the second window's
    frames, everywhere: the first's are noisier to learn from, and blur little less.

    Parameters
    ----------
    samples : sequence of tuple of Levels
        Both halves of places and moments all over the movie.
    windows : sequence of int
        Of the levels.
    """
    found = np.array([_blur(*halves) for halves in samples])
    sure = found.mean(axis=0) - 2 * found.std(axis=0) / np.sqrt(len(found))
    widest = int((np.maximum(sure, 0).cumsum() <= BLUR).sum())
    if widest >= len(windows) - 2:
        return Reach(windows[0], windows[widest])
    everywhere = windows[min(widest, 1)]
    return Reach(everywhere, everywhere)


def _blur(even: Levels, odd: Levels) -> npt.NDArray[np.floating]:
    """Return ``(step,)``: the mean square by which levels blur, over that of the noise of the longest."""
    # Mirrored at the ends, squares hold pixels twice.
    edge = min(BOXES[FINE - 1] // 2 + 1, min(even.values.shape[1:]) // 4)
    inside = (slice(FINE), slice(edge, -edge), slice(edge, -edge))
    steps = [
        [_average_boxes(fine - coarse)[inside] for fine, coarse in itertools.pairwise(half.values)]
        for half in (even, odd)
    ]
    noise = even.noise[inside].mean(axis=(1, 2)) / max(float(even.frames[-1].mean()), 1)
    return np.array([((a * b).mean(axis=(1, 2)) / noise).mean() for a, b in zip(*steps, strict=True)])
