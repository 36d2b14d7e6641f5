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
    sides: SideCells | None = None
    """Where the frames before and after the output frame are averaged, too, of some of the longest levels."""

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
        return self._replace(frames=self.frames[first:last], sides=self.sides and self.sides.part(first, last))

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
        ones = np.ones((*self.rows, 1))
        self._replace(sides=None)._sum(seen, Halves(ones, ones), prepare_references(None, None), counts, first)
        part = slice(first, first + values.shape[1])
        longest = (count[:, -1:] for count in self.count_frames())
        whole = Halves(*(count[:, -1, part] == most for count, most in zip(counts, longest, strict=True)))
        cells = self.sides and _Cells(self.sides.cell_of.reshape(-1)[part], whole, self.sides.sums)
        self._sum(values, counts, prepare_references(None, None), averages, first, cells)

    def average_halves(
        self, counts: Array, dark: Array | None, gain: Array | None, valid: Bools, part: tuple[slice, ...]
    ) -> Halves:
        """Average both halves of every level of raw ``(t, y, x)`` counts: ``(average - dark) * gain``.

        Which part of the canvas they are ``(y, x)``, and which of them are valid, is of use for sides alone.
        """
        members = Halves(*(np.maximum(count, 1.0)[:, :, None] for count in self.count_frames()))
        frames = buffers.averages.contiguous(counts).reshape(len(counts), -1)
        shape = (*self.rows, frames.shape[1])
        averages = Halves(*(buffers.averages.empty(shape, np.float32) for _ in range(2)))
        whole = Halves(valid.reshape(1, -1), valid.reshape(1, -1))
        cells = self.sides and _Cells(self.sides.cell_of[part].reshape(-1), whole, self.sides.sums)
        self._sum(frames, members, prepare_references(dark, gain), averages, cells=cells)
        return averages

    def list_side(self, t: int, level: int, is_even: bool, is_after: bool) -> list[int]:
        """Return the frames of a half before or after output frame ``t`` that a level holds."""
        members = level_frames(self.n_frames, t, self.windows[level])
        side = range(t + 1, members.stop) if is_after else range(members.start, t)
        halves = split_around(self.n_frames, t)
        return [frame for frame in side if halves[frame] == is_even]

    def count_frames(self) -> Halves:
        """Return ``(ladder, level)`` how many frames each half holds."""
        return self._count(
            [[level_frames(self.n_frames, t, window) for window in self.windows] for t in self.frames]
        )

    def count_sides(self, sided: int) -> Halves:
        """Return ``(ladder, side)`` how many frames are before and after, by turns, in the longest levels."""
        spans = [[level_frames(self.n_frames, t, window) for window in self.windows[-sided:]] for t in self.frames]
        return self._count(
            [
                [side for one in levels for side in (range(one.start, t), range(t + 1, one.stop))]
                for t, levels in zip(self.frames, spans, strict=True)
            ]
        )

    def _count(self, spans: Sequence[Sequence[range]]) -> Halves:
        """Count the frames of spans about each output frame that are in either half."""
        counts = np.zeros((2, len(spans), len(spans[0])), np.int64)
        for row, (t, members) in enumerate(zip(self.frames, spans, strict=True)):
            is_even = split_around(self.n_frames, t)
            even = [int(is_even[span.start : span.stop].sum()) for span in members]
            counts[:, row] = even, [len(span) - n for span, n in zip(members, even, strict=True)]
        return Halves(*counts)

    def _sum(
        self,
        frames: Array,
        members: Halves,
        references: tuple[Array, Array],
        halves: Halves,
        first: int = 0,
        cells: _Cells | None = None,
    ) -> None:
        # Beyond the ends of the movie a level holds nothing more.
        reaches = np.minimum(np.array(self.windows) // 2, self.n_frames - 1)
        n_sides = cells.sums.even.shape[1] if cells else 0
        plan = _Plan(
            np.array(self.frames) - self.needed[0],
            np.array(self.frames) == self.n_frames - 1,
            reaches,
            _thue_morse(int(reaches[-1]) + 1),
            self.count_sides(n_sides // 2) if n_sides else Halves(*np.zeros((2, len(self.frames), 0), np.int64)),
        )
        sums = np.empty((5 if n_sides else 2, BLOCK), type_of_sums(frames.dtype, self.windows[-1]))
        _sum_levels(frames, plan, sums, (members, references), (halves, first), cells or _NO_CELLS)


class SideCells(NamedTuple):
    """Averages of the frames before a ladder's frame and of those after it, of cells of a canvas alone."""

    cell_of: Array
    """``(y, x)`` the cell that a pixel of the canvas is in."""
    sums: Halves
    """``(ladder, side, cell)`` over pixels that all frames of the longest level saw; before and after by turns."""

    def part(self, first: int, last: int) -> SideCells:
        """Return those of the ladders ``first`` to ``last - 1``."""
        return self._replace(sums=Halves(*(half[first:last] for half in self.sums)))


class _Cells(NamedTuple):
    """Cells of the pixels that are summed."""

    cell_of: Array
    whole: Halves
    """``(ladder, p)``, or of one for all, whether all frames of the longest level saw a pixel."""
    sums: Halves


_NO_CELLS = _Cells(
    np.zeros(0, np.int32), Halves(*np.zeros((2, 1, 0), np.bool_)), Halves(*np.zeros((2, 1, 0, 0), np.float64))
)


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
    sides: Halves
    """``(ladder, side)`` frames of each side of the longest levels, before and after by turns."""


@numba.njit(nogil=True, cache=True)
def _sum_levels(  # noqa: PLR0915
    frames: Array,
    plan: _Plan,
    sums: Array,
    finish: tuple[Halves, tuple[Array, Array]],
    target: tuple[Halves, int],
    cells: _Cells,
) -> None:
    """Sum ``(t, p)`` frames a block of pixels at a time, and write them from some pixel of the target on.

    Sums are divided by how many frames are in them, of all pixels or of each, and corrected; see `_finish`.
    ``sums`` has a row for each half, in which all frames are summed or, where sides are wanted, those before the
    ladder's frame; then also one for each half's frames after it, and one for those of both sides.
    """
    (members, references), (halves, begin) = finish, target
    (n_frames, size), n_levels, n_sides = frames.shape, len(plan.reaches), plan.sides.even.shape[1]
    for first in range(0, size, sums.shape[1]):
        stop = min(first + sums.shape[1], size)
        even, odd = sums[0, : stop - first], sums[1, : stop - first]
        even_after, odd_after, both = even, odd, even
        if n_sides:
            even_after, odd_after, both = sums[2, : stop - first], sums[3, : stop - first], sums[4, : stop - first]
        part = (slice(begin + first, begin + stop), references, first)
        for row in range(len(plan.centres)):
            t = plan.centres[row]
            sums[:] = 0
            if not n_sides:
                copy_row(frames[t, first:stop], odd if plan.is_last[row] else even)
            distance = 1
            for level in range(n_levels):
                while distance <= plan.reaches[level]:
                    before, after = (odd, even_after) if plan.earlier_is_odd[distance] else (even, odd_after)
                    if t >= distance:
                        add_row(frames[t - distance, first:stop], before)
                    if t + distance < n_frames:
                        add_row(frames[t + distance, first:stop], after)
                    distance += 1
                if not n_sides:
                    _finish(even, members.even[row, level], part, halves.even[row, level])
                    _finish(odd, members.odd[row, level], part, halves.odd[row, level])
                    continue
                own = first if plan.is_last[row] else stop  # the frame itself is in one half
                _add_rows(even, even_after, frames[t, first:own], both)
                _finish(both, members.even[row, level], part, halves.even[row, level])
                _add_rows(odd, odd_after, frames[t, own:stop], both)
                _finish(both, members.odd[row, level], part, halves.odd[row, level])
                side = 2 * (level - n_levels) + n_sides
                if side >= 0:
                    of_even = (cells.cell_of, cells.whole.even, cells.sums.even)
                    _add_cells((even, even_after), plan.sides.even, (row, side, part), of_even)
                    of_odd = (cells.cell_of, cells.whole.odd, cells.sums.odd)
                    _add_cells((odd, odd_after), plan.sides.odd, (row, side, part), of_odd)


@numba.njit(nogil=True, cache=True)
def _add_rows(one: Array, other: Array, third: Array, out: Array) -> None:
    """Add rows, the third of which may be empty."""
    for j in range(out.size):
        out[j] = one[j] + other[j]
    if third.size:
        add_row(third, out)


@numba.njit(nogil=True, cache=True)
def _add_cells(
    sums: tuple[Array, Array],
    members: Array,
    at: tuple[int, int, tuple[slice, tuple[Array, Array], int]],
    cells: tuple[Array, Array, Array],
) -> None:
    """Add the averages before the moment and after it to those of the cells that the pixels are in.

    They are added pixel by pixel, so that the result does not depend on the blocks in which these come.
    """
    before, after = sums
    row, side, (_, (dark, gain), first) = at
    cell_of, whole, out = cells
    part = slice(first, first + before.size)
    is_whole, of_pixel = whole[row % len(whole), part], cell_of[part]
    scales = 1 / max(members[row, side], 1), 1 / max(members[row, side + 1], 1)
    j = 0
    while j < before.size:
        cell = of_pixel[j]
        one, other = out[row, side, cell], out[row, side + 1, cell]
        stop = j + 1
        while stop < before.size and of_pixel[stop] == cell:
            stop += 1
        if dark.size:
            for k in range(j, stop):
                if is_whole[k]:
                    one += (before[k] * scales[0] - dark[first + k]) * gain[first + k]
                    other += (after[k] * scales[1] - dark[first + k]) * gain[first + k]
        else:
            for k in range(j, stop):
                one += is_whole[k] * before[k] * scales[0]
                other += is_whole[k] * after[k] * scales[1]
        out[row, side, cell], out[row, side + 1, cell] = one, other
        j = stop


@numba.njit(nogil=True, cache=True)
def _finish(sums: Array, members: Array, target: tuple[slice, tuple[Array, Array], int], averages: Array) -> None:
    """Turn sums into averages; where pixels were seen by frames of their own, only divide.

    The target is which of the averages' pixels these are, what they are corrected by, and the first of that.
    """
    written, references, first = target
    out = averages[written]
    if members.size == 1:
        write_average(sums, max(members[0], 1.0), references, first, out)
        return
    counts = members[written]
    for j in range(out.size):
        out[j] = sums[j] / max(counts[j], np.float32(1))
