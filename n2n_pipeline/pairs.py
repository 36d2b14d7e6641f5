"""Even and odd averages over a sliding window: what Noise2Noise learns from, as one lazy Dataset.

A *window* of W frames belongs to every output frame t: centred on it where the movie allows, shifted inwards at
the movie's ends, so that every frame has one. A *ladder* is several windows about one frame, see `ladder`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from dask.delayed import delayed

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

BLOCK_BYTES = 8 << 20  # of one half in one task: memory of this size is used again, larger blocks are mapped anew
READ_WINDOWS = 3  # windows whose counts are read at once, so that a quarter of the frames are read twice


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
        raise InputError(opened.path, f"{n_frames} frames, window needs {window}")
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


@dataclass(frozen=True)
class _Blocks:
    """The output, to be cut into blocks: one task reads the counts behind several, one for each averages them."""

    movie: CorrectedMovie
    frames: range
    windows: int | tuple[int, ...]
    split: Split = "balanced"

    def lazy_halves(self) -> dict[str, da.Array]:
        """Return the parts of a `Pair`, by their names."""
        store = self.movie.store
        chunks, levels = store.array.chunks, () if isinstance(self.windows, int) else (len(self.windows),)
        span = max(BLOCK_BYTES // (4 * math.prod(levels) * chunks[1] * chunks[2]), 1)
        cuts = [
            [range(start, min(start + step, size)) for start in range(0, size, step)]
            for size, step in zip((len(self.frames), *store.info.shape[1:]), (span, *chunks[1:]), strict=True)
        ]
        blocks = np.empty((4, *map(len, cuts)), object)
        for y, x in np.ndindex(len(cuts[1]), len(cuts[2])):
            region = (slice(cuts[1][y].start, cuts[1][y].stop), slice(cuts[2][x].start, cuts[2][x].stop))
            blocks[:, :, y, x] = self._lazy_column(region, cuts[0], levels)
        nested = (_nest(block, len(levels)) for block in blocks)
        return {name: da.block(part) for name, part in zip(Pair._fields, nested, strict=True)}

    def _lazy_column(self, region: Region, parts: list[range], levels: tuple[int, ...]) -> list[list[da.Array]]:
        """Return the blocks of one region, ``(4, part)``."""
        read, average = delayed(_read_counts, pure=False), delayed(_average_block, pure=False)
        sides = tuple(part.stop - part.start for part in region)
        longest = self.windows if isinstance(self.windows, int) else self.windows[-1]
        at_once = max(READ_WINDOWS * longest // (len(parts[0]) * self.frames.step), 1)
        column: list[list[da.Array]] = [[], [], [], []]
        for first in range(0, len(parts), at_once):
            group = parts[first : first + at_once]
            box = self._select(range(group[0].start, group[-1].stop)).plan_box(region)
            counts = read(self.movie.store, box)
            for part in group:
                pair = average(self._select(part), counts, box, region)
                for which, blocks in enumerate(column):
                    blocks.append(da.from_delayed(pair[which], (len(part), *levels, *sides), np.float32))
        return column

    def _select(self, part: range) -> _Blocks:
        return replace(self, frames=self.frames[part.start : part.stop])

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


def _nest(blocks: npt.NDArray[Any], levels: int) -> Any:
    """Nest ``(t, y, x)`` blocks into lists, with an axis of one more between t and y where they have levels."""
    return blocks.reshape(blocks.shape[0], *(1,) * levels, *blocks.shape[1:]).tolist()


def _read_counts(store: MovieStore, box: Box) -> Counts:
    return np.ascontiguousarray(store.read(*box))


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
