"""What `denoise` will do, settled before any pixel is written: blocks of output shards, and how frames are tiled.

What depends on the machine (tile, halo, device, precision, threads) is chosen once and saved with the output, so
that a run that was stopped goes on with the same choice and ends in the same bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil

from n2n_pipeline.config import NetworkConfig, Passes, Settings, TileConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.files import read_json
from n2n_pipeline.geometry import Range, Tiling, round_up
from n2n_pipeline.layout import Layout
from n2n_pipeline.manifest import RECORDS
from n2n_pipeline.model import stride
from n2n_pipeline.records import Unit
from n2n_pipeline.sides import Noise

WRITING_COPIES = 4  # of a block: being filled, being rounded, being encoded, being written


class Block(NamedTuple):
    """What one task denoises and writes: whole shards of the output."""

    unit: Unit
    shard: tuple[int, int, int]
    """Which one, counted along t, y and x."""
    frames: range
    """Frames of the output array."""
    region: tuple[Range, Range]
    """Rows and columns of the output array."""


class Choice(Settings):
    """What was chosen for this movie, model and machine; saved with the output."""

    core_px: int
    halo_px: int
    halo_error: float | None
    """Largest difference from untiled that was found, in standard deviations of the output's noise, if it was."""
    border_px: int = 0
    """Mirrored pixels that the network is shown beyond each end of the image."""
    frames: int = 1
    """Read together, for windows of frames that follow each other share most of theirs."""
    passes: Passes
    device: str
    precision: Literal["float32", "bfloat16"]
    threads: int
    noise: Noise | None = None
    """Of a movie in which not everything moves, for a network of a ladder."""
    side_by_side: bool = False
    """Both halves of a frame go through the network at once, each with half of the threads."""
    shards: tuple[int, int, int] | None = None
    """Frames, rows and columns of the output that are denoised and written as one; images are written whole."""


def plan_blocks(layout: Layout, arrays: Sequence[str] = ("0",)) -> list[Block]:
    """Cut an output into blocks of one shard (of each of its arrays, which share the layout)."""
    frames, rows, columns = (
        [Range(start, min(start + shard, size)) for start in range(0, size, shard)]
        for size, shard in zip(layout.shape, layout.shards, strict=True)
    )
    return [
        Block(_own_shard((t, y, x), arrays), (t, y, x), range(*frames[t]), (rows[y], columns[x]))
        for t, y, x in itertools.product(range(len(frames)), range(len(rows)), range(len(columns)))
    ]


def _own_shard(shard: tuple[int, int, int], arrays: Sequence[str]) -> Unit:
    t, y, x = shard
    return Unit(f"shard-{t:06d}-{y:03d}-{x:03d}", tuple(f"{array}/c/{t}/{y}/{x}" for array in arrays))


def fit_layout(layout: Layout, budget: int) -> Layout:
    """Halve shards, first in frames, then along their longer side, until a quarter of the memory holds them."""
    shards = list(layout.shards)
    while math.prod(shards) * 4 * WRITING_COPIES > budget // 4:
        axis = 0 if shards[0] > 1 else max((1, 2), key=shards.__getitem__)
        chunk = 1 if axis == 0 else layout.chunks[axis]
        if shards[axis] <= chunk:
            break
        shards[axis] = round_up(-(-shards[axis] // 2), chunk)
    return cut_layout(layout, (shards[0], shards[1], shards[2]))


def cut_layout(layout: Layout, shards: tuple[int, int, int]) -> Layout:
    """Return a layout with other shards; chunks hold no more frames than they do."""
    frames = math.gcd(shards[0], layout.chunks[0])
    return layout._replace(shards=shards, chunks=(frames, *layout.chunks[1:]))


def begun_choice(output: Path, settled: Mapping[str, Any], device: str) -> Choice | None:
    """Return what a run with the same movie, model, settings and device has chosen, if there was one."""
    begun = (read_json(output / RECORDS / "plan.json") or {}).get("fingerprint", {})
    same = all(begun.get(key) == value for key, value in settled.items())
    choice = Choice.model_validate(begun["choice"]) if same and "choice" in begun else None
    return choice if choice and choice.device == device else None


def tiling_of(choice: Choice, tile: TileConfig, network: NetworkConfig) -> Tiling:
    """Return how frames are cut."""
    return Tiling(stride(network), choice.core_px, choice.halo_px, tile.overlap_px, choice.border_px)


def memory_budget(memory_gb: float | None, free_bytes: int | None = None) -> int:
    """Return the bytes that may be used: as told, or a quarter to half of what is free (by default here).

    A power of two, so that the same machine cuts the same movie the same way on most days.
    """
    if memory_gb:
        return int(memory_gb * 1e9)
    return 1 << ((free_bytes or psutil.virtual_memory().available) // 2).bit_length() - 1


def resolve_part(wanted: tuple[int, int] | None, size: int, what: str) -> Range:
    """Return the part of an axis that was asked for, by default all of it.

    Raises
    ------
    InputError
        If the part is empty or leaves the axis [78].
    """
    start, stop = wanted or (0, size)
    if not 0 <= start < stop <= size:
        raise InputError(f"{start}:{stop}", f"not within the movie's {size} {what}", code=ExitCode.CONFIG)
    return Range(start, stop)
