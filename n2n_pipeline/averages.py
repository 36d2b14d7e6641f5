"""Even and odd averages of the windows of some output frames, read from raw counts.

Each frame of a window is in exactly one half. Drift is undone by whole pixels, frame by frame, so that no
interpolation correlates the noise; where drift leaves a pixel with fewer frames, it is averaged over fewer, and
the count says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from n2n_pipeline import buffers, sides
from n2n_pipeline.config import Frame, Split
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.filling import FILL_REACH, fill_places
from n2n_pipeline.geometry import round_up
from n2n_pipeline.halving import Halves, split_window, window_frames
from n2n_pipeline.ladder import Ladder, SideCells
from n2n_pipeline.laying import lay_frames
from n2n_pipeline.shifted import overlap, stable_origin, whole_shifts
from n2n_pipeline.sides import Noise
from n2n_pipeline.sliding import Finish, finish_sums, slide_halves, sum_members

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Pair(NamedTuple):
    """Two averages of disjoint frames of the same windows, or of ladders of windows."""

    even: Floats
    """``(n, y, x)``, of ladders ``(n, level, y, x)``, in the movie's units."""
    odd: Floats
    even_count: Floats
    """Frames that contributed to each pixel; 0 where the value was filled in from its neighbours."""
    odd_count: Floats


