"""Even and odd averages over a sliding window: what Noise2Noise learns from, computed lazily from raw counts.

A *window* of W frames belongs to every output frame t: centred on it where the movie allows, shifted inwards at
the movie's ends, so that every frame has one. Each frame of a window is in exactly one half. Drift is undone by
whole pixels, frame by frame, so that no interpolation correlates the noise; where drift leaves a pixel with
fewer frames, it is averaged over fewer, and the count says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import dask.array as da
import numba
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import delayed

from n2n_pipeline.config import Frame, Split
from n2n_pipeline.corrections import Corrected, CorrectedMovie
from n2n_pipeline.errors import InputError
from n2n_pipeline.halving import Finish, Halves, finish_sums, slide_halves, sum_members
from n2n_pipeline.store import MovieStore, open_store

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

BLOCK_BYTES = 128 << 20  # of one half in one task
FILL_SIGMA = 1.5  # px; unseen pixels take the weighted mean of the seen ones around them
FILL_REACH = 6  # px beyond which a neighbour's weight is nothing
FILL_WEIGHTS = np.exp(-0.5 * (np.arange(-FILL_REACH, FILL_REACH + 1) / FILL_SIGMA) ** 2)
FILL_WEIGHTS = np.exp(-0.5 * (np.arange(-FILL_REACH, FILL_REACH + 1) / FILL_SIGMA) ** 2)


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


def pairs(store: Path | MovieStore, window: int = 8, stride: int = 1, split: Split = "balanced") -> xr.Dataset:
    """Average the even and odd frames of sliding windows, lazily.

    Parameters
    ----------
    store : pathlib.Path or MovieStore
        A movie's store. References, defects and shifts are applied as it is read.
    window : int
        Frames per window, both halves together.
    stride : int
        Every so many frames have an output.
    split : str
        How a window is halved, see `split_window`.

    Returns
    -------
    xarray.Dataset
        ``even`` and ``odd``, ``(t, y, x)`` float32 Dask arrays in the movie's units, in the stable frame of
        reference; ``even_count`` and ``odd_count``, the frames behind each pixel (0 where it was filled in).
        Coordinates: ``t`` the output frame, ``y`` and ``x`` in Å where the pixel size is known, else in pixels;
        ``even_frames`` and ``odd_frames`` the frames in each half. Attributes carry window, split and units.

    Raises
    ------
    InputError
        If the movie has fewer frames than the window needs.
    """
    opened = store if isinstance(store, MovieStore) else open_store(store)
    n_frames = opened.info.shape[0]
    if n_frames < 2:
        raise InputError(opened.path, f"{n_frames} frame; pairs need at least 2")
    if not 2 <= window <= n_frames:
        raise InputError(opened.path, f"{n_frames} frames, window needs {window}")
    frames = range(0, n_frames, stride)
    halves = _lazy_halves(CorrectedMovie(opened), frames, window, split)
    pixel_size = opened.info.pixel_size
    step, unit = (pixel_size, "angstrom") if pixel_size else (1.0, "pixel")
    members = [_list_halves(n_frames, t, window, split) for t in frames]
    coordinates = {
        "t": ("t", np.asarray(frames), {"long_name": "output frame"}),
        "y": ("y", np.arange(opened.info.shape[1]) * step, {"units": unit}),
        "x": ("x", np.arange(opened.info.shape[2]) * step, {"units": unit}),
        "even_frames": (("t", "even_member"), np.stack([even for even, _ in members])),
        "odd_frames": (("t", "odd_member"), np.stack([odd for _, odd in members])),
    }
    attributes = {"window": window, "split": split, "pixel_size_angstrom": pixel_size or "unknown"}
    variables = {name: (("t", "y", "x"), array) for name, array in zip(Pair._fields, halves, strict=True)}
    return xr.Dataset(variables, coordinates, attributes)


def _list_halves(n_frames: int, t: int, window: int, split: Split) -> tuple[Ints, Ints]:
    members = window_frames(n_frames, t, window)
    is_even = split_window(len(members), split, (members.start,))
    return np.asarray(members)[is_even], np.asarray(members)[~is_even]


def _lazy_halves(movie: CorrectedMovie, frames: range, window: int, split: Split) -> list[da.Array]:
    """Cut the output into blocks, each one task that yields both halves."""
    chunks = movie.store.array.chunks
    span = max(BLOCK_BYTES // (4 * chunks[1] * chunks[2]), 3 * window // frames.step, 1)
    cuts = [
        [range(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in zip((len(frames), *movie.store.info.shape[1:]), (span, *chunks[1:]), strict=True)
    ]
    read = delayed(_read_block, pure=False)
    blocks = np.empty((4, *map(len, cuts)), object)
    for place in np.ndindex(*map(len, cuts)):
        part, rows, cols = (cut[i] for cut, i in zip(cuts, place, strict=True))
        region = (slice(rows.start, rows.stop), slice(cols.start, cols.stop))
        block = read(movie, frames[part.start : part.stop], region, window, split)
        shape = (len(part), len(rows), len(cols))
        for which in range(4):
            blocks[(which, *place)] = da.from_delayed(block[which], shape, np.float32)
    return [da.block(block.tolist()) for block in blocks]


def _read_block(
    movie: CorrectedMovie, frames: range, region: tuple[slice, slice], window: int, split: Split
) -> Pair:
    return read_pairs(movie, frames, region, window, split, "stable")


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
    n_frames, *sides = movie.store.info.shape
    shifts = whole_shifts(movie)
    wanted = [range(*part.indices(size)[:2]) for part, size in zip(region, sides, strict=True)]
    # Whole counts without defects or drift leave nothing to fill, and no need to decode the chunks next door.
    is_whole = movie.store.references.defects is None and movie.store.array.dtype.kind in "iu" and not shifts.any()
    grown = wanted if is_whole else [_grown(part, size) for part, size in zip(wanted, sides, strict=True)]
    windows = _Windows.plan(n_frames, frames, window)
    anchors = shifts[list(frames)] if frame_of_reference == "camera" else stable_origin(shifts)[None]
    anchors = np.broadcast_to(anchors, (len(frames), 2))
    canvas = [
        range(part.start - int(anchors[:, axis].max()), part.stop - int(anchors[:, axis].min()))
        for axis, part in enumerate(grown)
    ]
    averages = _average_canvas(movie, windows, canvas, shifts, split)
    crops = [
        tuple(
            slice(part.start - move - whole.start, part.stop - move - whole.start)
            for part, move, whole in zip(grown, anchor, canvas, strict=True)
        )
        for anchor in anchors.tolist()
    ]
    inner = (
        slice(None),
        *(slice(w.start - g.start, w.stop - g.start) for w, g in zip(wanted, grown, strict=True)),
    )
    halves = [_take_half(averages, half, windows.numbers, crops, movie) for half in (0, 1)]
    return Pair(*(value[inner] for value, _ in halves), *(count[inner] for _, count in halves))


def _take_half(
    averages: Pair, half: int, numbers: list[int], crops: list[tuple[slice, ...]], movie: CorrectedMovie
) -> tuple[Floats, Floats]:
    """Cut each output frame's average and count out of those of the consecutive windows, and fill the unseen."""
    value = _take(averages[half], numbers, crops)
    count = _take(averages[2 + half], numbers, crops)
    if averages[2 + half].all():
        return value, count
    filled = [_fill_from_neighbours(v, c, movie.typical_value) for v, c in zip(value, count, strict=True)]
    return np.stack(filled), count


