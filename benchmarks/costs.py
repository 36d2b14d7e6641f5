"""What a large movie costs, stage by stage: from measured rates, by a model that is checked on other sizes.

Rates are those that ``scaling.py`` measured on its longest movies of small frames; the check is what it measured
on larger frames. Ingest goes by pixels, as does what align reads; the path goes by what frames are binned to.
Denoising goes by the pixels that tiles and their halos hold. The sweep goes by pixels of the regions that it
looks at: so much for each window that it scores, and so much for each frame that a window holds. Training goes by
updates, whatever the movie.

    python benchmarks/scaling.py --parts costs      # prints it
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from n2n_pipeline.config import AlignConfig, SweepConfig
from n2n_pipeline.files import read_json
from n2n_pipeline.geometry import Tiling, plan_tiles
from n2n_pipeline.layout import default_layout
from n2n_pipeline.risks import REGION_PX
from n2n_pipeline.spectra import choose_bin
from n2n_pipeline.sweep import default_windows
from n2n_pipeline.training.plan import STEPS

RESULTS = Path(__file__).parent / "results"
LARGE = (5000, 4096, 4096)
SWEPT = (2, 4, 8, 16, 32)
SAMPLED_FRAMES = SweepConfig().sample_frames
MEASURED_FRAMES = 12
"""By which `scaling.py` compares them."""
UPDATES = STEPS[True]
"""Of a training that starts from weights that were trained before."""
KFLOP_PER_PX = {"the CPU's network, on a CPU": 36.9, "the paper's network, on a GPU": 342.7}
"""As ``tiles.py`` counts them, forward. On a CPU doubled features are convolved at the size they have."""
HALVES = 2
CORE_PX, HALO_PX, STRIDE_PX = 2048, 128, 32
"""Of a tile of a large image; the halo is the exact one, as `scaling.py` asks for."""
GPU_CORES = 16
"""Of the host whose GPU was measured; what was not measured there is taken to gain by them, 8 times of two."""

Shape = tuple[int, int, int]


class Rates(NamedTuple):
    """Seconds for a unit of work on the machine that was measured."""

    ingest: float
    """A megapixel of the movie; likewise the next."""
    align_read: float
    align_path: float
    """A megapixel of the binned movie."""
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
    """Read the rates that were measured on one movie of every stage.

    Two sweeps, over few windows and over all that the movie has frames for, tell the costs of a window apart.
    """
    per_mpx = {
        stage: found[stage]["ms_per_megapixel"][name] / 1e3
        for stage in ("ingest", "align", "align_read", "denoise")
    }
    shape = found["shapes"]["sweep"][name]
    area = swept_megapixels(shape)
    few = found["sweep_s"][name] / area / MEASURED_FRAMES
    many = found["sweep_all_s"][name] / area / MEASURED_FRAMES
    every = default_windows(shape[0])
    more, further = len(every) / len(SWEPT), sum(every) / sum(SWEPT)
    held = max(0.0, (many - more * few) / (sum(SWEPT) * (further - more)))
    window = (few - held * sum(SWEPT)) / len(SWEPT)
    train = found["train"]
    return Rates(
        per_mpx["ingest"],
        per_mpx["align_read"],
        (per_mpx["align"] - per_mpx["align_read"]) * binning(found["shapes"]["align"][name]) ** 2,
        window,
        held,
        train["start_s"][name],
        train["ms_per_update"][name] / 1e3,
        per_mpx["denoise"] / tile_cost(found["shapes"]["denoise"][name]),
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
    (1.0, 1.129)
    """
    return plan_tiles((shape[1], shape[2]), Tiling(STRIDE_PX, CORE_PX, HALO_PX)).cost


def binning(shape: Shape) -> int:
    """Return by how much frames are binned where drift is found from them."""
    return choose_bin(shape[0], tuple(shape[1:]), AlignConfig().max_frequency_per_px)


