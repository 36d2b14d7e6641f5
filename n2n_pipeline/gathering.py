"""Mean and variance of pixels over time, gathered by several threads and yet summed in the order of the frames.

Sums of floats depend on their order. So every band of rows is visited by one unit of frames after the other; while
one thread sums a band, the next sums the band before it. A band is small enough to stay in a core's cache while
all that is asked of its pixels is found out; so the frames are looked at here too, see `Looks`.
"""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Executor
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

BAND_PX = 1 << 17
CHECKED_ROWS = 8  # of so many, one is looked at to find frames that may be equal
ROOM = 8  # units that a tally of few bits should hold before it is carried over


class Looks:
    """What is seen of every frame of a unit while its rows pass by, from the first to the last.

    Parameters
    ----------
    n_frames : int
        Of the unit.
    """

    def __init__(self, n_frames: int) -> None:
        self._low = self._high = np.zeros(n_frames)
        self._checksum = [0] * n_frames
        self._not_finite = np.zeros(n_frames, int)
        self._saturated = np.zeros(n_frames, int)
        self._row = 0

    def see(self, rows: npt.NDArray[Any]) -> int:
        """Look at the next ``(t, y, x)`` rows of all frames; return the largest magnitude of whole numbers."""
        low, high = rows.min(axis=(1, 2)), rows.max(axis=(1, 2))
        checked = np.ascontiguousarray(rows[:, -self._row % CHECKED_ROWS :: CHECKED_ROWS])
        for t, frame in enumerate(checked):
            self._checksum[t] = google_crc32c.extend(self._checksum[t], frame.reshape(-1).view(np.uint8))
        if rows.dtype.kind == "f":
            self._not_finite += np.count_nonzero(~np.isfinite(rows), axis=(1, 2))
        elif (full := np.iinfo(rows.dtype).max) in high:
            self._saturated += np.count_nonzero(rows == full, axis=(1, 2))
        is_first, self._row = self._row == 0, self._row + rows.shape[1]
        self._low = low if is_first else np.minimum(self._low, low)
        self._high = high if is_first else np.maximum(self._high, high)
        return max(int(high.max()), -int(low.min())) if rows.dtype.kind in "iu" else 0

    def notes(self) -> dict[str, Any]:
        """Note of every frame: checksum, its value if it has only one, pixels not finite or at the type's end."""
        return {
            "crc32c": self._checksum,
            "constant": [
                low.item() if low == high and np.isfinite(low) else None
                for low, high in zip(self._low, self._high, strict=True)
            ],
            "not_finite": self._not_finite.tolist(),
            "saturated": self._saturated.tolist(),
        }


class Statistics:
    """Mean and variance over time of every pixel.

    Sums of counts and of their squares are exact for integer counts up to 2**53, so neither the order nor the
    grouping of the frames changes a bit of the result. They are kept in as few bits as hold them, which is fast,
    and carried over into float64 before they no longer do.

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
        self._small: dict[int, _Tally] = {}  # by first row

    def accumulate(self, frames: npt.NDArray[Any], rows: slice | None = None, peak: int | None = None) -> None:
        """Add ``(t, y, x)`` frames of raw counts, or some rows of them; values that are not finite count as 0.

        Parameters
        ----------
        frames : numpy.ndarray
            ``(t, y, x)`` counts.
        rows : slice, optional
            Which rows of the image they are. Who adds rows adds all of them, in the same bands for every frame,
            before asking for a mean.
        peak : int, optional
            Largest magnitude among whole numbers, if it is known.
        """
        rows = rows or slice(0, self.shape[0])
        if rows.start == 0:
            self.n_frames += len(frames)
        if frames.dtype.kind == "f":
            self._add_floats(np.nan_to_num(frames.astype(np.float64), copy=False, posinf=0.0, neginf=0.0), rows)
            return
        if peak is None:
            peak = max(int(frames.max(initial=0)), -int(frames.min(initial=0)))
        if len(frames) * peak**2 > np.iinfo(np.int32).max:
            self._add_floats(frames.astype(np.float64), rows)
            return
        tally = self._small.get(rows.start)
        if tally is None or not tally.has_room(len(frames), peak):
            self._carry(rows.start)
            tally = self._small[rows.start] = _Tally(frames, peak)
        tally.add(frames, peak)

    def insert(self, rows: slice, part: Statistics) -> None:
        """Put in rows whose statistics were gathered apart, over all frames."""
        part.settle()
        self._sum[rows], self._square[rows] = part._sum, part._square
        self.n_frames = part.n_frames

    def settle(self, pool: Executor | None = None) -> None:
        """Carry over what is still kept in few bits; by a pool's threads, if there is one."""
        list((pool.map if pool else map)(self._carry, list(self._small)))

    def mean(self, rows: slice = slice(None), cols: slice = slice(None)) -> Floats:
        """Return the ``(y, x)`` mean over time, in counts."""
        self.settle()
        return np.asarray(self._sum[rows, cols] / max(self.n_frames, 1))

    def variance(self, rows: slice = slice(None), cols: slice = slice(None)) -> Floats:
        """Return the ``(y, x)`` variance over time, in counts squared; 0 for fewer than two frames."""
        self.settle()
        total = self._sum[rows, cols]
        if self.n_frames < 2:
            return np.zeros(total.shape)
        centred = self._square[rows, cols] - np.square(total) / self.n_frames
        return np.asarray(np.maximum(centred, 0.0) / (self.n_frames - 1))

    def _carry(self, first: int) -> None:
        tally = self._small.pop(first, None)
        if tally is not None:
            rows = slice(first, first + len(tally.sum))
            self._sum[rows] += tally.sum
            self._square[rows] += tally.square

    def _add_floats(self, values: Floats, rows: slice) -> None:
        _add_frames(values, self._sum[rows], self._square[rows])