def _take(stack: Floats, numbers: list[int], crops: list[tuple[slice, ...]]) -> Floats:
    """Return ``(n, y, x)``, without copying where all frames are cut alike."""
    if crops.count(crops[0]) < len(crops):
        return np.stack([stack[which % len(stack)][crop] for which, crop in zip(numbers, crops, strict=True)])
    cut = stack[:, *crops[0]]
    if len(stack) == 1:
        return np.broadcast_to(cut, (len(numbers), *cut.shape[1:]))
    is_run = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return cut[numbers[0] : numbers[0] + len(numbers)] if is_run else cut[numbers]


class _Windows(NamedTuple):
    """The windows of a block of output frames: consecutive ones, each computed once."""

    needed: range
    """Frames that any of them holds."""
    size: int
    numbers: list[int]
    """Which of the consecutive windows belongs to each output frame."""

    @classmethod
    def plan(cls, n_frames: int, frames: range, window: int) -> _Windows:
        starts = [window_frames(n_frames, t, window).start for t in frames]
        size = min(window, n_frames)
        return cls(range(starts[0], starts[-1] + size), size, [start - starts[0] for start in starts])


def _average_canvas(
    movie: CorrectedMovie, windows: _Windows, canvas: list[range], shifts: Ints, split: Split
) -> Pair:
    """Average the halves of all windows on a rectangle of frame-0 coordinates.

    Returns
    -------
    Pair
        ``(window, y, x)`` averages, and their counts, of which there is one where all windows have the same.
    """
    moves = shifts[windows.needed.start : windows.needed.stop]
    extent = (len(canvas[0]), len(canvas[1]))
    place = [
        range(part.start + move, part.stop + move) for part, move in zip(canvas, moves[0].tolist(), strict=True)
    ]
    sides = movie.store.info.shape[1:]
    is_inside = all(part.start >= 0 and part.stop <= size for part, size in zip(place, sides, strict=True))
    if is_inside and (moves == moves[0]).all():
        still = _average_still(movie, windows, place, split)
        if still is not None:
            return still
    values, seen = (part.reshape(len(moves), -1) for part in _place_frames(movie, windows.needed, canvas, moves))
    counts = _halve(seen, windows, split, np.dtype(np.float32))
    totals = _halve(values, windows, split, np.dtype(np.float64))
    averages = (total / np.maximum(count, 1) for total, count in zip(totals, counts, strict=True))
    return Pair(*(part.astype(np.float32, copy=False).reshape(-1, *extent) for part in (*averages, *counts)))


