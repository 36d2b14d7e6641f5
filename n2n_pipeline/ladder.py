"""A ladder of windows around one frame: which frames each level of each half holds, and their sums.

Level W of frame t holds the frames at most W // 2 before or after it; at the movie's ends it holds those that
there are. Of two frames at the same distance before and after t one is in either half, in Thue-Morse order of the
distance, so that at every level both halves are balanced and have as many frames as each other, to within one. A
frame is in the same half at every level: no level of the even half shares a frame with any level of the odd one.

The levels of an output frame lie within each other: each frame of the longest is added once, the nearest first,
and a level's averages are taken when all of its frames are in. For the ladder of all movies that is faster than
sums that slide from one output frame to the next.
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
from n2n_pipeline.sliding import add_row, copy_row, prepare_references, type_of_sums, write_average

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

LADDER = (5, 9, 17, 33, 95)
"""The windows of long movies; see `ladder_for`."""
BLOCK = 2048  # pixels at a time


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


def ladder_for(n_frames: int) -> tuple[int, ...]:
    """Return the windows for a movie: `LADDER`, its longest stretched to hold all of a short movie from any frame.

    Examples
    --------
    >>> ladder_for(48), ladder_for(64), ladder_for(1000)
    ((5, 9, 17, 33, 95), (5, 9, 17, 33, 127), (5, 9, 17, 33, 95))
    """
    *others, longest = LADDER
    return (*others, max(longest, 2 * n_frames - 1) if n_frames <= longest else longest)


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
        order = _thue_morse(n_frames)
        order[0] = t == n_frames - 1
    frames = np.arange(n_frames)
    is_odd: Bools = order[np.abs(frames - t)] ^ (frames > t)
    return ~is_odd


def _thue_morse(n_distances: int) -> Bools:
    """Say for each distance whether the earlier of the two frames there is in the odd half."""
    return np.asarray(np.bitwise_count(np.maximum(np.arange(n_distances) - 1, 0)) % 2 == 1)


class Ladder(NamedTuple):
    """The ladders of some output frames."""

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
        """Which of the ladders belongs to each output frame."""
        return list(range(len(self.frames)))

    @property
    def rows(self) -> tuple[int, int]:
        """How many ladders there are, and how many levels each has."""
        return len(self.frames), len(self.windows)

    @property
    def spans(self) -> list[range]:
        """Frames of the movie that each ladder holds."""
        return [level_frames(self.n_frames, t, self.windows[-1]) for t in self.frames]

    def part(self, first: int, last: int) -> Ladder:
        """Return the ladders ``first`` to ``last - 1``."""
        return self._replace(frames=self.frames[first:last])

    def average_placed(self, values: Array, seen: Array, first: int, averages: Halves, counts: Halves) -> None:
        """Average both halves of every level, each pixel over the frames that saw it.

        Parameters
        ----------
        values : numpy.ndarray
            ``(t, p)`` the frames that are needed, 0 where a frame did not see a pixel.
        seen : numpy.ndarray
            ``(t, p)`` bool.
        first : int
            Where in the results the first of these pixels is.
        averages, counts : Halves
            ``(ladder, level, p)`` float32, to be filled in, as are the numbers of frames.
        """
        ones = np.ones((len(self.frames), len(self.windows), 1))
        self._sum(seen, Halves(ones, ones), prepare_references(None, None), counts, first)
        self._sum(values, counts, prepare_references(None, None), averages, first)

    def average_halves(self, counts: Array, dark: Array | None, gain: Array | None) -> Halves:
        """Average both halves of every level of raw ``(t, y, x)`` counts, as ``(average - dark) * gain``."""
        members = Halves(*(np.maximum(count, 1.0)[:, :, None] for count in self.count_frames()))
        frames = buffers.averages.contiguous(counts).reshape(len(counts), -1)
        shape = (*self.rows, frames.shape[1])
        averages = Halves(*(buffers.averages.empty(shape, np.float32) for _ in range(2)))
        self._sum(frames, members, prepare_references(dark, gain), averages)
        return averages

    def count_frames(self) -> Halves:
        """Return ``(ladder, level)`` how many frames each half holds."""
        counts = np.zeros((2, len(self.frames), len(self.windows)), np.int64)
        for row, t in enumerate(self.frames):
            is_even = split_around(self.n_frames, t)
            for level, window in enumerate(self.windows):
                members = level_frames(self.n_frames, t, window)
                even = int(is_even[members.start : members.stop].sum())
                counts[:, row, level] = even, len(members) - even
        return Halves(*counts)

    def _sum(
        self, frames: Array, members: Halves, references: tuple[Array, Array], halves: Halves, first: int = 0
    ) -> None:
        # Beyond the ends of the movie a level holds nothing more.
        reaches = np.minimum(np.array(self.windows) // 2, self.n_frames - 1)
        plan = _Plan(
            np.array(self.frames) - self.needed[0],
            np.array(self.frames) == self.n_frames - 1,
            reaches,
            _thue_morse(int(reaches[-1]) + 1),
        )
        sums = np.empty((2, BLOCK), type_of_sums(frames.dtype, self.windows[-1]))
        _sum_levels(frames, plan, sums, (members, references), halves, first)


class _Plan(NamedTuple):
    """Which frames the ladders hold."""

    centres: Array
    """Frame that each ladder is about."""
    is_last: Bools
    """Of each ladder, whether that is the movie's last frame."""
    reaches: Array
    """How far each level reaches, in frames."""
    earlier_is_odd: Bools
    """Of each distance, whether the earlier frame there is in the odd half."""


@numba.njit(nogil=True, cache=True)
def _sum_levels(
    frames: Array,
    plan: _Plan,
    sums: Array,
    finish: tuple[Halves, tuple[Array, Array]],
    halves: Halves,
    begin: int,
) -> None:
    """Sum ``(t, p)`` frames a block of pixels at a time, and write them from pixel ``begin`` of the halves on.

    Sums are divided by how many frames are in them, of all pixels or of each, and corrected; see `_finish`.
    """
    members, references = finish
    n_frames, size = frames.shape
    for first in range(0, size, sums.shape[1]):
        stop = min(first + sums.shape[1], size)
        even, odd = sums[0, : stop - first], sums[1, : stop - first]
        written = slice(begin + first, begin + stop)
        for row in range(len(plan.centres)):
            t = plan.centres[row]
            own, other = (odd, even) if plan.is_last[row] else (even, odd)
            copy_row(frames[t, first:stop], own)
            other[:] = 0
            distance = 1
            for level in range(len(plan.reaches)):
                while distance <= plan.reaches[level]:
                    before, after = (odd, even) if plan.earlier_is_odd[distance] else (even, odd)
                    if t >= distance:
                        add_row(frames[t - distance, first:stop], before)
                    if t + distance < n_frames:
                        add_row(frames[t + distance, first:stop], after)
                    distance += 1
                _finish(even, members.even[row, level], written, references, first, halves.even[row, level])
                _finish(odd, members.odd[row, level], written, references, first, halves.odd[row, level])


@numba.njit(nogil=True, cache=True)
def _finish(
    sums: Array, members: Array, written: slice, references: tuple[Array, Array], first: int, averages: Array
) -> None:
    """Turn sums into averages; where pixels were seen by frames of their own, only divide."""
    out = averages[written]
    if members.size == 1:
        write_average(sums, max(members[0], 1.0), references, first, out)
        return
    counts = members[written]
    for j in range(out.size):
        out[j] = sums[j] / max(counts[j], np.float32(1))
