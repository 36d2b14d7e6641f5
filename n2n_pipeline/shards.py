"""Shards written whole: compressed chunk by chunk, put on disk under another name, renamed.

Zarr's own writer stores the same values, but copies a shard several times and on one event loop; here every thread
writes its own. Reading is Zarr's business alone.

References
----------
Zarr v3, codec ``sharding_indexed``: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from n2n_pipeline.files import put_file
from n2n_pipeline.layout import Layout, Shuffle, compressor

_ABSENT = np.iinfo(np.uint64).max
"""Offset and size, in a shard's index, of a chunk that lies outside the array."""


def write_shard(folder: Path, layout: Layout, index: tuple[int, int, int], block: npt.NDArray[Any]) -> None:
    """Compress one shard and put it on disk.

    Parameters
    ----------
    folder : pathlib.Path
        Of the array.
    layout : Layout
        Of the array, as it was created.
    index : tuple of int
        Which shard, counted along t, y and x.
    block : numpy.ndarray
        ``(t, y, x)`` values of the shard that lie inside the array, of its type.

    Raises
    ------
    ValueError
        If the block is not what the shard holds: another task owns the rest.
    """
    _check_whole(layout, index, block)
    _put(folder.joinpath("c", *map(str, index)), _encode(layout, block))


def write_frames(folder: Path, layout: Layout, span: range, frames: npt.NDArray[Any]) -> None:
    """Write one unit of `layout.plan_units`: all shards of a span of frames, ``(t, y, x)``."""
    step, shard_y, shard_x = layout.shards
    for y, x in itertools.product(range(0, frames.shape[1], shard_y), range(0, frames.shape[2], shard_x)):
        index = span.start // step, y // shard_y, x // shard_x
        write_shard(folder, layout, index, frames[:, y : y + shard_y, x : x + shard_x])


def write_image(folder: Path, image: npt.NDArray[Any], shuffle: Shuffle) -> None:
    """Compress an image ``(y, x)`` as one chunk and put it on disk; see `nodes.image_node`."""
    encoded = compressor(shuffle).encode(np.ascontiguousarray(image))
    _put(folder / "c" / "0" / "0", [encoded, _checksum(encoded)])


def _put(path: Path, parts: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    put_file(path, parts)


def _check_whole(layout: Layout, index: tuple[int, int, int], block: npt.NDArray[Any]) -> None:
    """Refuse a part of a shard: whoever writes the rest would undo it."""
    starts = [i * size for i, size in zip(index, layout.shards, strict=True)]
    inside = tuple(
        min(size, whole - start) for size, whole, start in zip(layout.shards, layout.shape, starts, strict=True)
    )
    if block.shape != inside or block.dtype != layout.dtype:
        raise ValueError(f"shard {index} holds {inside} {layout.dtype}, not {block.shape} {block.dtype}")


def _encode(layout: Layout, block: npt.NDArray[Any]) -> Iterator[bytes]:
    """Yield a shard's bytes: compressed chunks, each with its checksum, then the index with its own."""
    codec = compressor(layout.shuffle)
    counts = [shard // chunk for shard, chunk in zip(layout.shards, layout.chunks, strict=True)]
    table = np.full((math.prod(counts), 2), _ABSENT, "<u8")
    buffer = np.empty(layout.chunks, layout.dtype)
    offset = 0
    for number, place in enumerate(itertools.product(*map(range, counts))):
        cut = tuple(slice(i * size, (i + 1) * size) for i, size in zip(place, layout.chunks, strict=True))
        values = block[cut]
        if not values.size:
            continue
        if values.shape != buffer.shape:
            buffer.fill(layout.fill_value)
        buffer[tuple(map(slice, values.shape))] = values
        encoded = codec.encode(buffer)
        yield encoded
        yield _checksum(encoded)
        table[number] = offset, len(encoded) + 4
        offset += len(encoded) + 4
    yield table.tobytes()
    yield _checksum(table.tobytes())


def _checksum(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")
