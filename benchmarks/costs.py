"""What a large movie costs, stage by stage: from measured rates, by a model that is checked on other sizes.

Rates are those that ``scaling.py`` measured on its longest movie of small frames; the check is what it measured
on larger frames. Stages that read every frame go by pixels, and denoising by those that tiles and their halos
hold. The sweep goes by pixels of the regions that it looks at: so much for each window that it scores, and so much
for each frame that a window holds. Training goes by updates, whatever the movie.

    python benchmarks/scaling.py --parts costs      # prints it
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from n2n_pipeline.config import SweepConfig
from n2n_pipeline.files import read_json
from n2n_pipeline.layout import default_layout
from n2n_pipeline.risks import REGION_PX
from n2n_pipeline.sweep import default_windows
from n2n_pipeline.training.plan import STEPS

RESULTS = Path(__file__).parent / "results"
LARGE = (5000, 4096, 4096)
SWEPT = (2, 4, 8, 16, 32)
SAMPLED_FRAMES = SweepConfig().sample_frames
MEASURED_FRAMES = 6
"""By which `scaling.py` compares them."""
UPDATES = STEPS[True]
"""Of a training that starts from weights that were trained before."""
KFLOP_PER_PX = {"the CPU's network, on a CPU": 36.9, "the paper's network, on a GPU": 342.7}
"""As ``tiles.py`` counts them, forward. On a CPU doubled features are convolved at the size they have."""
HALVES = 2
CORE_PX, HALO_PX = 2048, 128
"""Of a tile of a large image; the halo is the exact one, which `scaling.py` asks for."""
PATCH_PX = 8 * 128**2
GPU_TFLOPS = 989.0
"""Dense bfloat16 of one H100 SXM, as its maker publishes it."""
GPU_SHARE = 0.3
"""Of that which a network of 48 channels is taken to reach: an assumption, nothing was measured."""
HOST_CORES = 16
"""Of the GPU's host. Stages that are not the network's are taken to gain by all: the two measured, by 8."""

Shape = tuple[int, int, int]


class Rates(NamedTuple):
    """Seconds for a unit of work on the machine that was measured."""

    ingest: float
    """A megapixel of the movie; likewise the next."""
    align: float
    window: float
    """A megapixel of what is looked at of a frame, for one window of one sampled frame."""
    held: float
    """The same, for one frame that a window holds."""
    start: float
    """Of training: before the first update."""
    update: float
    denoise: float
    """A megapixel of the movie and its halos."""


def rates_of(found: dict[str, Any], name: str) -> Rates:
    """Read the rates that were measured on one movie.

    Two sweeps, over few windows and over all that the movie has frames for, tell the costs of a window apart.
    """
    n_frames, height, width = found["shapes"][name]
    area = swept_megapixels((n_frames, height, width))
    per_mpx = {stage: found[stage]["ms_per_megapixel"][name] / 1e3 for stage in ("ingest", "align", "denoise")}
    few = found["sweep_s"][name] / area / MEASURED_FRAMES
    many = found["sweep_all_s"][name] / area / MEASURED_FRAMES
    every = default_windows(n_frames)
    more, further = len(every) / len(SWEPT), sum(every) / sum(SWEPT)
    held = max(0.0, (many - more * few) / (sum(SWEPT) * (further - more)))
    window = (few - held * sum(SWEPT)) / len(SWEPT)
    train = found["train"]
    return Rates(
        per_mpx["ingest"],
        per_mpx["align"],
        window,
        held,
        train["start_s"][name],
        train["ms_per_update"][name] / 1e3,
        per_mpx["denoise"] / tile_cost((n_frames, height, width)),
    )


def swept_megapixels(shape: Shape) -> float:
    """Return what the sweep looks at of a frame: all of it, or four regions.

    Examples
    --------
    >>> swept_megapixels((1, 512, 256)), swept_megapixels((1, 4096, 4096))
    (0.131072, 1.048576)
    """
    return math.prod(side if side <= REGION_PX else 2 * REGION_PX for side in shape[1:]) / 1e6


def tile_cost(shape: Shape) -> float:
    """Return pixels computed over pixels kept.

    Examples
    --------
    >>> tile_cost((1, 512, 512)), round(tile_cost((1, 4096, 4096)), 3)
    (2.25, 1.266)
    """
    cores = (side / math.ceil(side / CORE_PX) for side in shape[1:])
    return math.prod((core + 2 * HALO_PX) / core for core in cores)


def predict(shape: Shape, rates: Rates, sampled: int = SAMPLED_FRAMES) -> dict[str, float]:
    """Return the seconds that each stage takes on the machine that was measured."""
    megapixels, area = math.prod(shape) / 1e6, swept_megapixels(shape)
    windows = default_windows(shape[0])
    return {
        "ingest": rates.ingest * megapixels,
        "align": rates.align * megapixels,
        "sweep": sampled * area * (rates.window * len(windows) + rates.held * sum(windows)),
        "train": rates.start + UPDATES * rates.update,
        "denoise": rates.denoise * megapixels * tile_cost(shape),
    }


def print_check(kept: dict[str, Any], rates: Rates) -> None:
    """Print what the model says of the movies with larger frames, beside what was measured."""
    print("\n| movie | stage | model, s | measured, s | measured / model |\n|---|---|---|---|---|")
    found = kept["size"]
    for name in list(found["shapes"])[1:]:
        shape = found["shapes"][name]
        model, megapixels = predict(shape, rates, MEASURED_FRAMES), math.prod(shape) / 1e6
        stages = [stage for stage in ("ingest", "align", "denoise") if stage in found]
        measured = {stage: found[stage]["ms_per_megapixel"][name] / 1e3 * megapixels for stage in stages}
        measured |= {"sweep": found["sweep_all_s"][name]}
        for stage, seconds in measured.items():
            ratio = seconds / model[stage]
            print(f"| {shape} | {stage} | {model[stage]:.2f} | {seconds:.2f} | {ratio:.2f} |")


def on_a_gpu(shape: Shape, seconds: dict[str, float], gpus: int) -> dict[str, float]:
    """Return the seconds on GPUs, each in a host of its own: ingest and denoising are spread, the rest is not."""
    faster, rate = HOST_CORES / 2, GPU_TFLOPS * 1e12 * GPU_SHARE
    flop = 1e3 * KFLOP_PER_PX["the paper's network, on a GPU"]
    return {
        "ingest": seconds["ingest"] / faster / gpus,
        "align": seconds["align"] / faster,
        "sweep": seconds["sweep"] / faster,
        "train": UPDATES * 3 * flop * PATCH_PX / rate,
        "denoise": math.prod(shape) * HALVES * tile_cost(shape) * flop / rate / gpus,
    }


def print_costs(kept: dict[str, Any]) -> None:
    """Print the check, the bytes and the hours."""
    rates = rates_of(kept["length"], "8x")
    print("rates:", {name: float(f"{value:.3g}") for name, value in rates._asdict().items()})
    if "size" in kept:
        print_check(kept, rates)
    pixels = math.prod(LARGE)
    ratios = read_json(RESULTS / "ingest_sizes.json") or {}
    print(f"\n{LARGE}: {pixels / 1e9:.1f} gigapixels, {2 * pixels / 1e9:.0f} GB of 16-bit counts")
    for name in ("int16_mean_0.8", "int16_mean_10"):
        print(f"stored, {name}: {2 * pixels * ratios[name] / 1e9:.0f} GB")
    for what, dtype in (("counts", "uint16"), ("denoised", "float32")):
        step, height, width = default_layout(LARGE, dtype).shards
        files = math.ceil(LARGE[0] / step) * math.ceil(LARGE[1] / height) * math.ceil(LARGE[2] / width)
        print(f"{what}: {files} files of {step} frames")
    for network, kflop in KFLOP_PER_PX.items():
        print(f"denoised by {network}: {pixels * HALVES * tile_cost(LARGE) * kflop * 1e3 / 1e15:.1f} PFLOP")
    print("\n| stage | two cores, h | one GPU, h (not measured) | 16 GPUs, h (not measured) |\n|---|---|---|---|")
    here = predict(LARGE, rates)
    columns = [here, *(on_a_gpu(LARGE, here, gpus) for gpus in (1, 16))]
    for stage in here:
        print(f"| {stage} | " + " | ".join(f"{column[stage] / 3600:.3g}" for column in columns) + " |")
    print("| all | " + " | ".join(f"{sum(column.values()) / 3600:.3g}" for column in columns) + " |")