class _Tally:
    """Sums of some rows' counts and of their squares, in 16 or 32 bits."""

    def __init__(self, frames: npt.NDArray[Any], peak: int) -> None:
        is_small = ROOM * len(frames) * peak**2 <= np.iinfo(np.int16).max
        self._dtype: np.dtype[np.signedinteger[Any]] = np.dtype(np.int16 if is_small else np.int32)
        self._bound = 0
        self.sum = np.zeros(frames.shape[1:], self._dtype)
        self.square = np.zeros(frames.shape[1:], self._dtype)

    def has_room(self, n_frames: int, peak: int) -> bool:
        """Tell whether so many more frames of such counts surely fit."""
        return self._bound + n_frames * peak**2 <= np.iinfo(self._dtype).max

    def add(self, frames: npt.NDArray[Any], peak: int) -> None:
        bound = len(frames) * peak**2
        self._bound += bound
        own, wide = frames.dtype, self._dtype
        if own.itemsize < wide.itemsize and bound <= int(np.iinfo(own).max):
            parts = np.zeros((2, *self.sum.shape), own)  # sums of so few frames fit in their own, faster, type
            _add_frames(frames, *parts)
            self.sum += parts[0]
            self.square += parts[1]
        else:
            _add_frames(frames if own.itemsize == wide.itemsize else frames.astype(wide), self.sum, self.square)


def _add_frames(frames: npt.NDArray[Any], total: npt.NDArray[Any], squares: npt.NDArray[Any]) -> None:
    """Add frames one by one, several times as fast as a reduction; a sign makes no difference to the bits."""
    square = np.empty(total.shape, total.dtype)
    for frame in frames.view(total.dtype):
        np.add(total, frame, out=total)
        np.add(squares, np.multiply(frame, frame, out=square), out=squares)


class Gatherer:
    """Collects the statistics of frames that come from several threads.

    Parameters
    ----------
    shape : tuple of int
        ``(y, x)`` of the frames.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.statistics = Statistics(shape)
        self._bands = cut_bands(shape)
        self._turns = [0] * len(self._bands)
        self._moved = threading.Condition()
        self._given_up = False

    def accumulate(self, turn: int, frames: npt.NDArray[Any]) -> Looks:
        """Look at ``(t, y, x)`` frames, and add them after those of all earlier turns; waits for these.

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
        looks = Looks(len(frames))
        for index, band in enumerate(self._bands):
            rows = frames[:, band]
            peak = looks.see(rows)
            self._await(index, turn)
            self.statistics.accumulate(rows, band, peak)
            with self._moved:
                self._turns[index] += 1
                self._moved.notify_all()
        return looks

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


def cut_bands(shape: tuple[int, int]) -> list[slice]:
    """Cut an image ``(y, x)`` into rows that stay in a core's cache while they are looked at."""
    height, width = shape
    rows = max(1, BAND_PX // width)
    return [slice(y, min(y + rows, height)) for y in range(0, height, rows)]


def look(frames: npt.NDArray[Any]) -> Looks:
    """Look at ``(t, y, x)`` frames."""
    looks = Looks(len(frames))
    for band in cut_bands(frames.shape[1:]):
        looks.see(frames[:, band])
    return looks
