"""Corrected frames laid over each other: drift undone by whole pixels, and pixels without data filled in."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from n2n_pipeline.config import Frame
from n2n_pipeline.corrections import Corrected, CorrectedMovie
from n2n_pipeline.filling import fill_unseen

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def whole_shifts(movie: CorrectedMovie) -> Ints:
    """Return ``(t, 2)`` drift in whole pixels (y, x); zeros for a movie that was never aligned."""
    shifts = movie.store.shifts
    if shifts is None:
        return np.zeros((movie.store.info.shape[0], 2), np.int64)
    return np.rint(shifts.dy_dx).astype(np.int64)


def stable_origin(shifts: Ints) -> Ints:
    """Return the ``(2,)`` shift at which the stable frame of reference sits: the middle of the drift's range."""
    return np.asarray((shifts.min(axis=0) + shifts.max(axis=0)) // 2)


def read_filled(movie: CorrectedMovie, frames: slice, region: tuple[slice, slice]) -> Floats:
    """Read corrected frames ``(t, y, x)`` to be looked at: bad pixels take the mean of their neighbours."""
    values, valid = movie.read(frames, *region)
    if valid.all():
        return values
    counts = np.broadcast_to(valid, values.shape).astype(np.int64)
    filled = [fill_unseen(*frame, movie.typical_value) for frame in zip(values.astype(float), counts, strict=True)]
    return np.stack(filled)


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
            target, source = overlap(self._region, self._read, self._shifts[frame] - anchor)
            total[target] += values[frame - self._first][source]
            count[target] += valid[(frame - self._first) % len(valid)][source]
        return total, count


def overlap(
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
