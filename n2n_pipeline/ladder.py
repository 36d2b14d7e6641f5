"""A ladder of windows around one frame: which frames each level of each half holds, and their sliding sums.

Level W of frame t holds the frames at most W // 2 before or after it; at the movie's ends it holds those that
there are. Of two frames at the same distance before and after t one is in either half, in Thue-Morse order of the
distance, so that at every level both halves are balanced and have as many frames as each other, to within one. A
frame is in the same half at every level: no level of the even half shares a frame with any level of the odd one.

Sums of all levels of consecutive frames cost a few operations per pixel, frame and level: the totals are running
sums, and the differences between the halves are those of spans of 2^k frames, each made of two of half its length.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from n2n_pipeline import buffers
from n2n_pipeline.halving import Halves
from n2n_pipeline.sliding import prepare_references, write_average

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

LADDER = (5, 9, 17, 33, 95)
"""The windows of all movies; a level that reaches beyond a short movie's ends holds all of it."""
BLOCK = 1024  # pixels at a time


def check_ladder(windows: Sequence[int]) -> None:
    """Refuse windows that are no ladder.

    Raises
    ------
    ValueError
        If they are not ascending odd numbers from 3.
    """
    rising = all(low < high for low, high in itertools.pairwise(windows))
    if not windows or not rising or windows[0] < 3 or any(window % 2 == 0 for window in windows):
        raise ValueError(f"windows are {list(windows)}, but a ladder's are ascending odd numbers from 3")


