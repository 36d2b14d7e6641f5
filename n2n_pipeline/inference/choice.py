"""What is left to the machine: how large tiles are, how far they see, in what precision and orientations."""

from __future__ import annotations

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import torch

from n2n_pipeline.checkpoint import Denoiser
from n2n_pipeline.config import DenoiseConfig, NetworkConfig, Passes, TileConfig
from n2n_pipeline.geometry import Tiling, plan_tiles
from n2n_pipeline.inference.border import choose_border
from n2n_pipeline.inference.changes import measure_changes
from n2n_pipeline.inference.halo import MeasuredHalo, Sample, measure_halo, sample_tiles
from n2n_pipeline.inference.inputs import Inputs
from n2n_pipeline.inference.noise import is_precise
from n2n_pipeline.inference.plan import Choice, memory_budget
from n2n_pipeline.layout import SHARD_FRAMES
from n2n_pipeline.model import exact_halo, stride

LARGEST_CORE_PX = 4096  # beyond it the halo costs next to nothing
BAND_BYTES = 12_000  # per column of a tile and channel of the network, which works in bands of rows on a CPU
TILE_BYTES = 40  # per pixel of a tile and channel, where it does not
READING_BYTES = 64  # per pixel of a tile and level, for two tiles that wait, beside the window's frames
SIDES_BYTES = 16  # per pixel of a tile and level, for the frames before the moment and those after it
MOST_FRAMES = (8, 16)  # read together for a CPU, where more share little more, and for a GPU: all of a block
MOST_BYTES = 3 << 28  # of what is read together: memory that was never used before takes as long as it saves
SAMPLES = 3
AFFORDABLE_PX = (6e7, 2e10)  # what the paper's network does in about two minutes on a CPU, on a GPU

_log = logging.getLogger(__name__)


def choose(denoiser: Denoiser, inputs: Inputs, config: DenoiseConfig, n_pixels: int) -> Choice:
    """Choose tile, halo, border, precision and passes for a network, from samples of what it will denoise.

    Parameters
    ----------
    denoiser : Denoiser
        The network.
    inputs : Inputs
        A movie, or one of several images, of which to take samples.
    config : DenoiseConfig
        What is not left open in it stays.
    n_pixels : int
        Pixels that are to come out, of all frames together.
    """
    tile, budget = config.tile, memory_budget(config.memory_gb)
    core = tile.core_px if isinstance(tile.core_px, int) else _largest_core(denoiser, inputs, budget)
    with ThreadPoolExecutor(1, "changes") as beside:  # reads while the network computes
        changes = beside.submit(measure_changes, inputs)
        measured = _choose_halo(denoiser, inputs, tile, core)
        rows, columns = (min(core + 2 * measured.halo, side) for side in inputs.shape)
        return Choice(
            core_px=core,
            halo_px=measured.halo,
            halo_error=measured.error,
            border_px=choose_border(denoiser, inputs),
            frames=_frames_at_once(denoiser, inputs, rows * columns, budget),
            passes=_affordable_passes(denoiser, n_pixels) if config.augment == "auto" else config.augment,
            device=denoiser.device.type,
            precision=_choose_precision(denoiser, inputs),
            noise=changes.result(),
            threads=torch.get_num_threads(),
            side_by_side=inputs.has_pairs and _has_room_for_two(denoiser, columns, budget),
        )


def as_chosen(denoiser: Denoiser, choice: Choice) -> Denoiser:
    """Return a denoiser of the precision that was chosen, and compute with as many threads: both show in bytes."""
    if denoiser.device.type == "cpu" and torch.get_num_threads() != choice.threads:
        _log.warning("going on with %d threads, as this output was begun", choice.threads)
        torch.set_num_threads(choice.threads)
    return replace(denoiser, dtype=torch.bfloat16 if choice.precision == "bfloat16" else None)


def _largest_core(denoiser: Denoiser, inputs: Inputs, budget: int) -> int:
    """Return the largest core whose tile can be read in a quarter of the memory and denoised in another."""
    network = denoiser.card.network
    sides = [
        math.isqrt(budget // 4 // sum(_reading_bytes(inputs))),
        budget // 4 // _column_bytes(network),
        LARGEST_CORE_PX + 2 * exact_halo(network),
    ]
    if denoiser.device.type == "cuda":
        sides[1] = math.isqrt(torch.cuda.mem_get_info()[0] // 4 // (TILE_BYTES * network.width * SHARD_FRAMES))
    core = min(sides) - 2 * exact_halo(network)
    return max(core // stride(network), 1) * stride(network)


def _has_room_for_two(denoiser: Denoiser, columns: int, budget: int) -> bool:
    """Tell whether two networks can compute at once, on cores of their own and in a quarter of the memory."""
    has_cores = denoiser.device.type == "cpu" and torch.get_num_threads() > 1
    return has_cores and 2 * columns * _column_bytes(denoiser.card.network) <= budget // 4


def _column_bytes(network: NetworkConfig) -> int:
    """Return what a network in bands of rows takes for each column of a tile."""
    return BAND_BYTES * network.width // network.fold


def _frames_at_once(denoiser: Denoiser, inputs: Inputs, tile_px: int, budget: int) -> int:
    """Return how many frames of a tile are read together: all of a block on a GPU, else what fits in memory."""
    if denoiser.device.type == "cuda":
        return MOST_FRAMES[1]
    window, frame, sides = _reading_bytes(inputs)
    fitting = (budget // 4 - window * tile_px) // ((frame + sides) * tile_px)
    return min(max(min(fitting, MOST_BYTES // (frame * tile_px)), 1), MOST_FRAMES[0])


def _reading_bytes(inputs: Inputs) -> tuple[int, int, int]:
    """Return the bytes per pixel of a tile that a window's frames take, and for each frame levels, and sides."""
    longest, levels = (inputs.ladder[-1], len(inputs.ladder)) if inputs.ladder else (inputs.window, 1)
    sides = SIDES_BYTES * levels if inputs.ladder else 0
    return 4 * min(longest, inputs.movie.store.info.shape[0]), READING_BYTES * levels, sides


def _affordable_passes(denoiser: Denoiser, n_pixels: int) -> Passes:
    """Return the most passes that take no more than about two minutes, so that large movies take one per half."""
    network = denoiser.card.network
    forward = 2 * n_pixels * (network.width / network.fold / 48) ** 2
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
    return measure_halo(denoiser, _read_samples(denoiser, inputs, SAMPLES), tile.halo_error)


def _choose_precision(denoiser: Denoiser, inputs: Inputs) -> Literal["float32", "bfloat16"]:
    if denoiser.dtype is None:
        return "float32"
    (middle,) = _read_samples(denoiser, inputs, 1)
    return "bfloat16" if is_precise(denoiser, middle.halves) else "float32"


def _read_samples(denoiser: Denoiser, inputs: Inputs, count: int) -> list[Sample]:
    """Read places along the diagonal of frames spread over the movie, with all that the network could see."""
    network = denoiser.card.network
    tiles = sample_tiles(inputs.shape, stride(network), exact_halo(network), count)
    n_frames = inputs.movie.store.info.shape[0]
    frames = ((2 * i + 1) * n_frames // (2 * count) for i in range(count))
    return [Sample(tile, inputs.read(range(t, t + 1), tile)) for t, tile in zip(frames, tiles, strict=True)]
