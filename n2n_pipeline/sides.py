"""What came or went within a long window: there a level keeps the frames of the moment's own side alone.

A window of 95 frames shows faintly what comes 40 frames later. It surely came where the frames before the moment
and those after it, averaged apart, differ by far more than their noise. Where one side then is as the frames next
to the moment are, and the other is not, the level becomes the average of that side. What moves on and on is as far
from one side as from the other, and is left to the network; so are movies in which everything moves, where by
chance some places would pass for having changed. Each half is judged by its own frames.

Averages are compared over squares of 20 px, on a grid of 4 px, where all frames of the longest level saw most
pixels. A result does not depend on what region it is computed with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from scipy import ndimage

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NEAREST = 3
"""Window of the frames next to the moment, to which sides are compared."""
UNSIDED = 2
"""Of a ladder's windows the shortest, which reach no further than a change is known by its frame."""
STILL_WINDOWS = (5, 9, 17)
"""Windows that tell whether everything moves: most moments have nothing that comes or goes so close."""
STILL = 1.1
"""Differences of sides, in units of what noise alone makes, beyond which it does."""
CELL_PX = 4
REACH = 2
"""Cells to either side of one that averages are compared over: squares of 5 x 5."""
SIGHT_PX = CELL_PX * (2 * REACH + 1)
"""How far from a pixel what decides on it lies: a square about a square about the cells it lies between."""
DIFFER = (4.0, 5.0)
"""Standard deviations of noise by which sides differ: where not surely, and where surely."""
ALIKE = (0.4, 0.3)
"""How far the side that is kept is off, in units of the difference: not to be kept, and to be kept."""
AGREED = (0.3, 0.5)
"""Of the squares about a place in which sides differ, those that have one to keep: too few, and enough."""


class Noise(NamedTuple):
    """Noise of a movie in which not everything moves."""

    deviation: float
    """Standard deviation of a cell in one frame, as that of averages over squares of cells tells it."""
    mean: float
    """Where it was measured; brighter places are noisier, as counts of electrons are."""


class Half(NamedTuple):
    """What one half averages about some moments."""

    values: Floats
    """``(t, level, y, x)``, from the shortest level on."""
    seen: Floats
    """``(t or 1, level, y, x)`` frames that saw a pixel."""
    frames: Ints
    """``(t, level)`` frames there are."""
    sides: Array
    """``(t, side, y, x)`` sums over cells: of the longest levels, averages of the frames before the moment and of
    those after it, by turns, where all frames of the longest level saw a pixel."""
    of_sides: Ints
    """``(t, side)`` frames in these."""

    def is_whole(self, t: int) -> Bools:
        """Say of ``(y, x)`` whether all frames of the longest level saw a pixel."""
        return np.asarray(self.seen[t % len(self.seen), -1] == self.frames[t, -1])

    def with_own_counts(self) -> Half:
        """Return it with numbers of frames of each moment's own."""
        return (
            self
            if len(self.seen) == len(self.values)
            else self._replace(seen=np.repeat(self.seen, len(self.values), 0))
        )