def predict(shape: Shape, rates: Rates, sampled: int = SAMPLED_FRAMES) -> dict[str, float]:
    """Return the seconds that each stage takes on the machine that was measured."""
    megapixels, area = math.prod(shape) / 1e6, swept_megapixels(shape)
    windows = default_windows(shape[0])
    return {
        "ingest": rates.ingest * megapixels,
        "align": (rates.align_read + rates.align_path / binning(shape) ** 2) * megapixels,
        "sweep": sampled * area * (rates.window * len(windows) + rates.held * sum(windows)),
        "train": rates.start + UPDATES * rates.update,
        "denoise": rates.denoise * megapixels * tile_cost(shape),
    }


def print_check(kept: dict[str, Any], rates: Rates) -> None:
    """Print what the model says of the movies with larger frames, beside what was measured."""
    print("\n| movie | stage | model, s | measured, s | measured / model |\n|---|---|---|---|---|")
    found = kept["size"]
    for stage in ("ingest", "align", "sweep", "denoise"):
        for name, shape in list(found["shapes"][stage].items())[1:]:
            model = predict(shape, rates, MEASURED_FRAMES)[stage]
            if stage == "sweep":
                seconds = found["sweep_all_s"][name]
            else:
                seconds = found[stage]["ms_per_megapixel"][name] / 1e3 * math.prod(shape) / 1e6
            print(f"| {shape} | {stage} | {model:.2f} | {seconds:.2f} | {seconds / model:.2f} |")


def print_flatness(part: dict[str, Any]) -> None:
    """Print what a unit of work takes on every movie of a part, in time and in memory."""
    names = list(part["shapes"]["align"])
    columns = [*names, "most over least", *(f"MiB, {names[0]}", *names[1:]), "most over least"]
    print("\n| | first movie | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 2) + "|")
    for stage in ("ingest", "align", "sweep", "train", "denoise"):
        found, first = part[stage], next(iter(part["shapes"][stage].values()))
        unit = next(key for key in found if key.startswith("ms_per"))
        cells = [*found[unit].values(), found["time_most_over_least"]]
        cells += [*found["peak_anonymous_mib"].values(), found["memory_most_over_least"]]
        what = f"{stage}, {unit.replace('_', ' ')} | {' × '.join(map(str, first))}"
        print(f"| {what} | " + " | ".join(f"{cell:.3g}" for cell in cells) + " |")


def on_a_gpu(shape: Shape, seconds: dict[str, float], gpus: int) -> dict[str, float]:
    """Return the seconds on GPUs, each in a host of its own: ingest and denoising are spread, the rest is not.

    By what ``gpu_stages.py`` measured on one, in proportion to pixels; the sweep, which uses no GPU, by its cores.
    """
    found = read_json(RESULTS / "stages_cuda.json") or {}
    times = math.prod(shape) / math.prod(found["shape"])
    tiles = tile_cost(shape) / tile_cost(tuple(found["shape"]))
    return {
        "ingest": found["ingest_s"] * times / gpus,
        "align": statistics.median(found["align_s"]["cuda"]) * times,
        "sweep": seconds["sweep"] / (GPU_CORES / 2),
        "train": found["run_stages_s"]["train"],
        "denoise": statistics.median(found["denoise_s"]) * times * tiles / gpus,
    }


def print_costs(kept: dict[str, Any]) -> None:
    """Print the check, the bytes and the hours."""
    rates = rates_of(kept["length"], "8x")
    print("rates:", {name: float(f"{value:.3g}") for name, value in rates._asdict().items()})
    print_flatness(kept["length"])
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
    print("\n| stage | two cores, h | one GPU, h | 16 GPUs, h (not measured) |\n|---|---|---|---|")
    here = predict(LARGE, rates)
    columns = [here, *(on_a_gpu(LARGE, here, gpus) for gpus in (1, 16))]
    for stage in here:
        print(f"| {stage} | " + " | ".join(f"{column[stage] / 3600:.3g}" for column in columns) + " |")
    print("| all | " + " | ".join(f"{sum(column.values()) / 3600:.3g}" for column in columns) + " |")
