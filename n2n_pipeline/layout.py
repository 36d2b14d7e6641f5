"""How an array is cut into shards (one file, one task) and chunks (compressed as one), and rounded to compress.

Shards of a few whole frames are the fastest to write and the smallest in memory: one span of frames is one shard
is one task. Two writers in one shard would lose data silently, so units are whole shards by construction.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from numcodecs import Blosc

from n2n_pipeline.records import Unit

Floats = npt.NDArray[np.floating[Any]]
Codec = Literal["counts", "float"]
Shuffle = Literal["noshuffle", "shuffle", "bitshuffle"]
"""How Blosc sorts a chunk before it is compressed: not, all first bytes first, or all first bits first."""

SHARD_FRAMES = 4
SMALL_SHARD_BYTES = 4 << 20  # small frames are gathered to about this, 16 at most
LARGE_SHARD_BYTES = 192 << 20  # fewer frames, or parts of one, above this
CHUNK_PX = 512
BLOCK_BYTES = 1 << 20
"""What Blosc hands to zstd at once: twice as fast, both ways, as its own choice of 32 KiB, and smaller."""
CLEARLY_SMALLER = 0.92
"""Bytes in order must compress to this much of what bits in order do, as they take two to three times as long."""


class Layout(NamedTuple):
    """How an array is cut and compressed."""

    shape: tuple[int, int, int]
    """``(t, y, x)``."""
    dtype: np.dtype[Any]
    shards: tuple[int, int, int]
    """What one file holds, a multiple of ``chunks``; it may reach past the array's end."""
    chunks: tuple[int, int, int]
    """What is compressed as one."""
    codec: Codec
    shuffle: Shuffle = "shuffle"

    @property
    def fill_value(self) -> float:
        """Value of what was never written; not a number where the type has that."""
        return math.nan if self.codec == "float" else 0


def default_layout(shape: tuple[int, int, int], dtype: npt.DTypeLike) -> Layout:
    """Choose shards and chunks: few whole frames to a shard, split in y and x where a frame is very large.

    Examples
    --------
    >>> default_layout((128, 4096, 4096), "int16").shards
    (4, 4096, 4096)
    >>> default_layout((1, 40000, 30000), "uint16").shards
    (1, 10240, 7680)
    """
    kind = np.dtype(dtype)
    n_frames, height, width = shape
    chunk_y, chunk_x = _chunk_px(height), _chunk_px(width)
    shard_y, shard_x = _round_up(height, chunk_y), _round_up(width, chunk_x)
    while shard_y * shard_x * kind.itemsize > LARGE_SHARD_BYTES:
        if shard_y >= shard_x:
            shard_y = _round_up(shard_y // 2, chunk_y)
        else:
            shard_x = _round_up(shard_x // 2, chunk_x)
    frame_bytes = shard_y * shard_x * kind.itemsize
    wanted = min(max(SMALL_SHARD_BYTES // frame_bytes, SHARD_FRAMES), 16)
    frames = max(1, min(wanted, LARGE_SHARD_BYTES // frame_bytes, n_frames))
    if frames > SHARD_FRAMES:  # whole chunks; the last may reach past the movie's end
        frames = _round_up(frames, SHARD_FRAMES) if frames == n_frames else frames // SHARD_FRAMES * SHARD_FRAMES
    frames = 2 if frames == 3 < n_frames else frames
    return Layout(
        shape,
        kind,
        (frames, shard_y, shard_x),
        (min(frames, SHARD_FRAMES), chunk_y, chunk_x),
        "float" if kind.kind == "f" else "counts",
        "bitshuffle" if kind.itemsize == 1 else "shuffle",
    )


def fit_shuffle(layout: Layout, sample: npt.NDArray[Any]) -> Layout:
    """Choose how bytes are sorted by how well some ``(t, y, x)`` frames of counts compress.

    Counts of few electrons compress best, and much faster, bit by bit; counts of many, byte by byte.
    """
    if layout.codec == "float":
        return layout
    in_order: Shuffle = "noshuffle" if layout.dtype.itemsize == 1 else "shuffle"
    by_bytes, by_bits = (layout._replace(shuffle=shuffle) for shuffle in (in_order, "bitshuffle"))
    smaller = estimate_bytes(by_bytes, sample) < CLEARLY_SMALLER * estimate_bytes(by_bits, sample)
    return by_bytes if smaller else by_bits


def _chunk_px(size: int) -> int:
    """Cut an extent evenly into chunks of at most 512 px."""
    return size if size <= CHUNK_PX else _round_up(math.ceil(size / math.ceil(size / CHUNK_PX)), 16)


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def plan_units(layout: Layout) -> list[tuple[Unit, range]]:
    """Cut an array into units of whole shards: all shards of one span of frames.

    Returns
    -------
    list of (Unit, range)
        The unit, and the frames it holds.
    """
    n_frames, height, width = layout.shape
    step, shard_y, shard_x = layout.shards
    tiles = list(itertools.product(range(-(-height // shard_y)), range(-(-width // shard_x))))
    return [
        (
            Unit(f"frames-{start:07d}", tuple(f"0/c/{start // step}/{y}/{x}" for y, x in tiles)),
            range(start, min(start + step, n_frames)),
        )
        for start in range(0, n_frames, step)
    ]


def compressor(shuffle: Shuffle) -> Blosc:
    """Return what compresses a chunk."""
    code = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}[shuffle]
    return Blosc(cname="zstd", clevel=1, shuffle=code, blocksize=BLOCK_BYTES)


def estimate_bytes(layout: Layout, sample: npt.NDArray[Any]) -> int:
    """Estimate an array's size on disk from how well some of its frames compress."""
    middle = tuple(
        slice(side // 2 - min(side, CHUNK_PX) // 2, side // 2 + CHUNK_PX // 2) for side in sample.shape[1:]
    )
    block = np.ascontiguousarray(sample[:, *middle])
    ratio = len(compressor(layout.shuffle).encode(block)) / block.nbytes
    return math.ceil(ratio * math.prod(layout.shape) * layout.dtype.itemsize)


def round_mantissa(values: Floats, bits: int = 10) -> Floats:
    """Round floats to so many bits of mantissa, so that they compress; NaN and infinities stay.

    Ten bits keep a value to 0.05 %, far below the noise of any pixel.

    Examples
    --------
    >>> float(round_mantissa(np.array([1.00001], np.float32))[0])
    1.0
    """
    if values.dtype != np.float32:
        return values
    drop = 23 - bits
    half = np.uint32((1 << (drop - 1)) - 1)
    whole = np.ascontiguousarray(values).view(np.uint32)
    odd = (whole >> np.uint32(drop)) & np.uint32(1)  # ties go to even
    rounded = (whole + half + odd) & np.uint32(~((1 << drop) - 1) & 0xFFFFFFFF)
    return np.where(np.isfinite(values), rounded.view(np.float32), values)


def halve(layout: Layout, times: int) -> Layout:
    """Return the layout of an array halved along y and x, so many times; its shards get no larger."""
    n_frames, height, width = layout.shape
    factor = 2**times
    shape = (n_frames, -(-height // factor), -(-width // factor))
    if times == 0:
        return layout
    halved = default_layout(shape, layout.dtype)
    frames, rows, columns = (
        min(shard, max(largest // chunk, 1) * chunk)
        for shard, largest, chunk in zip(halved.shards, layout.shards, halved.chunks, strict=True)
    )
    return halved._replace(shards=(frames, rows, columns), shuffle=layout.shuffle)
