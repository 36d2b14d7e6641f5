"""Even and odd averages over a sliding window: what Noise2Noise learns from, as one lazy Dataset.

A *window* of W frames belongs to every output frame t: centred on it where the movie allows, shifted inwards at
the movie's ends, so that every frame has one. A *ladder* is several windows about one frame, see `ladder`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import delayed

from n2n_pipeline.averages import Pair, read_ladder, read_pairs
from n2n_pipeline.config import Split
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.errors import InputError
from n2n_pipeline.halving import split_window, window_frames
from n2n_pipeline.ladder import check_ladder, split_around
from n2n_pipeline.store import MovieStore, open_store

Ints = npt.NDArray[np.int64]

BLOCK_BYTES = 128 << 20  # of one half in one task


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
    """The output, to be cut into blocks, each one task that yields both halves."""

    movie: CorrectedMovie
    frames: range
    windows: int | tuple[int, ...]
    split: Split = "balanced"

    def lazy_halves(self) -> dict[str, da.Array]:
        """Return the parts of a `Pair`, by their names."""
        store = self.movie.store
        chunks, levels = store.array.chunks, () if isinstance(self.windows, int) else (len(self.windows),)
        longest = self.windows if isinstance(self.windows, int) else self.windows[-1]
        frame_bytes = 4 * math.prod(levels) * chunks[1] * chunks[2]
        span = max(BLOCK_BYTES // frame_bytes, -(-3 * longest // (self.frames.step * math.prod(levels))), 1)
        cuts = [
            [range(start, min(start + step, size)) for start in range(0, size, step)]
            for size, step in zip((len(self.frames), *store.info.shape[1:]), (span, *chunks[1:]), strict=True)
        ]
        read = delayed(_read_block, pure=False)
        blocks = np.empty((4, *map(len, cuts)), object)
        for place in np.ndindex(*map(len, cuts)):
            part, rows, cols = (cut[i] for cut, i in zip(cuts, place, strict=True))
            region = (slice(rows.start, rows.stop), slice(cols.start, cols.stop))
            block = read(replace(self, frames=self.frames[part.start : part.stop]), region)
            shape = (len(part), *levels, len(rows), len(cols))
            for which in range(4):
                blocks[(which, *place)] = da.from_delayed(block[which], shape, np.float32)
        nested = (_nest(block, len(levels)) for block in blocks)
        return {name: da.block(part) for name, part in zip(Pair._fields, nested, strict=True)}


def _nest(blocks: npt.NDArray[Any], levels: int) -> Any:
    """Nest ``(t, y, x)`` blocks into lists, with an axis of one more between t and y where they have levels."""
    return blocks.reshape(blocks.shape[0], *(1,) * levels, *blocks.shape[1:]).tolist()


def _read_block(blocks: _Blocks, region: tuple[slice, slice]) -> Pair:
    if isinstance(blocks.windows, int):
        return read_pairs(blocks.movie, blocks.frames, region, blocks.windows, blocks.split, "stable")
    return read_ladder(blocks.movie, blocks.frames, region, blocks.windows, "stable")
