"""Even and odd averages over a sliding window: what Noise2Noise learns from, computed lazily from raw counts.

A *window* of W frames belongs to every output frame t: centred on it where the movie allows, shifted inwards at
the movie's ends, so that every frame has one. Each frame of a window is in exactly one half. Drift is undone by
whole pixels, frame by frame, so that no interpolation correlates the noise; where drift leaves a pixel with
fewer frames, it is averaged over fewer, and the count says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from n2n_pipeline.config import Frame, Split
from n2n_pipeline.corrections import Corrected, CorrectedMovie

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

FILL_SIGMA = 1.5  # px; unseen pixels take the weighted mean of the seen ones around them
FILL_REACH = 6  # px beyond which a neighbour's weight is nothing
FILL_AT_ONCE = 256  # unseen pixels, which bounds the memory for their neighbourhoods
_FALLOFF = np.exp(-0.5 * (np.arange(-FILL_REACH, FILL_REACH + 1) / FILL_SIGMA) ** 2)
_FILL_WEIGHTS = np.outer(_FALLOFF, _FALLOFF) / _FALLOFF.sum() ** 2


class Pair(NamedTuple):
    """Two averages of disjoint frames of the same windows."""

    even: Floats
    """``(n, y, x)`` in the movie's units."""
    odd: Floats
    even_count: Floats
    """``(n, y, x)`` frames that contributed; 0 where the value was filled in from its neighbours."""
    odd_count: Floats