def read_pairs(
    movie: CorrectedMovie,
    frames: range,
    region: tuple[slice, slice],
    window: int,
    split: Split = "balanced",
    frame_of_reference: Frame = "camera",
) -> Pair:
    """Average the two halves of the windows of some consecutive output frames.

    Parameters
    ----------
    movie : CorrectedMovie
        The movie; its shifts, if any, are undone.
    frames : range
        Output frames, one after another or every so many.
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
    windows = _FixedWindows.plan(movie.store.info.shape[0], frames, window, split)
    return Pair(*(part[:, 0] for part in _read(movie, windows, frames, region, frame_of_reference)))


def read_ladder(
    movie: CorrectedMovie,
    frames: range,
    region: tuple[slice, slice],
    windows: Sequence[int],
    frame_of_reference: Frame = "camera",
    noise: Noise | None = None,
) -> Pair:
    """Average the two halves of the ladders of some consecutive output frames.

    Parameters
    ----------
    movie, frames, region, frame_of_reference
        As for `read_pairs`.
    windows : sequence of int
        Ascending odd numbers of frames, both halves together; see `ladder`.
    noise : Noise, optional
        The movie's; levels in which something came or went then keep the moment's own side, see `sides`.

    Returns
    -------
    Pair
        ``(len(frames), len(windows), y, x)`` each.
    """
    ladder = Ladder(movie.store.info.shape[0], frames, tuple(windows))
    return _read(movie, ladder, frames, region, frame_of_reference, noise)


def read_sides(
    movie: CorrectedMovie, frames: range, canvas: Sequence[range], windows: Sequence[int], sided: int
) -> tuple[sides.Half, sides.Half]:
    """Average both halves of ladders, and over cells the frames on either side of the longest windows.

    Parameters
    ----------
    movie, frames, windows
        As for `read_ladder`.
    canvas : sequence of range
        Rows and columns, where frame 0 has them.
    sided : int
        How many of the windows.
    """
    ladder = Ladder(movie.store.info.shape[0], frames, tuple(windows))
    grid = sides.Grid.over(canvas)
    sums = Halves(*np.zeros((2, len(frames), 2 * sided, grid.n_cells)))
    ladder = ladder._replace(sides=SideCells(grid.cell_of, sums))
    even, odd, *seen = _average_canvas(movie, ladder, list(canvas), whole_shifts(movie))
    members, of_sides = ladder.count_frames(), ladder.count_sides(sided)
    return (
        sides.Half(even, seen[0], members.even, grid.unfold(sums.even), of_sides.even),
        sides.Half(odd, seen[1], members.odd, grid.unfold(sums.odd), of_sides.odd),
    )


def _keep_own_sides(
    movie: CorrectedMovie, ladder: Ladder, canvas: Sequence[range], halves: Sequence[sides.Half], noise: Noise
) -> None:
    """Replace levels, in their own memory, by the side that the moment is on, see `sides`."""
    for half, is_even in zip(halves, (True, False), strict=True):
        for own in sides.find_own_sides(half, noise):
            members = ladder.list_side(ladder.frames[own.moment], own.level, is_even, own.is_after)
            for weights, rows, columns in own.boxes(half.values.shape[2:]):
                place = [whole[part] for whole, part in zip(canvas, (rows, columns), strict=True)]
                level = (
                    half.values[own.moment, own.level, rows, columns],
                    half.seen[own.moment, own.level, rows, columns],
                )
                kept = (_average_frames(movie, members, place), len(members), own.is_whole[rows, columns])
                sides.blend(kept, weights, level)


def _average_frames(movie: CorrectedMovie, members: Sequence[int], canvas: Sequence[range]) -> Floats:
    """Average some frames on a rectangle of frame-0 coordinates, each pixel over those that saw it."""
    frames = range(members[0], members[-1] + 1)
    chosen = np.array(members) - frames.start
    parts = [
        values[chosen].sum(axis=0, dtype=np.float64) / np.maximum(seen[chosen].sum(axis=0), 1)
        for _, values, seen in lay_frames(movie, frames, canvas, whole_shifts(movie)[frames.start : frames.stop])
    ]
    return np.concatenate(parts).astype(np.float32)


def _read(
    movie: CorrectedMovie,
    windows: _Windows,
    frames: range,
    region: tuple[slice, slice],
    reference: Frame,
    noise: Noise | None = None,
) -> Pair:
    """Read ``(len(frames), level, y, x)`` averages and counts."""
    _, *shape = movie.store.info.shape
    shifts = whole_shifts(movie)
    wanted = [range(*part.indices(size)[:2]) for part, size in zip(region, shape, strict=True)]
    reach = fill_reach(movie)
    grown = [
        range(max(part.start - reach, 0), min(part.stop + reach, size))
        for part, size in zip(wanted, shape, strict=True)
    ]
    anchors = shifts[list(frames)] if reference == "camera" else stable_origin(shifts)[None]
    anchors = np.broadcast_to(anchors, (len(frames), 2))
    canvas = [
        range(part.start - int(anchors[:, axis].max()), part.stop - int(anchors[:, axis].min()))
        for axis, part in enumerate(grown)
    ]
    if noise and isinstance(windows, Ladder):
        canvas = [
            _on_cells(part, shifts[:, axis], size)
            for axis, (part, size) in enumerate(zip(canvas, shape, strict=True))
        ]
        levels = windows._replace(windows=(sides.NEAREST, *windows.windows))
        sided = max(len(windows.windows) - sides.UNSIDED, 0)
        both = [half.with_own_counts() for half in read_sides(movie, frames, canvas, levels.windows, sided)]
        _keep_own_sides(movie, levels, canvas, both, noise)
        averages = Pair(*(half.values[:, 1:] for half in both), *(half.seen[:, 1:] for half in both))
    else:
        averages = _average_canvas(movie, windows, canvas, shifts)
    places = [tuple(anchor) for anchor in anchors.tolist()]
    cuts = {
        anchor: tuple(
            slice(part.start - move - whole.start, part.stop - move - whole.start)
            for part, move, whole in zip(grown, anchor, canvas, strict=True)
        )
        for anchor in set(places)
    }
    crops = [cuts[anchor] for anchor in places]
    every = (slice(None), slice(None))
    inner = (*every, *(slice(w.start - g.start, w.stop - g.start) for w, g in zip(wanted, grown, strict=True)))
    halves = [_take_half(averages, half, windows.numbers, crops, movie) for half in (0, 1)]
    return Pair(*(value[inner] for value, _ in halves), *(count[inner] for _, count in halves))


def _on_cells(part: range, shifts: Ints, size: int) -> range:
    """Widen one axis of a canvas by all cells that decide on its pixels, as far as any frame sees."""
    first, last = -int(shifts.max()), size - int(shifts.min())
    start = max(part.start - sides.SIGHT_PX, first)
    stop = round_up(part.stop + sides.SIGHT_PX, sides.CELL_PX)
    return range(start // sides.CELL_PX * sides.CELL_PX, min(stop, last))


def fill_reach(movie: CorrectedMovie) -> int:
    """Return how far beyond a region is read, so that its filled pixels do not depend on the region.

    Whole counts without defects or drift leave nothing to fill, and no need to decode the chunks next door.
    """
    store = movie.store
    is_whole = store.references.defects is None and store.array.dtype.kind in "iu"
    return 0 if is_whole and not whole_shifts(movie).any() else FILL_REACH


def _take_half(
    averages: Pair, half: int, numbers: list[int], crops: list[tuple[slice, ...]], movie: CorrectedMovie
) -> tuple[Floats, Floats]:
    """Cut each output frame's averages and counts out of those of the consecutive windows, and fill the unseen."""
    is_seen = averages[2 + half][:, 0].all()  # what the shortest window holds every other does, too
    value = _take(averages[half], numbers, crops)
    count = _take(averages[2 + half], numbers, crops)
    if is_seen:
        return value, count
    if not value.flags.writeable:
        value = value.copy()
    for averaged, seen in zip(value, count, strict=True):
        ys, xs = np.nonzero(seen[0] == 0)
        for average, frames in zip(averaged, seen, strict=True):
            unseen = frames[ys, xs] == 0  # a longer window holds what a shorter one does
            ys, xs = ys[unseen], xs[unseen]
            fill_places(average, frames, (ys, xs), movie.typical_value)
    return value, count


