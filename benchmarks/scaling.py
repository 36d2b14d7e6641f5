"""Does a frame cost the same in a long movie as in a short one? Time and memory by length, image size and workers.

    python benchmarks/scaling.py                    # 1 to 8 times the frames, 1 to 16 times the pixels: 2 hours
    python benchmarks/scaling.py --parts workers    # some of: length, size, workers, costs
    python benchmarks/scaling.py --parts costs      # only prints what a large movie would cost, from the results

Every stage of every movie runs in a fresh process by the package's functions, after the same stage on a small
movie, so that start-up and compiling are not counted. A stage has movies of its own, none in the page cache, the
shortest of which takes it a second or more: what a call costs once is little of that. Movies take turns, shorter
ones as much more often as they are shorter, so that a noisy machine is unfair to none; the median of the rounds
counts. Memory is the most anonymous memory of the process while the stage ran, imports included. Training makes as
many updates whatever the movie, from frames in 0.1 GB of memory, which the shortest movie fills; its start and its
updates are told apart. The sweep compares the same windows on all, by 12 frames; what its default windows cost,
which reach as far as the movie, is measured besides. `align_read` is an alignment by so coarse a band that reading
is its work. Denoising is by the device's default network, untrained, without turns. Workers are those of
`n2n-pipeline denoise --cluster local:N`, whole command.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch
from costs import CORE_PX, MEASURED_FRAMES, SWEPT, print_costs, swept_megapixels
from environments import with_package
from ingest import forget
from ingest import make_movie as make_still_movie

import n2n_pipeline as n2n
from n2n_pipeline.checkpoint import ModelCard, save_model
from n2n_pipeline.config import AlignConfig, DenoiseConfig, RunConfig, SweepConfig, TileConfig, TrainConfig
from n2n_pipeline.device import set_threads, tune_allocator
from n2n_pipeline.files import read_json
from n2n_pipeline.model import UNet
from n2n_pipeline.progress import set_quiet
from n2n_pipeline.sources.simulated import simulate_movie
from n2n_pipeline.starting import default_network

Figures = dict[str, float]
Shape = tuple[int, int, int]

RESULTS = Path(__file__).parent / "results"
TIMES = (1, 2, 4, 8)
LENGTHS: dict[str, Shape] = {
    "ingest": (1024, 768, 768),
    "align": (512, 384, 384),
    "sweep": (64, 512, 512),
    "train": (96, 512, 512),
    "denoise": (192, 384, 384),
}
SIZES: dict[str, tuple[Shape, ...]] = {
    "ingest": ((256, 1024, 1024), (64, 2048, 2048), (16, 4096, 4096)),
    "align": ((128, 512, 512), (128, 1024, 1024), (128, 2048, 2048)),
    "sweep": ((64, 512, 512), (64, 1024, 1024), (64, 2048, 2048)),
    "train": ((96, 512, 512), (96, 1024, 1024), (96, 2048, 2048)),
    "denoise": ((48, 512, 512), (12, 1024, 1024), (4, 2048, 2048)),
}
BY_SAMPLE = ("sweep", "train")  # stages that take as long for any movie
TINY: Shape = (16, 192, 192)
SPREAD: Shape = (64, 512, 512)
WORKERS = (1, 2)
ROUNDS = {"ingest": 5, "align": 3, "sweep": 3, "train": 5, "denoise": 2, "workers": 2}
WINDOW = 16
STEPS = (4, 64)
TOLERANCE = 1.1
DRIFT_PX = 48
COARSE = 1 / 32  # cycles per px


def make_movie(path: Path, shape: Shape) -> None:
    """Write an MRC movie of a drifting scene, an electron per pixel and frame."""
    n_frames, height, width = shape
    scene = simulate_movie((1, height + DRIFT_PX, width + DRIFT_PX)).truth[0]
    rng = np.random.default_rng(0)
    with mrcfile.new_mmap(path, shape=shape, mrc_mode=1, overwrite=True) as file:
        file.voxel_size = 1.0
        for t in range(n_frames):
            y, x = (int(DRIFT_PX * (0.5 + 0.5 * np.sin(t / pace))) for pace in (40, 70))
            file.data[t] = rng.poisson(scene[y : y + height, x : x + width])


def make_model(folder: Path, device: str) -> None:
    """Save an untrained network of the shape that the device gets by default."""
    torch.manual_seed(0)
    network = default_network(device)
    save_model(folder, UNet(network), ModelCard(network=network, mean=1.0, scale=1.0, window=WINDOW))


def ingest(movie: Path, work: Path, device: str) -> None:
    """Store the movie."""
    n2n.ingest(movie, work / "movie.zarr")


def align(movie: Path, work: Path, device: str) -> None:
    """Estimate its drift."""
    n2n.align(movie.with_suffix(".zarr"), device=device)


def align_read(movie: Path, work: Path, device: str) -> None:
    """Estimate its drift by so little of the frames that reading them is the work."""
    n2n.align(movie.with_suffix(".zarr"), AlignConfig(max_frequency_per_px=COARSE), device=device)


def sweep(movie: Path, work: Path, device: str) -> None:
    """Compare the same windows on every movie."""
    n2n.sweep(
        movie.with_suffix(".zarr"),
        SweepConfig(windows=SWEPT, sample_frames=MEASURED_FRAMES),
        output=work / "window.json",
    )


def sweep_all(movie: Path, work: Path, device: str) -> None:
    """Compare the windows that are compared by default."""
    config = SweepConfig(sample_frames=MEASURED_FRAMES)
    n2n.sweep(movie.with_suffix(".zarr"), config, output=work / "window.json")


def train(movie: Path, work: Path, device: str, steps: int = STEPS[0]) -> None:
    """Make some updates."""
    config = RunConfig(device=device, train=TrainConfig(steps=steps, window=WINDOW, memory_gb=0.1))
    n2n.train([movie.with_suffix(".zarr")], work / "model", config)


def train_on(movie: Path, work: Path, device: str) -> None:
    """Make more updates."""
    train(movie, work, device, STEPS[1])


def denoise(movie: Path, work: Path, device: str) -> None:
    """Denoise the movie."""
    config = DenoiseConfig(tile=TileConfig(core_px=CORE_PX, halo_px="exact"), augment="off", memory_gb=1.0)
    n2n.denoise(movie.with_suffix(".zarr"), movie.parent / "model", work / "denoised.zarr", config, device)


STAGES: dict[str, Callable[[Path, Path, str], None]] = {
    "ingest": ingest,
    "align": align,
    "align_read": align_read,
    "sweep": sweep,
    "sweep_all": sweep_all,
    "train": train,
    "train_on": train_on,
    "denoise": denoise,
}


def anonymous_mib() -> float:
    """Return the anonymous memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def watch(ended: threading.Event, peak: list[float]) -> None:
    """Note the most memory until told to end."""
    while not ended.wait(0.005):
        peak[0] = max(peak[0], anonymous_mib())


