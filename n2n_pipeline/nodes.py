"""What Zarr's metadata files say: one ``zarr.json`` for every group and array, version 3 of the format.

A store is created by writing these and the shards; Zarr itself, which takes as long to load as a small movie takes
to store, is needed to read only.

References
----------
Zarr core specification 3.0: https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from n2n_pipeline.files import put_file
from n2n_pipeline.layout import BLOCK_BYTES, Layout, Shuffle

_CHECKSUM = {"name": "crc32c"}


def write_node(folder: Path, node: Mapping[str, Any]) -> None:
    """Make a folder a group or an array; what is in it stays."""
    folder.mkdir(parents=True, exist_ok=True)
    put_file(folder / "zarr.json", [json.dumps(node, indent=2, allow_nan=False).encode()])


def group_node(attributes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe a group."""
    return {"attributes": dict(attributes or {}), "zarr_format": 3, "node_type": "group"}


def movie_node(layout: Layout) -> dict[str, Any]:
    """Describe a sharded array ``(t, y, x)``, as `shards.write_shard` writes it."""
    sharding = {
        "chunk_shape": list(layout.chunks),
        "codecs": _codecs(layout.dtype, layout.shuffle),
        "index_codecs": [_bytes(np.dtype(np.uint64)), _CHECKSUM],
        "index_location": "end",
    }
    codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    return _array_node(layout.shape, layout.dtype, layout.shards, codecs) | {"dimension_names": ["t", "y", "x"]}


def image_node(shape: tuple[int, int], dtype: np.dtype[Any], shuffle: Shuffle) -> dict[str, Any]:
    """Describe an image ``(y, x)`` that is one chunk, as `shards.write_image` writes it."""
    return _array_node(shape, dtype, shape, _codecs(dtype, shuffle)) | {"dimension_names": ["y", "x"]}


def _array_node(
    shape: Sequence[int], dtype: np.dtype[Any], chunks: Sequence[int], codecs: list[dict[str, Any]]
) -> dict[str, Any]:
    nothing: Any = 0
    if dtype.kind == "f":
        nothing = "NaN" if len(shape) == 3 else 0.0
    return {
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": nothing,
        "codecs": codecs,
        "attributes": {},
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _codecs(dtype: np.dtype[Any], shuffle: Shuffle) -> list[dict[str, Any]]:
    """Name, in Zarr's terms, what `layout.compressor` and a checksum do."""
    blosc = {
        "typesize": dtype.itemsize,
        "cname": "zstd",
        "clevel": 1,
        "shuffle": shuffle,
        "blocksize": BLOCK_BYTES,
    }
    return [_bytes(dtype), {"name": "blosc", "configuration": blosc}, _CHECKSUM]


def _bytes(dtype: np.dtype[Any]) -> dict[str, Any]:
    """Name the order of bytes; one alone has none."""
    return {"name": "bytes"} | ({"configuration": {"endian": "little"}} if dtype.itemsize > 1 else {})