def _take(stack: Floats, numbers: list[int], crops: list[tuple[slice, ...]]) -> Floats:
    """Return ``(n, level, y, x)``, without copying where all frames are cut alike.

    Where they are not, and each is cut out of most of an image of its own, it is moved to the corner of that:
    memory that was never used before takes longer than copying.
    """
    cut = stack[:, :, *crops[0]]
    if crops.count(crops[0]) < len(crops):
        if numbers == list(range(len(stack))) and 2 * cut.size > stack.size:
            corner = stack[:, :, : cut.shape[2], : cut.shape[3]]
            for images, placed, crop in zip(stack, corner, crops, strict=True):
                for image, moved in zip(images, placed, strict=True):
                    moved[...] = image[crop]
            return corner
        parts = [stack[n % len(stack)][:, *crop] for n, crop in zip(numbers, crops, strict=True)]
        return np.stack(parts, out=buffers.averages.empty((len(parts), *parts[0].shape), stack.dtype))
    if len(stack) == 1:
        return np.broadcast_to(cut, (len(numbers), *cut.shape[1:]))
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return cut[numbers[0] : numbers[0] + len(numbers)]
    taken = buffers.averages.empty((len(numbers), *cut.shape[1:]), cut.dtype)
    return np.take(cut, numbers, axis=0, out=taken, mode="clip")  # other modes copy once more


class _Windows(Protocol):
    """The windows of a block of output frames: consecutive ones, each computed once."""

    @property
    def needed(self) -> range:
        """Frames that any of them holds."""

    @property
    def numbers(self) -> list[int]:
        """Which row of averages belongs to each output frame: that of its window, or its own."""

    @property
    def spans(self) -> list[range]:
        """Frames that each of the consecutive windows holds."""

    def part(self, first: int, last: int) -> _Windows:
        """Return the consecutive windows ``first`` to ``last - 1``."""

    @property
    def rows(self) -> tuple[int, int]:
        """How many windows there are, and how many levels each has."""

    def average_placed(self, values: Array, seen: Array, first: int, averages: Halves, counts: Halves) -> None:
        """Average ``(t, p)`` frames, each pixel over those that saw it, and count these.

        ``(row, level, p)`` averages and counts are filled in from pixel ``first`` on.
        """

    def average_halves(
        self, counts: Array, dark: Array | None, gain: Array | None, valid: Bools, part: tuple[slice, ...]
    ) -> Halves:
        """Average raw ``(t, y, x)`` counts and correct the averages.

        Of ``(y, x)`` pixels it is told whether they are valid, and which part of the canvas they are.
        """

    def count_frames(self) -> Halves:
        """Return ``(row, level)`` numbers of frames, of one row where all have the same."""


