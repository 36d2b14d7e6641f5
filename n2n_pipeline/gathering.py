"""Statistics over time, gathered by several threads and yet summed in the order of the frames.

Sums of floats depend on their order. So every band of rows is visited by one unit of frames after the other; while
one thread sums a band, the next sums the band before it.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy.typing as npt

from n2n_pipeline.corrections import Statistics
from n2n_pipeline.errors import Stopped

BAND_BYTES = 1 << 19  # in float64: stays in a core's cache while it is summed


class Gatherer:
    """Collects the mean and variance of frames that come from several threads.

    Parameters
    ----------
    shape : tuple of int
        ``(y, x)`` of the frames.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        height, width = shape
        rows = max(1, BAND_BYTES // (8 * width))
        self._bands = [slice(y, min(y + rows, height)) for y in range(0, height, rows)]
        self._parts = [Statistics((band.stop - band.start, width)) for band in self._bands]
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
        Stopped
            If another thread has given up.
        """
        for index, band in enumerate(self._bands):
            with self._moved:
                self._moved.wait_for(lambda index=index: self._given_up or self._turns[index] == turn)
                if self._given_up:
                    raise Stopped("ingest")
            self._parts[index].accumulate(frames[:, band])
            with self._moved:
                self._turns[index] += 1
                self._moved.notify_all()

    def give_up(self) -> None:
        """Let no thread wait for a turn that will not come."""
        with self._moved:
            self._given_up = True
            self._moved.notify_all()

    def gathered(self) -> Statistics:
        """Return the statistics of all frames so far."""
        return Statistics.join(self._parts)
