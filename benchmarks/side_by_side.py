"""Whether a frame's halves go through the network faster side by side than one after another.

    python benchmarks/side_by_side.py        # small to large frames, alone and beside a busy program: 15 minutes

Side by side, each half has half of the cores to itself; one after another, the cores share every layer. Both are
what `n2n-pipeline denoise` does, on the same movie, in turns, reading and writing included, by the CPU's default
network, untrained. The busy program is one thread that counts, so that it asks for one of the cores. Ratios are
medians over rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from overlap import time_job
from scaling import make_model, store

from n2n_pipeline.config import DenoiseConfig
from n2n_pipeline.device import set_threads, tune_allocator
from n2n_pipeline.inference.job import Order, plan_job
from n2n_pipeline.progress import set_quiet

RESULTS = Path(__file__).parent / "results"
MOVIES = ((64, 256, 256), (32, 512, 512), (8, 1024, 1024), (4, 2048, 2048))
CONFIG = DenoiseConfig(augment="halves", memory_gb=4.0)
COUNT = "n = 0\nwhile True: n += 1"


def denoise(folder: Path, side_by_side: bool) -> float:
    """Denoise the movie one way, and return the seconds."""
    shutil.rmtree(folder / "denoised.zarr", ignore_errors=True)
    order = Order(folder / "movie.zarr", folder / "model", folder / "denoised.zarr", CONFIG, "cpu")
    choice = plan_job(order).choice.model_copy(update={"side_by_side": side_by_side})
    return time_job(plan_job(order, choice=choice))


def compare(shape: tuple[int, int, int], is_busy: bool, n_rounds: int) -> dict[str, Any]:
    """Compare both ways on a movie."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", "cpu")
        store(folder / "movie.mrc", shape)
        other = subprocess.Popen([sys.executable, "-c", COUNT]) if is_busy else None
        try:
            rounds = [[round(denoise(folder, way), 3) for way in (True, False)] for _ in range(n_rounds)]
        finally:
            if other:
                other.kill()
                other.wait()
    ratio = statistics.median(after / beside for beside, after in rounds)
    beside, after = (statistics.median(column) for column in zip(*rounds, strict=True))
    where = "beside a busy program" if is_busy else "alone"
    print(f"| {shape} | {where} | {beside:.2f} | {after:.2f} | {ratio:.2f} |", flush=True)
    return {"shape": shape, "busy": is_busy, "after_over_beside": round(ratio, 3), "seconds": rounds}


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    told = parser.parse_args()
    set_quiet()
    tune_allocator()
    threads = set_threads()
    print("| movie | | side by side, s | one after another, s | ratio |\n|---|---|---|---|---|")
    found = [compare(shape, is_busy, told.rounds) for is_busy in (False, True) for shape in MOVIES]
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    result = {**machine, "threads": threads, "torch": torch.__version__, "movies": found}
    (RESULTS / "side_by_side.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