class _FixedWindows(NamedTuple):
    """Windows of one length, as the only level."""

    needed: range
    size: int
    numbers: list[int]
    split: Split
    ends: tuple[int, int] = (0, 0)
    """How many more output frames share the first window, and the last."""

    @classmethod
    def plan(cls, n_frames: int, frames: range, window: int, split: Split) -> _FixedWindows:
        starts = [window_frames(n_frames, t, window).start for t in frames]
        size = min(window, n_frames)
        numbers = [start - starts[0] for start in starts]
        windows = cls(range(starts[0], starts[-1] + size), size, numbers, split)
        if frames.step > 1 or numbers[-1] == 0:
            return windows
        ends = (numbers.count(0) - 1, numbers.count(numbers[-1]) - 1)
        return windows._replace(numbers=list(range(len(frames))), ends=ends)

    @property
    def spans(self) -> list[range]:
        return [self.needed[start : start + self.size] for start in range(len(self.needed) - self.size + 1)]

    def part(self, first: int, last: int) -> _FixedWindows:
        n_windows = len(self.needed) - self.size + 1
        ends = (self.ends[0] if first == 0 else 0, self.ends[1] if last == n_windows else 0)
        return self._replace(needed=self.needed[first : last + self.size - 1], ends=ends)

    @property
    def rows(self) -> tuple[int, int]:
        return len(self.needed) - self.size + 1 + sum(self.ends), 1

    def average_placed(self, values: Array, seen: Array, first: int, averages: Halves, counts: Halves) -> None:
        pixels = slice(first, first + values.shape[1])
        numbers = self._halve(seen.view(np.uint8), np.float32)
        totals = self._halve(values, np.float64)
        for half in (0, 1):
            counts[half][..., pixels] = numbers[half]
            averages[half][..., pixels] = totals[half] / np.maximum(numbers[half], 1)

    def average_halves(
        self, counts: Array, dark: Array | None, gain: Array | None, valid: Bools, part: tuple[slice, ...]
    ) -> Halves:
        even, odd = self.count_frames()
        return self._halve(counts, np.float32, Finish(int(even[0, 0]), int(odd[0, 0]), dark, gain))

    def count_frames(self) -> Halves:
        n_even = int(split_window(self.size, self.split).sum())
        return Halves(np.full((1, 1), n_even), np.full((1, 1), self.size - n_even))

    def _halve(self, frames: Array, dtype: npt.DTypeLike, finish: Finish | None = None) -> Halves:
        """Sum the halves, by the fast rule where the split follows one."""
        if self.split in ("balanced", "interleaved"):
            halves = slide_halves(frames, self.size, self.split == "balanced", dtype, finish, self.ends)
        else:
            frames = buffers.averages.contiguous(frames).reshape(len(frames), -1)
            starts = range(len(frames) - self.size + 1)
            members = np.zeros((2, len(starts), len(frames)), bool)
            for start in starts:
                is_even = split_window(self.size, self.split, (self.needed.start + start,))
                members[:, start, start : start + self.size] = is_even, ~is_even
            times = np.ones(len(starts), np.int64)
            times[0] += self.ends[0]
            times[-1] += self.ends[1]
            sums = Halves(*(np.repeat(sum_members(frames, half), times, axis=0) for half in members))
            halves = finish_sums(sums, dtype, finish)
        return Halves(*(half[:, None] for half in halves))


