"""How many frames about the moment the target of a ladder holds: few if the movie moves.

A target of few frames is noisy to learn from, one of many blurs what changes. Noises of two halves have nothing in
common, so the mean product of what a level has over the next longer one in one half and in the other is the square
of what the longer one blurs. Halves are to be symmetric in time: what moves would else be ahead in one
and behind in the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from n2n_pipeline.metrics.bootstrap import standard_error

Floats = npt.NDArray[np.floating[Any]]
Levels = Floats
"""Averages of one half of a ladder over longer and longer windows about one frame, ``(level, y, x)`` in bins."""

BIN_PX = 2
BOXES = (3, 5)
"""Sides, in bins, of the squares over which averages are compared: what blurs is no finer."""
SURE = 2.0  # standard errors
BLUR = 0.01
"""Of the noise that is left when all is averaged: what longer windows may blur, over the whole movie."""


def average_bins(totals: Floats, counts: npt.NDArray[np.integer[Any]]) -> Levels:
    """Return means of bins of ``(level, y, x)`` sums; an odd row or column at the end is left out."""
    averages = totals / np.maximum(counts, 1)
    height, width = (length // BIN_PX * BIN_PX for length in averages.shape[-2:])
    parts = [averages[..., row:height:BIN_PX, col:width:BIN_PX] for row in range(BIN_PX) for col in range(BIN_PX)]
    return np.asarray(sum(parts[1:], parts[0]) / len(parts), np.float32)


class Targets(NamedTuple):
    """Frames of a target, both halves together."""

    training: int
    validation: int


def choose_targets(samples: Sequence[tuple[Levels, Levels]], windows: Sequence[int]) -> Targets:
    """Return how many frames targets are to hold.

    In training those of one level less than the longest that does not surely blur: too little to be sure of is
    enough to be seen in what comes out. To tell which weights are best, in which it is not, those of that longest.

    Parameters
    ----------
    samples : sequence of tuple of numpy.ndarray
        Both halves of places and moments all over the movie.
    windows : sequence of int
        Of the levels.
    """
    found = np.array([_blur(*halves) for halves in samples])
    sure = found.mean(axis=0) - SURE * standard_error(found)
    longest = int((np.maximum(sure, 0).cumsum() <= BLUR).sum())
    return Targets(windows[max(longest - 1, 0)], windows[longest])


def is_still(target: int, windows: Sequence[int]) -> bool:
    """Tell whether a target is as wide as those of a movie of which no level surely blurs anything."""
    return target >= windows[max(len(windows) - 2, 0)]


def _blur(even: Levels, odd: Levels) -> Floats:
    """Return ``(step,)``: the mean square by which levels blur, over that of the noise of the longest."""
    # Mirrored at the ends, squares hold pixels twice.
    edge = min(BOXES[-1] // 2 + 1, min(even.shape[1:]) // 4)
    inside = (slice(edge, -edge), slice(edge, -edge))
    found = np.zeros(len(even) - 1)
    for side in BOXES:
        halves = [[ndimage.uniform_filter(level, side)[inside] for level in half] for half in (even, odd)]
        steps = [[fine - coarse for fine, coarse in itertools.pairwise(half)] for half in halves]
        noise = np.square(halves[0][-1] - halves[1][-1]).mean() / 2
        found += [float((a * b).mean() / max(noise, 1e-30)) for a, b in zip(*steps, strict=True)]
    return found / len(BOXES)