def measure(stage: str, movie: Path, device: str) -> Figures:
    """Run a stage in this process, on a small movie first."""
    set_quiet(True)
    tune_allocator()
    set_threads()
    with tempfile.TemporaryDirectory(dir=movie.parent) as folder:
        work = Path(folder)
        (work / "small").mkdir()
        STAGES[stage](movie.with_name("small.mrc"), work / "small", device)
        forget(movie)
        os.sync()
        ended, peak = threading.Event(), [anonymous_mib()]
        watcher = threading.Thread(target=watch, args=(ended, peak))
        watcher.start()
        try:
            wall, cpu = time.perf_counter(), time.process_time()
            STAGES[stage](movie, work, device)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        finally:
            ended.set()
            watcher.join()
    return {"seconds": wall, "cpu_seconds": cpu, "peak_anonymous_mib": peak[0]}


def in_fresh_process(stage: str, movie: Path, device: str) -> Figures:
    """Run a stage in a process of its own."""
    words = [sys.executable, __file__, "--device", device, "--child", stage, str(movie)]
    done = subprocess.run(words, env=with_package(), stdout=subprocess.PIPE, text=True, check=True)
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


def combine(how: Callable[[list[float]], float], runs: Sequence[Figures]) -> Figures:
    """Return the mean, or whatever else, of every figure."""
    return {key: round(how([one[key] for one in runs]), 4) for key in runs[0]}