def _average_still(movie: CorrectedMovie, windows: _Windows, place: list[range], split: Split) -> Pair | None:
    """Average frames that do not move against each other: raw counts are summed, and the sums corrected."""
    raw = movie.read_raw(
        slice(windows.needed.start, windows.needed.stop), *(slice(p.start, p.stop) for p in place)
    )
    if raw is None:
        return None
    n_even = int(split_window(windows.size, split).sum())
    dark, gain = (None if part is None else part.reshape(-1) for part in (raw.dark, raw.gain))
    finish = Finish(n_even, windows.size - n_even, dark, gain)
    halves = _halve(raw.counts.reshape(len(raw.counts), -1), windows, split, np.dtype(np.float32), finish)
    counts = (np.float32(n) * raw.valid[None] for n in (finish.even_count, finish.odd_count))
    return Pair(*(half.reshape(-1, *raw.valid.shape) for half in halves), *counts)


def _halve(
    frames: Array, windows: _Windows, split: Split, dtype: np.dtype[Any], finish: Finish | None = None
) -> Halves:
    """Sum the halves of ``(t, p)`` frames' windows, by the fast rule where the split follows one."""
    if split in ("balanced", "interleaved"):
        return slide_halves(frames, windows.size, split == "balanced", dtype, finish)
    starts = range(len(frames) - windows.size + 1)
    members = np.zeros((2, len(starts), len(frames)), bool)
    for start in starts:
        is_even = split_window(windows.size, split, (windows.needed.start + start,))
        members[:, start, start : start + windows.size] = is_even, ~is_even
    return finish_sums(Halves(*(sum_members(frames, half) for half in members)), dtype, finish)


def _place_frames(movie: CorrectedMovie, needed: range, canvas: list[range], moves: Ints) -> tuple[Array, Array]:
    """Lay corrected frames on a rectangle of frame-0 coordinates; 0, and not seen, where they do not reach."""
    low, high = moves.min(axis=0).tolist(), moves.max(axis=0).tolist()
    read = tuple(
        slice(min(max(part.start + first, 0), size), max(min(part.stop + last, size), 0))
        for part, first, last, size in zip(canvas, low, high, movie.store.info.shape[1:], strict=True)
    )
    values, valid = movie.read(slice(needed.start, needed.stop), *read)
    placed = np.zeros((len(needed), len(canvas[0]), len(canvas[1])), np.float32)
    seen = np.zeros(placed.shape, np.uint8)
    whole = tuple(slice(part.start, part.stop) for part in canvas)
    for index, move in enumerate(moves):
        target, source = _overlap(whole, read, move)
        placed[index][target] = values[index][source]
        seen[index][target] = valid[index % len(valid)][source]
    return placed, seen


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
    average = (total / np.maximum(count, 1)).astype(np.float32)
    return _fill_from_neighbours(average, count.astype(np.float32), typical)


def _fill_from_neighbours(average: Floats, count: Floats, typical: float) -> Floats:
    ys, xs = np.nonzero(count == 0)
    if not len(ys):
        return average
    filled = average.copy()
    filled[ys, xs] = _weigh_neighbours(average, count, ys, xs, typical)
    return filled


@numba.njit(nogil=True, cache=True)
def _weigh_neighbours(average: Floats, count: Floats, ys: Ints, xs: Ints, typical: float) -> Array:
    """Return, for each unseen pixel, the mean of the seen ones around it, near ones weighing more."""
    height, width = average.shape
    found = np.full(len(ys), typical)
    for i in range(len(ys)):
        total, weight = 0.0, 0.0
        for v in range(max(ys[i] - FILL_REACH, 0), min(ys[i] + FILL_REACH + 1, height)):
            for u in range(max(xs[i] - FILL_REACH, 0), min(xs[i] + FILL_REACH + 1, width)):
                if count[v, u] > 0:
                    share = FILL_WEIGHTS[v - ys[i] + FILL_REACH] * FILL_WEIGHTS[u - xs[i] + FILL_REACH]
                    total += share * average[v, u]
                    weight += share
        if weight > 0:
            found[i] = total / weight
    return found


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


def _grown(part: range, size: int) -> range:
    """Grow a range by what filling needs, so that a tile's filled pixels do not depend on the tile."""
    return range(max(part.start - FILL_REACH, 0), min(part.stop + FILL_REACH, size))