def level_frames(n_frames: int, t: int, window: int) -> range:
    """Return the frames of one level: those about ``t`` that there are.

    Examples
    --------
    >>> level_frames(10, 5, 5), level_frames(10, 0, 5), level_frames(10, 9, 33)
    (range(3, 8), range(0, 3), range(0, 10))
    """
    return range(max(t - window // 2, 0), min(t + window // 2 + 1, n_frames))


def split_around(n_frames: int, t: int, order: Bools | None = None) -> Bools:
    """Say which frames of a movie are in the even half, seen from frame ``t``.

    Parameters
    ----------
    n_frames : int
        Frames of the movie.
    t : int
        The frame in the middle. It is in the half that its neighbour before it, or the only one, is not in.
    order : numpy.ndarray, optional
        ``(n_frames,)``, for each distance from ``t`` whether the earlier of the two frames there is in the odd
        half; for distance 0, whether ``t`` is. Thue-Morse order of the distance by default.

    Returns
    -------
    numpy.ndarray
        ``(n_frames,)``, True for the even half.

    Examples
    --------
    >>> "".join("AB"[not even] for even in split_around(11, 5))
    'BABBAABAABA'
    """
    if order is None:
        distance = np.arange(n_frames)
        order = np.bitwise_count(np.maximum(distance - 1, 0)) % 2 == 1
        order[0] = t == n_frames - 1
    frames = np.arange(n_frames)
    is_odd: Bools = order[np.abs(frames - t)] ^ (frames > t)
    return ~is_odd


class Ladder(NamedTuple):
    """The ladders of some output frames; those of all frames between the first and the last are computed."""

    n_frames: int
    """Of the movie."""
    frames: range
    """Output frames, one after another or every so many."""
    windows: tuple[int, ...]
    """Ascending odd numbers of frames."""

    @property
    def needed(self) -> range:
        """Frames of the movie that any level holds."""
        reach = self.windows[-1] // 2
        return range(max(self.frames[0] - reach, 0), min(self.frames[-1] + reach + 1, self.n_frames))

    @property
    def numbers(self) -> list[int]:
        """Which of the ladders that are computed belongs to each output frame."""
        return [t - self.frames[0] for t in self.frames]

    @property
    def spans(self) -> list[range]:
        """Frames of the movie that each ladder holds, of those that are computed."""
        return [level_frames(self.n_frames, t, self.windows[-1]) for t in self._computed]

    def part(self, first: int, last: int) -> Ladder:
        """Return the computed ladders ``first`` to ``last - 1``."""
        return self._replace(frames=self._computed[first:last])

    def sum_halves(self, frames: Array, dtype: npt.DTypeLike) -> Halves:
        """Sum both halves of every level.

        Parameters
        ----------
        frames : numpy.ndarray
            ``(t, p)`` the frames that are needed, of any real type, finite.
        dtype : type
            Of the result, float32 or float64.

        Returns
        -------
        Halves
            ``(ladder, level, p)`` each.
        """
        ones = np.ones((len(self._computed), len(self.windows), 1))
        return self._slide(frames, Halves(ones, ones), prepare_references(None, None), dtype)

    def average_placed(self, values: Array, seen: Array) -> tuple[Halves, Halves]:
        """Average both halves of every level, each pixel over the frames that saw it.

        Parameters
        ----------
        values : numpy.ndarray
            ``(t, p)`` the frames that are needed, 0 where a frame did not see a pixel.
        seen : numpy.ndarray
            ``(t, p)`` uint8, 1 where it did.

        Returns
        -------
        tuple of Halves
            ``(ladder, level, p)`` float32 averages, and the numbers of frames in them.
        """
        counts = self.sum_halves(seen.view(np.bool_), np.float32)
        return self._slide(values, counts, prepare_references(None, None), np.float32), counts

    def average_halves(self, counts: Array, dark: Array | None, gain: Array | None) -> Halves:
        """Average both halves of every level of raw ``(t, y, x)`` counts, as ``(average - dark) * gain``."""
        members = Halves(*(np.maximum(count, 1.0)[:, :, None] for count in self.count_frames()))
        frames = buffers.averages.contiguous(counts).reshape(len(counts), -1)
        return self._slide(frames, members, prepare_references(dark, gain), np.float32)

    def count_frames(self) -> Halves:
        """Return ``(ladder, level)`` how many frames each half holds."""
        counts = np.zeros((2, len(self._computed), len(self.windows)), np.int64)
        for row, t in enumerate(self._computed):
            is_even = split_around(self.n_frames, t)
            for level, window in enumerate(self.windows):
                members = level_frames(self.n_frames, t, window)
                even = int(is_even[members.start : members.stop].sum())
                counts[:, row, level] = even, len(members) - even
        return Halves(*counts)

    @property
    def _computed(self) -> range:
        return range(self.frames[0], self.frames[-1] + 1)

    def _slide(
        self, frames: Array, members: Halves, references: tuple[Array, Array], dtype: npt.DTypeLike
    ) -> Halves:
        shape = (len(self._computed), len(self.windows), frames.shape[1])
        halves = Halves(buffers.averages.empty(shape, dtype), buffers.averages.empty(shape, dtype))
        is_small = frames.dtype.kind in "iu" and frames.dtype.itemsize <= 2
        summed: type[np.number[Any]] = np.int32 if is_small else np.float64
        if frames.dtype.kind == "b":  # what is summed up is twice a half
            summed = np.int16 if 2 * self.windows[-1] <= np.iinfo(np.int16).max else np.int32
        # Beyond the ends of the movie a level holds nothing more.
        reaches = np.minimum(np.array(self.windows) // 2, self.n_frames - 1)
        rows = shape[0] + 2 * reaches[-1]
        work = np.empty((rows, min(BLOCK, max(shape[2], 1))), summed)
        middle = np.where(np.array(self._computed) == self.n_frames - 1, -1, 1)
        place = (self.frames[0] - self.needed[0], reaches, middle)
        _slide_levels(frames, place, work, members, references, halves)
        return halves


@numba.njit(nogil=True, cache=True)
def _slide_levels(
    frames: Array,
    place: tuple[int, Array, Array],
    work: Array,
    members: Halves,
    references: tuple[Array, Array],
    halves: Halves,
) -> None:
    """Sum a block of pixels at a time; ``place`` is the first ladder's frame, each level's reach, and middles.

    Sums are divided by ``members``, of all pixels or of each.
    """
    begin, reaches, middle = place
    n_outputs, n_levels, size = halves.even.shape
    reach = reaches[-1]
    total = np.empty((len(work) + 1, work.shape[1]), work.dtype)
    difference = np.empty((n_outputs, n_levels, work.shape[1]), work.dtype)
    half = np.empty(work.shape[1], work.dtype)  # twice the half, as the sum and the difference give it
    for first in range(0, size, work.shape[1]):
        stop = min(first + work.shape[1], size)
        width = stop - first
        total[0, :width] = 0
        for i in range(len(work)):
            frame = begin + i - reach
            work[i, :width] = 0
            if 0 <= frame < len(frames):
                for j in range(width):
                    work[i, j] = frames[frame, first + j]
            for j in range(width):
                total[i + 1, j] = total[i, j] + work[i, j]
        _differ(work, reaches, middle, width, difference)
        for s in range(n_outputs):
            for level in range(n_levels):
                before, after = s + reach - reaches[level], s + reach + reaches[level] + 1
                for j in range(width):
                    half[j] = total[after, j] - total[before, j] + difference[s, level, j]
                out = halves.even[s, level, first:stop]
                _finish(half[:width], members.even[s, level], references, first, out)
                for j in range(width):
                    half[j] -= 2 * difference[s, level, j]
                out = halves.odd[s, level, first:stop]
                _finish(half[:width], members.odd[s, level], references, first, out)


@numba.njit(nogil=True, cache=True)
def _finish(twice: Array, members: Array, references: tuple[Array, Array], first: int, out: Array) -> None:
    """Turn sums, given twice, into averages; where pixels were seen by frames of their own, only divide."""
    if members.size == 1:
        write_average(twice, 2.0 * max(members[0], 1.0), references, first, out)
        return
    for j in range(out.size):
        out[j] = twice[j] / 2.0 / max(members[first + j], np.float32(1))


@numba.njit(nogil=True, cache=True)
def _differ(work: Array, reaches: Array, middle: Array, width: int, difference: Array) -> None:
    """Even minus odd of each level: ``work`` becomes the alternating sum over 2^k frames, k by k.

    A level's reach is its binary digits, larger pieces nearer. A piece of 2^k distances is reversed where the one
    it begins at has an odd number of ones; read backwards in time it is reversed once more where k is odd.
    """
    n_outputs, n_levels, _ = difference.shape
    reach = reaches[-1]
    for s in range(n_outputs):
        for level in range(n_levels):
            for j in range(width):
                difference[s, level, j] = middle[s] * work[s + reach, j]
    span, backwards = 1, 1
    while span <= reach:
        for level in range(n_levels):
            if reaches[level] & span:
                near = reaches[level] // (2 * span) * (2 * span)
                sign, rest = 1, near
                while rest:
                    sign = -sign if rest & 1 else sign
                    rest >>= 1
                for s in range(n_outputs):
                    before, after = s + reach - near - span, s + reach + near + 1
                    for j in range(width):
                        difference[s, level, j] += sign * (backwards * work[before, j] - work[after, j])
        for i in range(len(work) - 2 * span + 1):
            for j in range(width):
                work[i, j] -= work[i + span, j]
        span *= 2
        backwards = -backwards