def compare(folder: Path, shapes: dict[str, dict[str, Shape]], told: argparse.Namespace) -> dict[str, Any]:
    """Run every stage on movies of some shapes, in turns; return its median figures."""
    make_model(folder / "model", told.device)
    store(folder / "small.mrc", (16, 192, 192))
    found: dict[str, dict[str, list[Figures]]] = {stage: {} for stage in STAGES}
    for kind, movies in shapes.items():
        for name, shape in movies.items():
            make = make_still_movie if kind == "ingest" else store
            make(folder / f"{name}.mrc", shape)
        stages = [stage for stage in STAGES if stage.partition("_")[0] == kind]
        for number in range(told.rounds or ROUNDS[kind]):
            for stage in stages:
                if number > 0 and stage == "sweep_all":
                    continue
                for name, figures in run_round(stage, movies, folder, told.device).items():
                    found[stage].setdefault(name, []).append(figures)
                    print(f"round {number + 1}: {stage} {name} {figures}", flush=True)
        for name in movies:
            (folder / f"{name}.mrc").unlink()
            shutil.rmtree(folder / f"{name}.zarr", ignore_errors=True)
    return {
        stage: {name: combine(statistics.median, rounds) for name, rounds in movies.items()}
        for stage, movies in found.items()
    }


def run_round(stage: str, movies: dict[str, Shape], folder: Path, device: str) -> dict[str, Figures]:
    """Run a stage on every movie, each for as long as any other; return means."""
    runs: dict[str, list[Figures]] = {name: [] for name in movies}
    for name in turns(stage, movies):
        runs[name].append(in_fresh_process(stage, folder / f"{name}.mrc", device))
    return {name: combine(statistics.fmean, figures) for name, figures in runs.items()}


def turns(stage: str, movies: dict[str, Shape]) -> list[str]:
    """Return the order of the runs of a round: large movies among small ones, which come more often."""
    if stage.partition("_")[0] in BY_SAMPLE:
        return list(movies)
    largest = max(math.prod(shape) for shape in movies.values())
    runs = {name: max(1, round(largest / math.prod(shape))) for name, shape in movies.items()}
    return [
        name for _, name in sorted(((n + 0.5) / count, name) for name, count in runs.items() for n in range(count))
    ]


def store(movie: Path, shape: Shape) -> None:
    """Make a movie, and a store of it that is aligned."""
    make_movie(movie, shape)
    n2n.ingest(movie, movie.with_suffix(".zarr"))
    n2n.align(movie.with_suffix(".zarr"))


def per_unit(found: dict[str, Any], shapes: dict[str, dict[str, Shape]]) -> dict[str, Any]:
    """Return what a megapixel of a movie takes, whether it is the same for all, and what sweep and train take."""
    summary: dict[str, Any] = {}
    for stage in ("ingest", "align", "align_read", "denoise"):
        movies = shapes.get(stage.partition("_")[0], {})
        costs = {name: found[stage][name]["seconds"] / math.prod(shape) * 1e6 for name, shape in movies.items()}
        if movies:
            summary[stage] = describe(costs, found[stage], "ms_per_megapixel", 1e3)
    if "sweep" in shapes:
        summary |= per_sweep(found, shapes["sweep"])
    if "train" in shapes:
        summary["train"] = per_update(found, shapes["train"])
    return summary


def per_sweep(found: dict[str, Any], movies: dict[str, Shape]) -> dict[str, Any]:
    """Return what a megapixel that a sweep looks at takes, and how long whole ones take."""
    costs = {name: found["sweep"][name]["seconds"] / swept_megapixels(shape) for name, shape in movies.items()}
    seconds = {
        f"{stage}_s": {name: round(figures["seconds"], 2) for name, figures in found[stage].items()}
        for stage in ("sweep", "sweep_all")
    }
    return {"sweep": describe(costs, found["sweep"], "ms_per_megapixel_looked_at", 1e3), **seconds}


def per_update(found: dict[str, Any], movies: dict[str, Shape]) -> dict[str, Any]:
    """Return what an update takes, and what comes before the first."""
    pairs = {name: (found["train"][name]["seconds"], found["train_on"][name]["seconds"]) for name in movies}
    updates = {name: (long - short) / (STEPS[1] - STEPS[0]) for name, (short, long) in pairs.items()}
    start = {name: round(short - STEPS[0] * updates[name], 2) for name, (short, _) in pairs.items()}
    return {**describe(updates, found["train_on"], "ms_per_update", 1e3), "start_s": start}


