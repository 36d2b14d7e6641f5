"""Mean and variance of pixels over time, gathered by several threads and yet summed in the order of the frames.

Sums of floats depend on their order. So every band of rows is visited by one unit of frames after the other; while
one thread sums a band, the next sums the band before it.
"""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

BAND_BYTES = 1 << 19  # in float64: stays in a core's cache while it is summed


class Statistics:
    """Mean and variance over time of every pixel, summed in float64.

    Sums of counts and of their squares are exact for integer counts up to 2**53, so neither the order nor the
    grouping of the frames changes a bit of the result.

    Parameters
    ----------
    shape : tuple of int
        ``(y, x)``.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.n_frames = 0
        self._sum = np.zeros(shape, np.float64)
        self._square = np.zeros(shape, np.float64)

    def accumulate(self, frames: npt.NDArray[Any], rows: slice = slice(None)) -> None:
        """Add ``(t, y, x)`` frames of raw counts, or some rows of them; values that are not finite count as 0.

        Who adds rows adds all of them, for every frame, before asking for a mean.
        """
        values = frames.astype(_type_for_squares(frames), copy=False)
        if frames.dtype.kind == "f":
            values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
        self._sum[rows] += np.add.reduce(values, axis=0, dtype=values.dtype)
        self._square[rows] += np.add.reduce(np.square(values), axis=0, dtype=values.dtype)
        if rows.indices(self.shape[0])[0] == 0:
            self.n_frames += len(frames)

    def insert(self, rows: slice, part: Statistics) -> None:
        """Put in rows whose statistics were gathered apart, over all frames."""
        self._sum[rows], self._square[rows] = part._sum, part._square
        self.n_frames = part.n_frames

    def mean(self, rows: slice = slice(None), cols: slice = slice(None)) -> Floats:
        """Return the ``(y, x)`` mean over time, in counts."""
        return np.asarray(self._sum[rows, cols] / max(self.n_frames, 1))

    def variance(self, rows: slice = slice(None), cols: slice = slice(None)) -> Floats:
        """Return the ``(y, x)`` variance over time, in counts squared; 0 for fewer than two frames."""
        total = self._sum[rows, cols]
        if self.n_frames < 2:
            return np.zeros(total.shape)
        centred = self._square[rows, cols] - np.square(total) / self.n_frames
        return np.asarray(np.maximum(centred, 0.0) / (self.n_frames - 1))


def _type_for_squares(frames: npt.NDArray[Any]) -> type[np.generic]:
    """Choose the narrowest, so fastest, type in which the frames' squares can be summed exactly."""
    if frames.dtype.kind in "iu":
        peak = max(int(frames.max(initial=0)), -int(frames.min(initial=0)))
        for narrow in (np.int16, np.int32):
            if len(frames) * peak * peak <= np.iinfo(narrow).max:
                return narrow
    return np.float64


class Gatherer:
    """Collects the statistics of frames that come from several threads.

    Parameters
    ----------
    shape : tuple of int
        ``(y, x)`` of the frames.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        height, width = shape
        rows = max(1, BAND_BYTES // (8 * width))
        self.statistics = Statistics(shape)
        self._bands = [slice(y, min(y + rows, height)) for y in range(0, height, rows)]
        self._turns = [0] * len(self._bands)
        self._moved = threading.Condition()
        self._given_up = False

    def accumulate(self, turn: int, frames: npt.NDArray[Any]) -> None:
        """Add ``(t, y, x)`` frames after those of all earlier turns; waits for these.

        Parameters
        ----------
        turn : int
            0 for the first frames of the movie, 1 for those that follow, and so on; every turn comes once.
        frames : numpy.ndarray
            Raw counts.

        Raises
        ------
        CancelledError
            If another thread has given up.
        """
        for index, band in enumerate(self._bands):
            self._await(index, turn)
            self.statistics.accumulate(frames[:, band], band)
            with self._moved:
                self._turns[index] += 1
                self._moved.notify_all()

    def give_up(self) -> None:
        """Let no thread wait for a turn that will not come."""
        with self._moved:
            self._given_up = True
            self._moved.notify_all()

    def _await(self, index: int, turn: int) -> None:
        with self._moved:
            self._moved.wait_for(lambda: self._given_up or self._turns[index] == turn)
            if self._given_up:
                raise CancelledError