def _average_canvas(movie: CorrectedMovie, windows: _Windows, canvas: list[range], shifts: Ints) -> Pair:
    """Average the halves of all windows on a rectangle of frame-0 coordinates.

    Raw counts of frames that do not move against each other are summed as whole numbers, and the sums corrected
    once. Which way a window goes depends on its own frames alone, not on what is computed at the same time.

    Returns
    -------
    Pair
        ``(window, level, y, x)`` averages, and their counts, of which there is one where they are all alike.
    """
    dark, gain, _ = movie.store.references
    dtype = movie.store.array.dtype
    # Of short floats that nothing corrects both ways give the same bytes.
    may_sum = dtype.kind in "iu" or (dark is None and gain is None and dtype.itemsize <= 4)
    moving = np.concatenate(([0], np.any(shifts[1:] != shifts[:-1], axis=1).cumsum()))
    is_still = np.array([may_sum and moving[span[0]] == moving[span[-1]] for span in windows.spans])
    cuts = [0, *(np.flatnonzero(is_still[1:] != is_still[:-1]) + 1).tolist(), len(is_still)]
    parts = []
    for first, last in pairwise(cuts):
        average = _average_still if is_still[first] else _average_moving
        parts.append(average(movie, windows.part(first, last), canvas, shifts))
    if len(parts) == 1:
        return parts[0]
    full = [[np.broadcast_to(image, part.even.shape) for image in part] for part in parts]
    return Pair(*(np.concatenate(images) for images in zip(*full, strict=True)))


def _average_moving(movie: CorrectedMovie, windows: _Windows, canvas: list[range], shifts: Ints) -> Pair:
    """Average frames each of which is corrected, and moved, on its own."""
    needed, extent = windows.needed, (len(canvas[0]), len(canvas[1]))
    moves = shifts[needed.start : needed.stop]
    shape = (*windows.rows, extent[0] * extent[1])
    averages, counts = (Halves(*(buffers.averages.empty(shape, np.float32) for _ in range(2))) for _ in range(2))
    for rows, *strip in lay_frames(movie, needed, canvas, moves):
        values, seen = (part.reshape(len(moves), -1) for part in strip)
        windows.average_placed(values, seen, rows.start * extent[1], averages, counts)
    return Pair(*(part.reshape(*shape[:2], *extent) for part in (*averages, *counts)))


def _average_still(movie: CorrectedMovie, windows: _Windows, canvas: list[range], shifts: Ints) -> Pair:
    """Average frames that do not move against each other."""
    needed = windows.needed
    move = shifts[needed.start].tolist()
    place = tuple(slice(part.start + by, part.stop + by) for part, by in zip(canvas, move, strict=True))
    image = tuple(slice(0, size) for size in movie.store.info.shape[1:])
    target, inside = overlap(place, image, np.zeros(2, np.int64))
    if movie.repeated[needed.start : needed.stop].any():
        return _average_moving(movie, windows, canvas, shifts)
    raw = movie.read_raw(slice(needed.start, needed.stop), *inside)
    if raw.counts.dtype.kind == "f" and not np.isfinite(raw.counts).all():
        return _average_moving(movie, windows, canvas, shifts)
    dark, gain = (None if part is None else part.reshape(-1) for part in (raw.dark, raw.gain))
    halves = windows.average_halves(raw.counts, dark, gain, raw.valid, target)
    averages = (half.reshape(*half.shape[:2], *raw.valid.shape) for half in halves)
    numbers = (n[:1] if (n == n[0]).all() else n for n in windows.count_frames())
    valid = raw.valid.astype(np.float32)
    counts = (n.astype(np.float32)[:, :, None, None] * valid for n in numbers)
    pair = Pair(*averages, *counts)
    return pair if inside == place else Pair(*(_pad(part, target, canvas) for part in pair))


def _pad(part: Floats, target: tuple[slice, ...], canvas: list[range]) -> Floats:
    """Lay ``(n, level, y, x)`` on a canvas of zeros."""
    padded = np.zeros((*part.shape[:2], len(canvas[0]), len(canvas[1])), np.float32)
    padded[:, :, *target] = part
    return padded
