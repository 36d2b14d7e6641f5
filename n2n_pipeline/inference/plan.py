"""What `denoise` will do, settled before any pixel is written: blocks of output shards, and how frames are tiled.

What depends on the machine (tile, halo, device, precision, threads) is chosen once and saved with the output, so
that a run that was stopped goes on with the same choice and ends in the same bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from n2n_pipeline.checkpoint import Denoiser
from n2n_pipeline.config import DenoiseConfig, NetworkConfig, Passes, Settings, TileConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.files import read_json
from n2n_pipeline.geometry import Range, Tiling, plan_tiles, round_up
from n2n_pipeline.inference.halo import MeasuredHalo, measure_halo, sample_tiles
from n2n_pipeline.inference.inputs import Half, Inputs
from n2n_pipeline.layout import Layout
from n2n_pipeline.manifest import RECORDS
from n2n_pipeline.model import exact_halo, stride
from n2n_pipeline.records import Unit

LARGEST_CORE_PX = 4096  # beyond it the halo costs next to nothing
BAND_BYTES = 12_000  # per column of a tile and channel of the network, which works in bands of rows on a CPU
TILE_BYTES = 40  # per pixel of a tile and channel, where it does not
READING_BYTES = 64  # per pixel of a tile, for two tiles that wait, beside the window's frames
WRITING_COPIES = 4  # of a block: being filled, being rounded, being encoded, being written
SAMPLE_FRAMES = 3
AFFORDABLE_PX = (6e7, 2e10)  # what the paper's network does in about two minutes on a CPU, on a GPU


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
    passes: Passes
    device: str
    precision: str
    threads: int
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


def choose(denoiser: Denoiser, inputs: Inputs, config: DenoiseConfig, n_pixels: int) -> Choice:
    """Choose tile, halo and passes for a network and the memory there is.

    Parameters
    ----------
    denoiser : Denoiser
        The network.
    inputs : Inputs
        A movie, or one of several images, on which to measure the halo.
    config : DenoiseConfig
        What is not left open in it stays.
    n_pixels : int
        Pixels that are to come out, of all frames together.
    """
    tile, budget = config.tile, memory_budget(config.memory_gb)
    core = tile.core_px if isinstance(tile.core_px, int) else _largest_core(denoiser, inputs.window, budget)
    measured = _choose_halo(denoiser, inputs, tile, core)
    return Choice(
        core_px=core,
        halo_px=measured.halo,
        halo_error=measured.error,
        passes=_affordable_passes(denoiser, n_pixels) if config.augment == "auto" else config.augment,
        device=denoiser.device.type,
        precision=str(denoiser.dtype or torch.float32).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )


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


def begun_choice(output: Path, settled: Mapping[str, Any]) -> Choice | None:
    """Return what a run with the same movie, model and settings has chosen for an output, if there was one."""
    begun = (read_json(output / RECORDS / "plan.json") or {}).get("fingerprint", {})
    same = all(begun.get(key) == value for key, value in settled.items())
    return Choice.model_validate(begun["choice"]) if same and "choice" in begun else None


def tiling_of(choice: Choice, tile: TileConfig, network: NetworkConfig) -> Tiling:
    """Return how frames are cut; one stride of mirrored pixels gives those at the image's ends some context."""
    step = stride(network)
    return Tiling(step, choice.core_px, choice.halo_px, tile.overlap_px, border=step)


def memory_budget(memory_gb: float | None) -> int:
    """Return the bytes that may be used: as told, or half of what is free."""
    return int(memory_gb * 1e9) if memory_gb else psutil.virtual_memory().available // 2


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


def _largest_core(denoiser: Denoiser, window: int, budget: int) -> int:
    """Return the largest core whose tile can be read in a quarter of the memory and denoised in another."""
    network = denoiser.card.network
    sides = [
        math.isqrt(budget // 4 // (4 * window + READING_BYTES)),
        budget // 4 // (BAND_BYTES * network.width),
        LARGEST_CORE_PX + 2 * exact_halo(network),
    ]
    if denoiser.device.type == "cuda":
        sides[1] = math.isqrt(torch.cuda.mem_get_info()[0] // 4 // (TILE_BYTES * network.width))
    core = min(sides) - 2 * exact_halo(network)
    return max(core // stride(network), 1) * stride(network)


def _affordable_passes(denoiser: Denoiser, n_pixels: int) -> Passes:
    """Return the most passes that take no more than about two minutes, so that large movies take one per half."""
    forward = 2 * n_pixels * (denoiser.card.network.width / 48) ** 2
    affordable = AFFORDABLE_PX[denoiser.device.type == "cuda"]
    if 8 * forward <= affordable:
        return "all"
    return "flips" if 4 * forward <= affordable else "halves"


def _choose_halo(denoiser: Denoiser, inputs: Inputs, tile: TileConfig, core: int) -> MeasuredHalo:
    network = denoiser.card.network
    exact = exact_halo(network)
    if isinstance(tile.halo_px, int):
        return MeasuredHalo(tile.halo_px, None)
    one_tile = len(plan_tiles(inputs.shape, Tiling(stride(network), core, exact)).tiles) == 1
    if tile.halo_px == "exact" or one_tile:
        return MeasuredHalo(exact, 0.0)
    samples = sample_tiles(inputs.shape, stride(network), exact, SAMPLE_FRAMES)
    n_frames = inputs.movie.store.info.shape[0]

    def read(i: int, sample: Any) -> Sequence[Half]:
        t = (2 * i + 1) * n_frames // (2 * len(samples))
        return inputs.read(range(t, t + 1), sample)

    return measure_halo(denoiser, samples, read, tile.halo_error)
