"""What a movie or a store is, in numbers and words that leave Python as JSON."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from n2n_pipeline.manifest import status
from n2n_pipeline.ome import describe
from n2n_pipeline.sources import open_movie
from n2n_pipeline.sources.formats import is_zarr
from n2n_pipeline.sources.movie import MovieInfo
from n2n_pipeline.store import MovieStore, open_store


def read_info(path: Path) -> dict[str, Any]:
    """Tell what a camera's file, a folder of images or a store holds; pixels are not read.

    Parameters
    ----------
    path : pathlib.Path
        Anything that ``ingest`` takes, or a store, complete or not.

    Returns
    -------
    dict
        JSON values: ``path``, ``kind``, ``shape`` as ``[t, y, x]``, ``dtype``, what is known of pixel size, dose,
        time and camera, ``warnings``; for a store also how it lies on disk, how far it has come (``progress``),
        which ``references`` and shifts it has, and its ``provenance``.

    Raises
    ------
    InputError
        If there is no such movie.
    """
    if is_zarr(path):
        store = open_store(path, partial=True)
        return {"path": str(path), **_describe(store.info), **_describe_store(store)}
    with closing(open_movie(path)) as source:
        return {"path": str(path), "kind": "camera file", **_describe(source.info)}


def _describe(info: MovieInfo) -> dict[str, Any]:
    return {"shape": list(info.shape), "dtype": info.dtype.name, **describe(info)}


def _describe_store(store: MovieStore) -> dict[str, Any]:
    found: dict[str, Any] = {
        "kind": store.provenance.get("kind", "other store"),
        "shards": list(store.array.shards or store.array.chunks),
        "chunks": list(store.array.chunks),
        "aligned": store.shifts is not None,
        "references": [name for name, value in store.references._asdict().items() if value is not None],
    }
    if store.references.defects is not None:
        found["defects"] = int(store.references.defects.sum())
    if store.provenance:
        state = status(store.path)
        found["progress"] = {key: state[key] for key in ("complete", "units", "done")}
        found["provenance"] = store.provenance
    return found
