"""Even and odd averages over a sliding window: what Noise2Noise learns from, as one lazy Dataset.

A *window* of W frames belongs to every output frame t: centred on it where the movie allows, shifted inwards at
the movie's ends, so that every frame has one. A *ladder* is several windows about one frame, see `ladder`.
"""

from __future__ import annotations

import math
import operator
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from dask._task_spec import Task
from dask.highlevelgraph import HighLevelGraph

from n2n_pipeline.averages import Pair, fill_reach, read_ladder, read_pairs
from n2n_pipeline.config import Split
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.errors import InputError
from n2n_pipeline.halving import split_window, window_frames
from n2n_pipeline.ladder import check_ladder, level_frames, split_around
from n2n_pipeline.shifted import stable_origin, whole_shifts
from n2n_pipeline.store import MovieStore, open_store

Ints = npt.NDArray[np.int64]

Counts = npt.NDArray[Any]
Region = tuple[slice, slice]
Box = tuple[slice, slice, slice]

BLOCK_FRAMES = 64
BLOCK_WINDOWS = 2  # a block is at least so many windows long: its first window costs as much as all the others
BLOCK_BYTES = 32 << 20  # of one half: memory of this size is used again, that of larger blocks is mapped anew


def pairs(
    store: Path | MovieStore,
    window: int | Sequence[int] = 8,
    stride: int = 1,
    split: Split = "balanced",
    target: int | None = None,
) -> xr.Dataset:
    """Average the even and odd frames of sliding windows, lazily.

    Parameters
    ----------
    store : pathlib.Path or MovieStore
        A movie's store. References, defects and shifts are applied as it is read.
    window : int or sequence of int
        Frames per window, both halves together. Several, ascending and odd, are a ladder about each frame.
    stride : int
        Every so many frames have an output.
    split : str
        How a window is halved, see `split_window`. A ladder's frames are dealt by their distance, see
        `split_around`.
    target : int, optional
        Of a ladder: one of its windows, whose halves are what the other half's ladder is to predict; by default
        the shortest.

    Returns
    -------
    xarray.Dataset
        ``even`` and ``odd``, ``(t, y, x)`` float32 Dask arrays in the movie's units, in the stable frame of
        reference; ``even_count`` and ``odd_count``, the frames behind each pixel (0 where it was filled in).
        A computed block may be read-only, where it shares its memory: copy it to write to it.
        Of a ladder they are ``(t, window, y, x)``, and ``even_target`` and ``odd_target`` are ``(t, y, x)``.
        Coordinates: ``t`` the output frame, ``y`` and ``x`` in Å where the pixel size is known, else in pixels;
        ``even_frames`` and ``odd_frames`` the frames in each half; of a ladder ``is_even``, ``(t, frame)``, which
        of the movie's frames are in the even half. Attributes carry window, split and units.

    Raises
    ------
    InputError
        If the movie has fewer frames than the window needs.
    """
    opened = store if isinstance(store, MovieStore) else open_store(store)
    n_frames = opened.info.shape[0]
    if n_frames < 2:
        raise InputError(opened.path, f"{n_frames} frame; pairs need at least 2")
    if not isinstance(window, int):
        return _ladder_pairs(opened, tuple(window), range(0, n_frames, stride), target)
    if target is not None:
        raise ValueError(f"target is {target}, but only a ladder of windows has one")
    if not 2 <= window <= n_frames:
        raise InputError(opened.path, f"{n_frames} frames, window needs {window}", "choose another --window")
    frames = range(0, n_frames, stride)
    blocks = _Blocks(CorrectedMovie(opened), frames, window, split)
    members = [_list_halves(n_frames, t, window, split) for t in frames]
    coordinates = _axes(opened, frames) | {
        "even_frames": (("t", "even_member"), np.stack([even for even, _ in members])),
        "odd_frames": (("t", "odd_member"), np.stack([odd for _, odd in members])),
    }
    attributes = {"window": window, "split": split, "pixel_size_angstrom": opened.info.pixel_size or "unknown"}
    variables = {name: (("t", "y", "x"), array) for name, array in blocks.lazy_halves().items()}
    return xr.Dataset(variables, coordinates, attributes)


def _ladder_pairs(store: MovieStore, windows: tuple[int, ...], frames: range, target: int | None) -> xr.Dataset:
    check_ladder(windows)
    target = windows[0] if target is None else target
    if target not in windows:
        raise ValueError(f"target is {target}, not one of the windows {windows}")
    n_frames = store.info.shape[0]
    arrays = _Blocks(CorrectedMovie(store), frames, windows).lazy_halves()
    level = windows.index(target)
    variables = {name: (("t", "window", "y", "x"), array) for name, array in arrays.items()}
    targets = {f"{half}_target": (("t", "y", "x"), arrays[half][:, level]) for half in ("even", "odd")}
    coordinates = _axes(store, frames) | {
        "window": ("window", list(windows), {"long_name": "frames averaged, both halves together"}),
        "is_even": (("t", "frame"), np.stack([split_around(n_frames, t) for t in frames])),
    }
    attributes = {"target": target, "pixel_size_angstrom": store.info.pixel_size or "unknown"}
    return xr.Dataset(variables | targets, coordinates, attributes)


def _axes(store: MovieStore, frames: range) -> dict[str, Any]:
    pixel_size = store.info.pixel_size
    step, unit = (pixel_size, "angstrom") if pixel_size else (1.0, "pixel")
    return {
        "t": ("t", np.asarray(frames), {"long_name": "output frame"}),
        "y": ("y", np.arange(store.info.shape[1]) * step, {"units": unit}),
        "x": ("x", np.arange(store.info.shape[2]) * step, {"units": unit}),
    }