class Grid(NamedTuple):
    """A canvas's cells."""

    cell_of: Array
    """``(y, x)`` the cell that each pixel is in."""
    shape: tuple[int, int]
    """``(y, x)`` cells."""

    @classmethod
    def over(cls, canvas: Sequence[range]) -> Grid:
        """Lay cells over a canvas from its first pixel on."""
        height, width = (-(-len(axis) // CELL_PX) for axis in canvas)
        rows, columns = (np.arange(len(axis), dtype=np.int32) // CELL_PX for axis in canvas)
        return cls(rows[:, None] * np.int32(width) + columns, (height, width))

    @property
    def n_cells(self) -> int:
        """How many there are."""
        return self.shape[0] * self.shape[1]

    def unfold(self, sums: Array) -> Array:
        """Return ``(…, cell)`` as ``(…, y, x)``."""
        return sums.reshape(*sums.shape[:-1], *self.shape)


class OwnSide(NamedTuple):
    """Where a level of a moment is to be replaced by the frames of one side of it."""

    moment: int
    level: int
    is_after: bool
    weights: Array
    """``(y, x)`` cells, how much of it."""
    is_whole: Bools
    """``(y, x)`` pixels for which that holds."""

    def boxes(self, shape: Sequence[int]) -> Iterator[tuple[Array, slice, slice]]:
        """Yield the weights of separate places, with the rows and columns of pixels that they are about."""
        labels, _ = ndimage.label(ndimage.maximum_filter(self.weights, 3, mode="nearest") > 0)
        for number, box in enumerate(ndimage.find_objects(labels), 1):
            rows, columns = (
                slice(part.start * CELL_PX, min(part.stop * CELL_PX, size))
                for part, size in zip(box, shape, strict=True)
            )
            yield np.where(labels[box] == number, self.weights[box], 0), rows, columns


def measure_noise(moments: Sequence[Sequence[tuple[Half, Half]]]) -> Noise | None:
    """Measure noise by what both halves of the shortest window differ by.

    Parameters
    ----------
    moments : sequence of sequence of tuple of Half
        At some moments, one by one, at some places: both halves of `STILL_WINDOWS`, sides of all but the shortest.

    Returns
    -------
    Noise or None
        None where everything moves: at half of the moments, sides differ by more than noise.
    """
    found = np.array([np.mean([_compare(*halves) for halves in places], axis=0) for places in moments])
    found = found[np.isfinite(found).all(axis=1)]
    if not len(found):
        return None
    mean, noise, *changes = np.median(found, axis=0).tolist()
    return Noise(noise**0.5, mean) if 0 < max(changes) <= STILL**2 * noise else None


def find_own_sides(half: Half, noise: Noise) -> Iterator[OwnSide]:
    """Find where the moment is on one side of something that came or went.

    Parameters
    ----------
    half : Half
        Of `NEAREST` and of a ladder's windows; its first pixel is the first of a cell.
    noise : Noise
        The movie's.
    """
    n_levels, n_sided = half.values.shape[1], half.sides.shape[1] // 2
    for t, values in enumerate(half.values):
        is_whole = half.is_whole(t)
        cells = _shrink(half.sides[t], is_whole)
        frames = half.frames[t], half.of_sides[t]
        differ, own, votes = _judge(cells, (values, is_whole), frames, noise)
        for number in np.flatnonzero(own.any(axis=(1, 2))).tolist():
            level = n_levels - n_sided + number
            for is_after, weights in enumerate(_weigh_sides(differ[number], own[number], votes[number])):
                if weights.any():
                    yield OwnSide(t, level, bool(is_after), weights, is_whole)


class _Cells(NamedTuple):
    """Averages of cells."""

    values: Array
    """``(row, y, x)``; 0 where too little was seen."""
    number: Array
    """``(y, x)`` how many cells of the square about each were seen."""


def _shrink(sums: Array, is_whole: Bools) -> _Cells:
    """Divide sums over the pixels of a cell that all frames saw by their number, if that is half of it or more."""
    number = np.zeros(sums.shape[1:])
    _count_seen(is_whole, number)
    return _Cells(
        np.where(number > 0, sums / np.maximum(number, 1), 0), _sum_squares((number > 0).astype(np.float64))
    )


@numba.njit(nogil=True, cache=True)
def _count_seen(is_whole: Bools, number: Array) -> None:
    """Count the pixels of each cell that all frames saw, if that is half of it or more."""
    height, width = is_whole.shape
    for i in range(number.shape[0]):
        for j in range(number.shape[1]):
            top, left = i * CELL_PX, j * CELL_PX
            bottom, right = min(top + CELL_PX, height), min(left + CELL_PX, width)
            n_seen = 0
            for y in range(top, bottom):
                for x in range(left, right):
                    n_seen += is_whole[y, x]
            if 2 * n_seen >= (bottom - top) * (right - left):
                number[i, j] = n_seen


def _mean_square(cells: _Cells, row: int, frames: Ints) -> float:
    """Return the mean square of what a row and the next differ by over squares, as of a cell of one frame."""
    is_seen, variance = cells.number > 0, _variance(frames[row], frames[row + 1])
    if not is_seen.any() or math.isinf(variance):
        return math.nan
    squares = _sum_squares(cells.values[row] - cells.values[row + 1])[is_seen] ** 2 / cells.number[is_seen]
    return float(squares.mean() / variance)


def _compare(even: Half, odd: Half) -> list[float]:
    """Return the mean, and mean squares of what halves of the shortest level and sides of the others differ by.

    NaN where a half has no frames, or they saw too little.
    """
    is_whole = even.is_whole(0) & odd.is_whole(0)
    rows, columns = (np.arange(0, size, CELL_PX) for size in is_whole.shape)
    shortest = [
        np.add.reduceat(np.add.reduceat(half.values[0, 0] * is_whole, rows, 0, np.float64), columns, 1)
        for half in (even, odd)
    ]
    cells = _shrink(np.stack(shortest), is_whole)
    noise = _mean_square(cells, 0, np.array([even.frames[0, 0], odd.frames[0, 0]]))
    changes = [
        [_mean_square(sides, row, half.of_sides[0]) for row in range(0, len(sides.values), 2)]
        for half in (even, odd)
        for sides in [_shrink(half.sides[0], half.is_whole(0))]
    ]
    mean = float(even.values[0, 0].mean(where=is_whole)) if is_whole.any() else math.nan
    return [mean, noise, *np.mean(changes, axis=0).tolist()]


def _weigh_sides(differ: Array, own: Array, votes: Array) -> tuple[Array, Array]:
    """Return ``(y, x)`` how much of a level either side replaces.

    What is sure in one square holds in those next to it, if many agree, for the side that more of them keep.
    """
    share = _sum_squares(own) / np.maximum(_sum_squares(differ), np.finfo(np.float64).tiny)
    agreed = np.clip((share - AGREED[0]) / (AGREED[1] - AGREED[0]), 0, 1)
    weights = agreed * ndimage.maximum_filter(own, 2 * REACH + 1, mode="nearest")
    is_before = _sum_squares(votes) > 0
    return weights * is_before, weights * ~is_before


@numba.njit(nogil=True, cache=True)
def _variance(frames: int, others: int) -> float:
    """Return the variance of what two averages differ by, where a frame's is 1; infinite where one has none."""
    return 1 / frames + 1 / others if min(frames, others) > 0 else math.inf


@numba.njit(nogil=True, cache=True)
def _sum_squares(cells: Array) -> Array:
    """Sum over the square about each cell, in an order that does not depend on where the image begins."""
    rows, sums = np.zeros_like(cells), np.zeros_like(cells)
    height, width = cells.shape
    for i in range(height):
        for y in range(max(i - REACH, 0), min(i + REACH + 1, height)):
            for j in range(width):
                rows[i, j] += cells[y, j]
    for i in range(height):
        for step in range(-REACH, REACH + 1):
            for j in range(max(-step, 0), min(width - step, width)):
                sums[i, j] += rows[i, j + step]
    return sums


@numba.njit(nogil=True, cache=True)
def _judge(
    cells: _Cells, levels: tuple[Floats, Bools], frames: tuple[Ints, Ints], noise: Noise
) -> tuple[Array, Array, Array]:
    """Compare both sides of levels over squares.

    Returns
    -------
    numpy.ndarray, numpy.ndarray, numpy.ndarray
        ``(level, y, x)`` how surely they differ; how surely they do and one of them is as the moment is; a vote,
        which is positive for the side before it.
    """
    n_sided, (height, width) = len(cells.values) // 2, cells.number.shape
    differ, own, votes = np.zeros((3, n_sided, height, width))
    for number in range(n_sided):
        variance = noise.deviation**2 * _variance(frames[1][2 * number], frames[1][2 * number + 1])
        difference = _sum_squares(cells.values[2 * number] - cells.values[2 * number + 1])
        for i in range(height):
            for j in range(width):
                n_cells = cells.number[i, j]
                if n_cells > 0 and difference[i, j] ** 2 > DIFFER[0] ** 2 * variance * n_cells:
                    brightness = _brightness(_average_square(levels, 0, i, j), noise)
                    deviation = math.sqrt(variance * n_cells * brightness)
                    differ[number, i, j] = _ramp(abs(difference[i, j]) / deviation, DIFFER)
    for i in range(height):
        for j in range(width):
            if differ[:, i, j].any():
                sides = _average_sides(cells, i, j)
                shown = np.array([_average_square(levels, level, i, j) for level in range(len(levels[0]))])
                of_frame = noise.deviation * math.sqrt(_brightness(shown[0], noise) / cells.number[i, j])
                given = sides, of_frame / np.sqrt(frames[1]), shown, of_frame / np.sqrt(frames[0])
                _judge_place(given, differ[:, i, j], own[:, i, j], votes[:, i, j])
    return differ, own, votes


@numba.njit(nogil=True, cache=True)
def _brightness(shown: float, noise: Noise) -> float:
    """Return by how much the variance of a place is larger than the movie's."""
    return max(shown / noise.mean, 1.0) if noise.mean > 0 else 1.0


@numba.njit(nogil=True, cache=True)
def _judge_place(given: tuple[Array, Array, Array, Array], differ: Array, own: Array, votes: Array) -> None:
    """Say for each level, from the shortest on, how surely one side is as shorter levels are, and which.

    By the noise of what it is compared with a side may seem nearer than it is: where something changes little
    by little, either side now and then does. So one deviation of that noise is added to how far it is off. With
    a level whose own sides differ no other is compared, unless with the side that it becomes.
    """
    sides, of_sides, shown, deviations = given
    first_sided = len(shown) - len(differ)
    for number in range(len(differ)):
        if differ[number] == 0:
            continue
        before, after = sides[2 * number], sides[2 * number + 1]
        level, least = first_sided + number, math.inf
        for shorter in range(level):
            misses = abs(before - shown[shorter]), abs(after - shown[shorter])
            off = (min(misses) + deviations[shorter]) / abs(before - after)
            if off < least:
                least, votes[number] = off, misses[1] - misses[0]
        own[number] = differ[number] * _ramp(least, ALIKE)
        votes[number] *= own[number]
        side = 2 * number if votes[number] > 0 else 2 * number + 1
        shown[level], deviations[level] = sides[side], of_sides[side] if own[number] > 0 else math.inf


@numba.njit(nogil=True, cache=True)
def _ramp(value: float, ends: tuple[float, float]) -> float:
    """Return 0 up to the first end, 1 from the second on, and what lies between."""
    return min(max((value - ends[0]) / (ends[1] - ends[0]), 0.0), 1.0)


@numba.njit(nogil=True, cache=True)
def _average_sides(cells: _Cells, i: int, j: int) -> Array:
    """Average the cells of each side over the square about a cell."""
    sums, (height, width) = np.zeros(len(cells.values)), cells.number.shape
    for y in range(max(i - REACH, 0), min(i + REACH + 1, height)):
        for x in range(max(j - REACH, 0), min(j + REACH + 1, width)):
            sums += cells.values[:, y, x]
    return np.asarray(sums / cells.number[i, j])


@numba.njit(nogil=True, cache=True)
def _average_square(levels: tuple[Floats, Bools], level: int, i: int, j: int) -> float:
    """Average a level's pixels over the square about a cell, where all frames saw them."""
    values, is_whole = levels
    total, number = 0.0, 0.0
    for y in range(max(i - REACH, 0) * CELL_PX, min((i + REACH + 1) * CELL_PX, values.shape[1])):
        for x in range(max(j - REACH, 0) * CELL_PX, min((j + REACH + 1) * CELL_PX, values.shape[2])):
            if is_whole[y, x]:
                total += values[level, y, x]
                number += 1
    return total / max(number, 1)


@numba.njit(nogil=True, cache=True)
def blend(kept: tuple[Floats, int, Bools], weights: Array, level: tuple[Floats, Floats]) -> None:
    """Bring a level and its numbers of frames to those of a side, by weights interpolated between cells.

    Parameters
    ----------
    kept : tuple
        ``(y, x)`` averages of the side, frames in them, and for which pixels that holds.
    weights : numpy.ndarray
        ``(y, x)`` cells.
    level : tuple of numpy.ndarray
        ``(y, x)`` averages and frames, which are changed.
    """
    (side, frames, is_whole), (values, seen) = kept, level
    height, width = values.shape
    last_row, last_column = weights.shape[0] - 1, weights.shape[1] - 1
    for y in range(height):
        v = (y + 0.5) / CELL_PX - 0.5
        top = math.floor(v)
        for x in range(width):
            if not is_whole[y, x]:
                continue
            u = (x + 0.5) / CELL_PX - 0.5
            left = math.floor(u)
            weight = 0.0
            for row, share in ((top, top + 1 - v), (top + 1, v - top)):
                for column, part in ((left, left + 1 - u), (left + 1, u - left)):
                    cell = weights[min(max(row, 0), last_row), min(max(column, 0), last_column)]
                    weight += share * part * cell
            values[y, x] += np.float32(weight) * (side[y, x] - values[y, x])
            seen[y, x] += np.float32(weight) * np.float32(frames - seen[y, x])
