"""Any movie as a labelled array: xarray over Dask, nothing read before it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from n2n_pipeline.ome import describe
from n2n_pipeline.sources import open_movie as open_source
from n2n_pipeline.sources.movie import MovieInfo, MovieSource
from n2n_pipeline.store import MovieStore, open_store

Reader = Callable[[slice, slice, slice], npt.NDArray[Any]]
"""Reads frames, rows and columns."""

BLOCK_BYTES = 64 << 20


def open_movie(path: str | Path) -> xr.DataArray:
    """Open a camera's movie, or a store, lazily.

    Parameters
    ----------
    path : str or pathlib.Path
        Anything that the command ``ingest`` takes, or a store that a stage wrote.

    Returns
    -------
    xarray.DataArray
        ``(t, y, x)``: raw counts, or, of a denoised store, values in the movie's units. ``attrs`` hold what is
        known of the movie, with units in their names (``pixel_size_angstrom``, …).

    Raises
    ------
    InputError
        If there is no such movie.
    """
    path = Path(path)
    if any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray")):
        store = open_store(path)
        return _label(_blocks_of_store(store), store.info, path)
    source = open_source(path)
    return _label(_blocks_of_source(source), source.info, path)


def _label(values: da.Array, info: MovieInfo, path: Path) -> xr.DataArray:
    return xr.DataArray(values, dims=("t", "y", "x"), name=path.stem, attrs=describe(info))


def _blocks_of_store(store: MovieStore) -> da.Array:
    return _lazy(store.info, store.read, store.array.shards or store.array.chunks)


def _blocks_of_source(source: MovieSource) -> da.Array:
    n_frames, height, width = source.info.shape
    at_once = max(1, min(n_frames, BLOCK_BYTES // (height * width * source.info.dtype.itemsize)))

    def read(frames: slice, rows: slice, cols: slice) -> npt.NDArray[Any]:
        return source.read_frames(frames.start, frames.stop)[:, rows, cols]

    return _lazy(source.info, read, (at_once, height, width))


def _lazy(info: MovieInfo, read: Reader, chunks: tuple[int, ...]) -> da.Array:
    lazy: da.Array = da.from_array(_Frames(info, read), chunks=chunks, fancy=False)
    return lazy


class _Frames:
    """What Dask sees of a movie: an array that reads when it is sliced."""

    ndim = 3

    def __init__(self, info: MovieInfo, read: Reader) -> None:
        self.shape, self.dtype, self._read = info.shape, info.dtype, read

    def __getitem__(self, region: tuple[slice, slice, slice]) -> npt.NDArray[Any]:
        return np.asarray(self._read(*region))