def describe(costs: Figures, figures: dict[str, Figures], unit: str, factor: float) -> dict[str, Any]:
    """Return costs, and how far the largest is from the smallest, of time and of memory."""
    memory = {name: one["peak_anonymous_mib"] for name, one in figures.items()}
    time_ratio, memory_ratio = (max(one.values()) / min(one.values()) for one in (costs, memory))
    return {
        unit: {name: round(factor * cost, 3) for name, cost in costs.items()},
        "peak_anonymous_mib": {name: round(one) for name, one in memory.items()},
        "time_most_over_least": round(time_ratio, 3),
        "memory_most_over_least": round(memory_ratio, 3),
        "flat": bool(time_ratio <= TOLERANCE and memory_ratio <= TOLERANCE),
    }


def compare_length(folder: Path, told: argparse.Namespace) -> dict[str, Any]:
    """Compare movies of 1 to 8 times the frames."""
    bases = dict.fromkeys(LENGTHS, TINY) if told.tiny else LENGTHS
    shapes = {stage: {f"{n}x": (n * bases[stage][0], *bases[stage][1:]) for n in TIMES} for stage in told.stages}
    return {"shapes": shapes, **per_unit(compare(folder, shapes, told), shapes)}


def compare_size(folder: Path, told: argparse.Namespace) -> dict[str, Any]:
    """Compare movies of larger and larger frames."""
    tiny = (TINY, (TINY[0], 2 * TINY[1], 2 * TINY[2]))
    sizes = dict.fromkeys(SIZES, tiny) if told.tiny else SIZES
    shapes = {stage: {f"{shape[1]} px": shape for shape in sizes[stage]} for stage in told.stages}
    return {"shapes": shapes, **per_unit(compare(folder, shapes, told), shapes)}


def compare_workers(folder: Path, told: argparse.Namespace) -> dict[str, Any]:
    """Denoise with the command, spread over worker processes."""
    make_model(folder / "model", told.device)
    movie = folder / "movie.mrc"
    shape = TINY if told.tiny else SPREAD
    store(movie, shape)
    start = [sys.executable, "-c", "from n2n_pipeline.cli import main; main()", "denoise"]
    fixed = ["-m", str(folder / "model"), "--device", told.device, "--quiet", "--set", "denoise.augment=off"]
    found: dict[str, list[float]] = {f"local:{n}": [] for n in WORKERS} | {"threads": []}
    for number in range(told.rounds or ROUNDS["workers"]):
        for cluster, seconds in found.items():
            output = folder / f"{cluster.replace(':', '')}{number}.zarr"
            words = [*start, str(movie.with_suffix(".zarr")), "-o", str(output), *fixed, "--cluster", cluster]
            began = time.perf_counter()
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            seconds.append(round(time.perf_counter() - began, 2))
            print(f"round {number + 1}: {cluster} {seconds[-1]} s", flush=True)
    least = {cluster: min(seconds) for cluster, seconds in found.items()}
    return {"shape": shape, "seconds": least, "rounds": found}


PARTS = {"length": compare_length, "size": compare_size, "workers": compare_workers}


def main() -> None:
    """Measure, keep the figures, and print what a large movie would cost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "costs"], default=[*PARTS, "costs"])
    parser.add_argument("--stages", nargs="+", choices=LENGTHS, default=list(LENGTHS), help="of length and size")
    parser.add_argument("--rounds", type=int, help="by default more of what takes less time")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="movies of toy sizes, to see that it runs")
    parser.add_argument("--child", nargs=2, metavar=("STAGE", "MOVIE"), help=argparse.SUPPRESS)
    told = parser.parse_args()
    set_quiet(True)
    if told.child:
        print(json.dumps(measure(told.child[0], Path(told.child[1]), told.device)))
        return
    file = RESULTS / f"scaling_{told.device}.json"
    kept: dict[str, Any] = read_json(file) or {}
    for part in (part for part in told.parts if part in PARTS):
        with tempfile.TemporaryDirectory() as folder:
            found = PARTS[part](Path(folder), told)
        if part != "workers":
            found["shapes"] = kept.get(part, {}).get("shapes", {}) | found["shapes"]
        kept[part] = kept.get(part, {}) | found
        print(part, json.dumps(kept[part], indent=1), flush=True)
        kept |= {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        kept |= {"torch": torch.__version__, "n2n_pipeline": n2n.__version__}
        file.write_text(json.dumps(kept, indent=1) + "\n")
    if "costs" in told.parts:
        print_costs(kept)


if __name__ == "__main__":
    main()