def _list_halves(n_frames: int, t: int, window: int, split: Split) -> tuple[Ints, Ints]:
    members = window_frames(n_frames, t, window)
    is_even = split_window(len(members), split, (members.start,))
    return np.asarray(members)[is_even], np.asarray(members)[~is_even]


class _Choice(Task):
    """Takes one half of a pair; Dask would fuse it with what follows, and run both in several times the time."""

    block_fusion = True


@dataclass(frozen=True)
class _Blocks:
    """The output, to be cut into blocks: one task reads the counts behind several, one for each averages them."""

    movie: CorrectedMovie
    frames: range
    windows: int | tuple[int, ...]
    split: Split = "balanced"

    @property
    def levels(self) -> tuple[int, ...]:
        """How many windows a ladder has, if it is one."""
        return () if isinstance(self.windows, int) else (len(self.windows),)

    def lazy_halves(self) -> dict[str, da.Array]:
        """Return the parts of a `Pair`, by their names."""
        _, *chunk = self.movie.store.array.chunks
        longest = self.windows if isinstance(self.windows, int) else self.windows[-1]
        span = min(max(BLOCK_FRAMES, BLOCK_WINDOWS * longest // self.frames.step), len(self.frames))
        band = _halved_to_fit(chunk[0], BLOCK_BYTES // (4 * math.prod(self.levels) * span * chunk[1]))
        shape = (len(self.frames), *self.movie.store.info.shape[1:])
        cuts = [_cut(size, step) for size, step in zip(shape, (span, band, chunk[1]), strict=True)]
        times, rows, cols = cuts
        own, together = uuid.uuid4().hex, chunk[0] // band
        counts, pair, *halves = (f"{name}-{own}" for name in ("counts", "pair", *Pair._fields))
        tasks: dict[str, dict[Any, Task]] = {name: {} for name in (pair, *halves)}
        for t, y, x in product(range(len(times)), range(0, len(rows), together), range(len(cols))):
            part, bands = replace(self, frames=self.frames[times[t]]), rows[y : y + together]
            box = part.plan_box((slice(bands[0].start, bands[-1].stop), cols[x]))
            read = Task((counts, t, y, x), _read_counts, self.movie.store, box)
            tasks[pair][read.key] = read
            for number, region in enumerate(bands, start=y):
                average = Task((pair, t, number, x), _average_block, part, read.ref(), box, (region, cols[x]))
                tasks[pair][average.key] = average
                for which, half in enumerate(halves):
                    key = (half, t, *(0 for _ in self.levels), number, x)
                    tasks[half][key] = _Choice(key, operator.getitem, average.ref(), which)
        chunks = [tuple(part.stop - part.start for part in cut) for cut in cuts]
        chunks[1:1] = [(n,) for n in self.levels]
        graph = HighLevelGraph(tasks, {name: {pair} - {name} for name in tasks})
        return {
            name: da.Array(graph, half, tuple(chunks), np.float32)
            for name, half in zip(Pair._fields, halves, strict=True)
        }

    def plan_box(self, region: Region) -> Box:
        """Return the counts behind the frames: their windows', and all that drift brings into the region."""
        n_frames, *sides = self.movie.store.info.shape
        ends = (self.frames[0], self.frames[-1])
        if isinstance(self.windows, int):
            first, last = (window_frames(n_frames, t, self.windows) for t in ends)
        else:
            first, last = (level_frames(n_frames, t, self.windows[-1]) for t in ends)
        shifts, reach = whole_shifts(self.movie), fill_reach(self.movie)
        moves = shifts[first.start : last.stop] - stable_origin(shifts)
        rows, cols = (
            slice(max(part.start + int(low) - reach, 0), max(min(part.stop + int(high) + reach, size), 0))
            for part, low, high, size in zip(region, moves.min(axis=0), moves.max(axis=0), sides, strict=True)
        )
        return slice(first.start, last.stop), rows, cols


def _cut(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _halved_to_fit(size: int, most: int) -> int:
    """Halve a chunk until it is small enough, so that its parts are alike.

    Examples
    --------
    >>> _halved_to_fit(512, 200), _halved_to_fit(96, 1), _halved_to_fit(5, 2)
    (128, 3, 5)
    """
    while size > max(most, 1) and size % 2 == 0:
        size //= 2
    return size


def _read_counts(store: MovieStore, box: Box) -> Counts:
    return store.read(*box)


def _average_block(blocks: _Blocks, counts: Counts, box: Box, region: Region) -> Pair:
    store = blocks.movie.store
    movie = CorrectedMovie(replace(store, array=cast("zarr.Array[Any]", _Box(store.array, counts, box))))
    if isinstance(blocks.windows, int):
        return read_pairs(movie, blocks.frames, region, blocks.windows, blocks.split, "stable")
    return read_ladder(movie, blocks.frames, region, blocks.windows, "stable")


class _Box:
    """A Zarr array of which a part is in memory."""

    def __init__(self, array: zarr.Array[Any], counts: Counts, box: Box) -> None:
        self._array, self._counts, self._box = array, counts, box

    def __getattr__(self, name: str) -> Any:
        return getattr(self._array, name)

    def __getitem__(self, region: Box) -> Counts:
        wanted = [range(*cut.indices(size)[:2]) for cut, size in zip(region, self._array.shape, strict=True)]
        both = list(zip(wanted, self._box, strict=True))
        if any(part.start < have.start or part.stop > have.stop for part, have in both):
            return np.asarray(self._array[region])
        return self._counts[*(slice(part.start - have.start, part.stop - have.start) for part, have in both)]
