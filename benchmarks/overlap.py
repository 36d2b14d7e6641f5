"""Do reading, computing and writing overlap? Time them one after another, then as `n2n-pipeline denoise` does it.

    python benchmarks/overlap.py                       # 96 frames of 1024 x 1024

The network is held to one thread, and so small that it takes about as long as reading and writing together; both
halves are kept, so that there is much to write. One after another, every piece is read, denoised and blended, and
every block written, by the functions that `n2n-pipeline denoise` calls. If the stages overlapped without loss, all
would take as long as the larger of computing and of reading and writing. Rounds alternate; ratios are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from n2n_pipeline.checkpoint import ModelCard, save_model
from n2n_pipeline.config import DenoiseConfig, NetworkConfig, TileConfig
from n2n_pipeline.device import set_threads, tune_allocator
from n2n_pipeline.inference import denoise
from n2n_pipeline.inference.forward import Canvas, run_network
from n2n_pipeline.inference.job import Job, Order, plan_job
from n2n_pipeline.model import UNet
from n2n_pipeline.progress import set_quiet
from n2n_pipeline.records import Ledger
from n2n_pipeline.store import write_movie

RESULTS = Path(__file__).parent / "results"
FRAME_PX = 1024
WINDOW = 16
MEAN_COUNT = 8.0
NETWORK = NetworkConfig(width=12, depth=2, fold=4)
CONFIG = DenoiseConfig(tile=TileConfig(halo_px="exact"), augment="off", halves=True, memory_gb=4)


def make_inputs(folder: Path, frames: int) -> None:
    """Write a movie of Poisson counts and an untrained network."""
    counts = np.random.default_rng(0).poisson(MEAN_COUNT, (frames, FRAME_PX, FRAME_PX)).astype(np.uint8)
    write_movie(folder / "movie.zarr", counts)
    torch.manual_seed(0)
    card = ModelCard(network=NETWORK, mean=MEAN_COUNT, scale=MEAN_COUNT**0.5, window=WINDOW)
    save_model(folder / "model", UNet(NETWORK), card)


def plan(folder: Path) -> Job:
    """Plan to denoise the movie."""
    shutil.rmtree(folder / "denoised.zarr", ignore_errors=True)
    return plan_job(Order(folder / "movie.zarr", folder / "model", folder / "denoised.zarr", CONFIG, "cpu"))


def one_after_another(folder: Path) -> dict[str, float]:
    """Denoise the movie in one thread, and return the seconds of every stage."""
    job = plan(folder)
    seconds = {"read": 0.0, "compute": 0.0, "write": 0.0}
    with Ledger(job.order.output, job.fingerprint, [block.unit for block in job.blocks]) as ledger:
        job.create_output()
        pieces = (piece for block in job.blocks for piece in job.plan_pieces(block))
        for block, of_block in groupby(pieces, lambda piece: piece.block):
            canvases = [Canvas(job.plan_block(block), len(block.frames)) for _ in job.arrays]
            for piece in of_block:
                start = time.perf_counter()
                halves = job.read(piece)
                read = time.perf_counter()
                denoised = [run_network(job.denoiser, *half) for half in halves]
                frame = piece.frames.start - block.frames.start
                for canvas, image in zip(canvases, (np.mean(denoised, axis=0), *denoised), strict=True):
                    canvas.blend(piece.tile, [image], slice(frame, frame + 1))
                seconds["read"] += read - start
                seconds["compute"] += time.perf_counter() - read
            start = time.perf_counter()
            images = {name: canvas.image for name, canvas in zip(job.arrays, canvases, strict=True)}
            denoise._write_block(job, block, images, ledger.stamp)
            seconds["write"] += time.perf_counter() - start
        ledger.complete()
    return seconds


def time_job(job: Job) -> float:
    """Do a job as `n2n-pipeline denoise` does, and return the seconds of reading, computing and writing."""
    with Ledger(job.order.output, job.fingerprint, [block.unit for block in job.blocks]) as ledger:
        job.create_output()
        start = time.perf_counter()
        denoise.denoise_blocks(job, job.blocks, ledger.stamp, step=lambda _tiles: None)
        seconds = time.perf_counter() - start
        ledger.complete()
    return seconds


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    told = parser.parse_args()
    set_quiet()
    tune_allocator()
    set_threads(1)
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        make_inputs(Path(name), told.frames)
        time_job(plan(Path(name)))  # compiles what is compiled at first use
        for _ in range(told.rounds):
            rounds.append(one_after_another(Path(name)) | {"wall": time_job(plan(Path(name)))})
            print(rounds[-1], flush=True)
    larger = [max(one["compute"], one["read"] + one["write"]) for one in rounds]
    ratios = {
        "compute / (read + write)": [one["compute"] / (one["read"] + one["write"]) for one in rounds],
        "wall / the larger of both": [one["wall"] / most for one, most in zip(rounds, larger, strict=True)],
        "wall / all one after another": [one.pop("wall") / sum(one.values()) for one in map(dict, rounds)],
    }
    medians = {name: round(statistics.median(values), 2) for name, values in ratios.items()}
    result = {"ratios": medians, "rounds_seconds": rounds, "frames": told.frames, "network": NETWORK.model_dump()}
    result |= {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    result |= {"torch": torch.__version__, "window": WINDOW, "frame_px": FRAME_PX}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "overlap_cpu.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(medians, indent=1))


if __name__ == "__main__":
    main()
