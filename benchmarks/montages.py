"""Denoise montages of growing size in the same memory.

    python benchmarks/montages.py                         # 8192, 16384 and 32768 px a side, 2 GB allowed
    python benchmarks/montages.py --sides 8192 --memory 1

Each montage of 8-bit counts is denoised in a fresh process, from a Zarr array to an OME-Zarr store with pyramid,
by a network of the default shape but 4 channels, so that it ends: what is measured is all around the network. Peak
memory is what the process holds above what its imports took. Time per pixel includes reading, digests and the
pyramid, not start-up: a small image comes first. Sizes take turns; of the rounds, the least time and the most
memory count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import zarr
from environments import with_package

from n2n_pipeline.checkpoint import ModelCard, save_model
from n2n_pipeline.config import DenoiseConfig, TileConfig
from n2n_pipeline.device import set_threads, tune_allocator
from n2n_pipeline.inference.denoise import denoise_store
from n2n_pipeline.model import CPU_NETWORK, UNet
from n2n_pipeline.progress import set_quiet

RESULTS = Path(__file__).parent / "results"
SHARD_PX = 4096
SMALL_PX = 512
MEAN_COUNT = 8.0


def make_montage(path: Path, side: int) -> None:
    """Write Poisson counts, the same in every shard."""
    shape, shards = (1, side, side), (1, SHARD_PX, SHARD_PX)
    array = zarr.create_array(path, shape=shape, chunks=(1, 512, 512), shards=shards, dtype="uint8")
    counts = np.random.default_rng(0).poisson(MEAN_COUNT, (SHARD_PX, SHARD_PX)).astype(np.uint8)
    for y in range(0, side, SHARD_PX):
        for x in range(0, side, SHARD_PX):
            array[0, y : y + SHARD_PX, x : x + SHARD_PX] = counts[: side - y, : side - x]


def make_model(folder: Path) -> None:
    """Save an untrained network."""
    torch.manual_seed(0)
    network = CPU_NETWORK.model_copy(update={"width": 4})
    save_model(folder, UNet(network), ModelCard(network=network, mean=MEAN_COUNT, scale=MEAN_COUNT**0.5, window=2))


def measure(folder: Path, side: int, memory_gb: float) -> dict[str, float]:
    """Denoise one montage in this process."""
    set_quiet()
    tune_allocator()
    set_threads()
    config = DenoiseConfig(tile=TileConfig(halo_px="exact"), augment="off", memory_gb=memory_gb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    denoise_store(folder / "small.zarr", folder / "model", folder / "small-denoised.zarr", config, "cpu")
    wall, cpu = time.perf_counter(), time.process_time()
    denoise_store(folder / "montage.zarr", folder / "model", folder / "denoised.zarr", config, "cpu")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "peak_memory_mib": (peak - before) / 1024,
        "seconds_per_gigapixel": wall / side**2 * 1e9,
        "cpu_seconds_per_gigapixel": cpu / side**2 * 1e9,
    }


def run_in_fresh_process(side: int, memory_gb: float) -> dict[str, float]:
    """Make a montage and measure its denoising in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        make_montage(Path(folder) / "montage.zarr", side)
        make_montage(Path(folder) / "small.zarr", SMALL_PX)
        make_model(Path(folder) / "model")
        words = [sys.executable, __file__, "--child", folder, "--sides", str(side), "--memory", str(memory_gb)]
        done = subprocess.run(words, env=with_package(), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def summarise(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the least of the times, which others on the machine only lengthen, and the most of the memory."""
    return {key: (max if key == "peak_memory_mib" else min)(one[key] for one in rounds) for key in rounds[0]}


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--memory", type=float, default=2.0, help="GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.child:
        print(json.dumps(measure(told.child, told.sides[0], told.memory)))
        return
    rounds: dict[int, list[dict[str, float]]] = {side: [] for side in told.sides}
    for _ in range(told.rounds):
        for side, measured in rounds.items():
            measured.append(run_in_fresh_process(side, told.memory))
            print(f"{side} x {side}: {measured[-1]}", flush=True)
    found = {side: summarise(measured) for side, measured in rounds.items()}
    largest = {key: max(one[key] for one in found.values()) for key in next(iter(found.values()))}
    spread = {key: round(most / min(one[key] for one in found.values()), 3) for key, most in largest.items()}
    within = largest["peak_memory_mib"] * 2**20 <= told.memory * 1e9
    result = {
        "memory_gb": told.memory,
        "within_memory": within,
        "largest_over_smallest": spread,
        "by_side_px": found,
    }
    print(json.dumps({"within_memory": within, "largest_over_smallest": spread}), flush=True)
    result |= {"torch": torch.__version__}
    result |= {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "montages_cpu.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
