"""Even and odd averages over a sliding window: what Noise2Noise learns from, as one lazy Dataset.

A *window* of W frames belongs to every output frame t: centred on it where the movie allows, shifted inwards at
the movie's ends, so that every frame has one.
"""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import delayed

from n2n_pipeline.averages import Pair, read_pairs
from n2n_pipeline.config import Split
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.errors import InputError
from n2n_pipeline.halving import split_window, window_frames
from n2n_pipeline.store import MovieStore, open_store

Ints = npt.NDArray[np.int64]

BLOCK_BYTES = 128 << 20  # of one half in one task


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