def window_frames(n_frames: int, t: int, window: int) -> range:
    """Return the frames averaged for output frame ``t``: about it, or shifted inwards at the movie's ends.

    Examples
    --------
    >>> window_frames(10, 5, 4), window_frames(10, 0, 4), window_frames(10, 9, 4), window_frames(3, 1, 8)
    (range(3, 7), range(0, 4), range(6, 10), range(0, 3))
    """
    size = min(window, n_frames)
    start = min(max(t - size // 2, 0), n_frames - size)
    return range(start, start + size)


def split_window(size: int, split: Split, key: tuple[int, ...] = (0,)) -> npt.NDArray[np.bool_]:
    """Say which frames of a window are in the even half.

    Parameters
    ----------
    size : int
        Frames in the window.
    split : str
        ``balanced`` (Thue-Morse order ABBABAAB, which cancels a linear change over the window),
        ``interleaved`` (ABAB), ``adjacent`` (AABB) or ``random`` (half of the frames, drawn by `key`).
    key : tuple of int
        Seeds the random split.

    Returns
    -------
    numpy.ndarray
        ``(size,)``, True for the even half, which holds ``ceil(size / 2)`` frames or, when balanced, as many
        as the sequence gives.

    Examples
    --------
    >>> "".join("AB"[not even] for even in split_window(8, "balanced"))
    'ABBABAAB'
    """
    order = np.arange(size)
    if split == "balanced":
        return np.asarray(np.bitwise_count(order) % 2 == 0)
    if split == "interleaved":
        return np.asarray(order % 2 == 0)
    if split == "adjacent":
        return np.asarray(order < (size + 1) // 2)
    shuffled = np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).permutation(size)
    return np.asarray(shuffled < (size + 1) // 2)


def whole_shifts(movie: CorrectedMovie) -> Ints:
    """Return ``(t, 2)`` drift in whole pixels (y, x); zeros for a movie that was never aligned."""
    shifts = movie.store.shifts
    if shifts is None:
        return np.zeros((movie.store.info.shape[0], 2), np.int64)
    return np.rint(shifts.dy_dx).astype(np.int64)


def stable_origin(shifts: Ints) -> Ints:
    """Return the ``(2,)`` shift at which the stable frame of reference sits: the middle of the drift's range."""
    return np.asarray((shifts.min(axis=0) + shifts.max(axis=0)) // 2)


def read_pairs(
    movie: CorrectedMovie,
    frames: range,
    region: tuple[slice, slice],
    window: int,
    split: Split = "balanced",
    frame_of_reference: Frame = "camera",
) -> Pair:
    """Average the two halves of the windows of some output frames.

    Parameters
    ----------
    movie : CorrectedMovie
        The movie; its shifts, if any, are undone.
    frames : range
        Output frames.
    region : tuple of slice
        Rows and columns within the image: of each output frame's own position (``camera``) or of the stable
        frame of reference (``stable``).
    window : int
        Frames per window, both halves together.
    split : str
        How a window is halved, see `split_window`.
    frame_of_reference : str
        ``camera`` or ``stable``.

    Returns
    -------
    Pair
        ``(len(frames), y, x)`` each.
    """
    shape = movie.store.info.shape
    shifts = whole_shifts(movie)
    rows, cols = (_grown(part, size) for part, size in zip(region, shape[1:], strict=True))
    needed = range(
        window_frames(shape[0], frames[0], window)[0], window_frames(shape[0], frames[-1], window)[-1] + 1
    )
    source = ShiftedFrames(movie, needed, frames, (rows, cols), shifts, frame_of_reference)
    inner = tuple(
        slice(wanted.indices(size)[0] - grown.start, wanted.indices(size)[1] - grown.start)
        for wanted, grown, size in zip(region, (rows, cols), shape[1:], strict=True)
    )
    halves = ([], []), ([], [])  # type: tuple[tuple[list[Floats], list[Floats]], tuple[list[Floats], list[Floats]]]
    for t in frames:
        members = window_frames(shape[0], t, window)
        is_even = split_window(len(members), split, (t,))
        for (values, counts), chosen in zip(halves, (is_even, ~is_even), strict=True):
            total, count = source.sum_frames(t, [f for f, c in zip(members, chosen, strict=True) if c])
            average = fill_unseen(total, count, movie.typical_value)
            values.append(average[inner])
            counts.append(count[inner].astype(np.float32))
    return Pair(*(np.stack(part) for part in (halves[0][0], halves[1][0], halves[0][1], halves[1][1])))


def fill_unseen(total: npt.NDArray[np.float64], count: Ints, typical: float) -> Floats:
    """Divide sums by counts; where nothing was counted, take the weighted mean of the neighbours.

    Parameters
    ----------
    total, count : numpy.ndarray
        ``(y, x)`` sum over the frames of a half, and how many frames had a valid pixel there.
    typical : float
        Value given to pixels with no valid neighbour within `FILL_REACH` px.

    Returns
    -------
    numpy.ndarray
        ``(y, x)`` averages, finite everywhere.
    """
    average = total / np.maximum(count, 1)
    rows, cols = np.nonzero(count == 0)
    if len(rows):
        average[rows, cols] = np.nan
        mirrored = np.pad(average, FILL_REACH, mode="reflect")
        around = sliding_window_view(mirrored, _FILL_WEIGHTS.shape)
        for some in np.array_split(np.arange(len(rows)), -(-len(rows) // FILL_AT_ONCE)):
            average[rows[some], cols[some]] = _weigh_neighbours(around[rows[some], cols[some]], typical)
    return average.astype(np.float32)


def _weigh_neighbours(around: npt.NDArray[np.float64], typical: float) -> npt.NDArray[np.float64]:
    """Average ``(n, y, x)`` neighbourhoods, NaN where unseen; those with nothing in them become ``typical``."""
    weights = np.where(np.isnan(around), 0.0, _FILL_WEIGHTS)
    total = (weights * np.nan_to_num(around)).sum(axis=(1, 2))
    seen = weights.sum(axis=(1, 2))
    return np.where(seen > 1e-9, total / np.maximum(seen, 1e-12), typical)


def read_filled(movie: CorrectedMovie, t: int, region: tuple[slice, slice]) -> Floats:
    """Read one corrected frame ``(y, x)`` to be looked at: bad pixels take the mean of their neighbours."""
    values, valid = movie.read(slice(t, t + 1), *region)
    return fill_unseen(values[0].astype(np.float64), valid[0].astype(np.int64), movie.typical_value)


class ShiftedFrames:
    """Corrected frames, read once, that can be summed at the position of any of some output frames.

    Parameters
    ----------
    movie : CorrectedMovie
        Where they are read from.
    needed : range
        Frames to read.
    frames : range
        Output frames at whose positions they will be summed.
    region : tuple of slice
        Rows and columns of each output frame, with start and stop, within the image.
    shifts : numpy.ndarray
        ``(t, 2)`` whole pixels, of every frame of the movie.
    frame_of_reference : str
        ``camera`` or ``stable``.
    """

    def __init__(
        self,
        movie: CorrectedMovie,
        needed: range,
        frames: range,
        region: tuple[slice, slice],
        shifts: Ints,
        frame_of_reference: Frame,
    ) -> None:
        shape = movie.store.info.shape
        self._shifts, self._region, self._first = shifts, region, needed[0]
        self._fixed = stable_origin(shifts) if frame_of_reference == "stable" else None
        anchors = shifts[frames.start : frames.stop] if self._fixed is None else self._fixed[None]
        moves = shifts[needed.start : needed.stop]
        low, high = moves.min(axis=0) - anchors.max(axis=0), moves.max(axis=0) - anchors.min(axis=0)
        self._read = tuple(
            slice(min(max(part.start + int(lo), 0), size - 1), max(min(part.stop + int(hi), size), 1))
            for part, lo, hi, size in zip(region, low, high, shape[1:], strict=True)
        )
        self._corrected: Corrected = movie.read(slice(needed.start, needed.stop), *self._read)

    def sum_frames(self, t: int, members: Iterable[int]) -> tuple[npt.NDArray[np.float64], Ints]:
        """Sum frames at the position of output frame ``t``.

        Returns
        -------
        tuple of numpy.ndarray
            ``(y, x)`` sum in the movie's units, and how many frames had a valid pixel there.
        """
        extent = tuple(part.stop - part.start for part in self._region)
        total, count = np.zeros(extent, np.float64), np.zeros(extent, np.int64)
        anchor = self._shifts[t] if self._fixed is None else self._fixed
        values, valid = self._corrected
        for frame in members:
            target, source = _overlap(self._region, self._read, self._shifts[frame] - anchor)
            total[target] += values[frame - self._first][source]
            count[target] += valid[(frame - self._first) % len(valid)][source]
        return total, count


def _overlap(
    wanted: tuple[slice, ...], read: tuple[slice, ...], move: Ints
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a shifted region meets what was read: slices into the region and into what was read."""
    target, source = [], []
    for want, have, shift in zip(wanted, read, move.tolist(), strict=True):
        start, stop = max(want.start + shift, have.start), min(want.stop + shift, have.stop)
        stop = max(stop, start)
        target.append(slice(start - shift - want.start, stop - shift - want.start))
        source.append(slice(start - have.start, stop - have.start))
    return tuple(target), tuple(source)


def _grown(part: slice, size: int) -> slice:
    """Grow a range by what filling needs, so that a tile's filled pixels do not depend on the tile."""
    start, stop, _ = part.indices(size)
    return slice(max(start - FILL_REACH, 0), min(stop + FILL_REACH, size))
