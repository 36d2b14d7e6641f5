"""How good a training is after equal time, on movies whose truth is known.

    python benchmarks/quality.py [FOLDER...]              # 90 seconds of training each, some 8 minutes a movie
    python benchmarks/quality.py --work DIR --part train  # only train; --part score later scores what was trained

A folder holds ``movie.mrc``, ``truth.mrc`` and, where the camera needs them, ``dark.mrc`` and ``gain.mrc``.
Without one, the folders in the one named by ``N2N_DATA`` are taken. Every movie is stored, aligned and swept once
by the package's own commands; then each method trains for the same wall time, on the same pairs, with the same
seed, in a process of its own, and denoises with the same defaults. The score is the mean over all frames of the
SNR against the truth, in dB. Figures of movies and methods that are not measured this time stay in the results.

    default   `n2n-pipeline train` as it comes
    paper     the Noise2Noise paper's network and recipe: Table 2, He's initial weights, 4 patches of 256 px, rate
              0.001 with a ramp down at the end, no averaging of weights
    clean     the default, with the truth of the target's frames in place of their counts (Noise2Clean)
    linear    the best averaging window with the best Gaussian, chosen with the truth; no training
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch
from scipy import ndimage

import n2n_pipeline as n2n
from n2n_pipeline.averages import read_pairs
from n2n_pipeline.checkpoint import ModelCard, load_model, save_model
from n2n_pipeline.config import IngestConfig, RunConfig, TrainConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.device import tune_allocator
from n2n_pipeline.evaluation.evaluate import score_against
from n2n_pipeline.files import read_json
from n2n_pipeline.metrics.quality import score_frame
from n2n_pipeline.model import PAPER_NETWORK, UNet
from n2n_pipeline.progress import set_quiet
from n2n_pipeline.store import open_store, write_movie, write_shifts
from n2n_pipeline.sweep import default_windows
from n2n_pipeline.training import patches, train
from n2n_pipeline.training.stacks import MovieFrames

RESULTS = Path(__file__).parent / "results" / "quality.json"
TRAININGS = ("default", "paper", "clean")
SIGMAS_PX = (0.0, 0.7, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
CHOOSING_FRAMES = 6
PAPER = TrainConfig(batch=4, patch_px=256, lr=1e-3, ema_decay=0)


class WithTruth(patches.PatchSampler):
    """Draws the patches that its parent draws, with the truth of the targets' frames in place of their counts."""

    truth: Path

    def __init__(self, pool: Any, recipe: patches.Recipe, held_out: Sequence[Sequence[patches.Block]]) -> None:
        super().__init__(pool, recipe, held_out)
        movie = MovieFrames(CorrectedMovie(open_store(self.truth)))
        self._clean = patches.PatchSampler(
            train.Pool([movie], recipe.windows, recipe.seed, 2**33), recipe, held_out
        )

    def draw_batch(self, step: int, indices: range) -> patches.Batch:
        """Draw a step's patches."""
        clean = self._clean.draw_batch(step, indices)
        return super().draw_batch(step, indices)._replace(target=clean.target)


def prepare(folder: Path, work: Path, seed: int) -> None:
    """Store and align a movie, sweep its windows, and store its truth in the movie's units with the same drift."""
    given = {name: folder / f"{name}.mrc" for name in ("dark", "gain") if (folder / f"{name}.mrc").is_file()}
    n2n.ingest(folder / "movie.mrc", work / "movie.zarr", IngestConfig(**given))
    if not (work / "window.json").exists():
        n2n.align(work / "movie.zarr")
        n2n.sweep(work / "movie.zarr", output=work / "window.json")
    store = open_store(work / "movie.zarr")
    counts, valid = CorrectedMovie(store).read(*(slice(0, side) for side in store.info.shape))
    truth = mrcfile.read(folder / "truth.mrc").astype(np.float32)
    seen = np.broadcast_to(valid, counts.shape)
    slope, offset = np.polyfit(truth[seen].astype(float), counts[seen].astype(float), 1)
    write_movie(work / "truth.zarr", (slope * truth + offset).astype(np.float32))
    write_shifts(work / "truth.zarr", store.shifts)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_model(
            work / "paper.start", UNet(PAPER_NETWORK), ModelCard(network=PAPER_NETWORK, mean=0, scale=1, window=2)
        )


def settings(method: str, work: Path, minutes: float, seed: int) -> RunConfig:
    """Return what a method trains with."""
    chosen = PAPER.model_copy(update={"init": work / "paper.start"}) if method == "paper" else TrainConfig()
    window = read_json(work / "window.json")["window"]
    chosen = chosen.model_copy(update={"time_minutes": minutes, "window": window})
    return RunConfig(seed=seed, train=chosen)


def train_here(method: str, work: Path, config: RunConfig) -> None:
    """Train one method in this process."""
    tune_allocator()
    if method == "clean":
        WithTruth.truth = work / "truth.zarr"
        train.PatchSampler = WithTruth  # type: ignore[misc]
    train.train_model([work / "movie.zarr"], work / method, config)


def train_in_fresh_process(method: str, work: Path, config: RunConfig) -> float:
    """Train one method, unless it was; return the seconds that it took, start-up and all."""
    words = [sys.executable, __file__, "--child", method, str(work), config.model_dump_json()]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    start = time.monotonic()
    subprocess.run(words, env=environment, check=True)
    return time.monotonic() - start


def score(method: str, folder: Path, work: Path) -> dict[str, Any]:
    """Denoise with what was trained, and compare with the truth."""
    n2n.denoise(work / "movie.zarr", work / method, work / f"{method}.zarr")
    found = score_against(open_store(work / f"{method}.zarr"), folder / "truth.mrc")
    steps = load_model(work / method).card.steps
    return {"snr_db": round(found.snr_db, 2), "ssim": round(found.ssim, 3), "steps": steps}


def score_linear(folder: Path, work: Path) -> dict[str, Any]:
    """Try windows and Gaussians on some frames, and score the best on all."""
    truth = mrcfile.read(folder / "truth.mrc").astype(np.float32)
    movie = CorrectedMovie(open_store(work / "movie.zarr"))
    n_frames = len(truth)
    some = range(n_frames // (2 * CHOOSING_FRAMES), n_frames, n_frames // CHOOSING_FRAMES)
    found = {
        (window, sigma): filtered_snr(movie, truth, some, window, sigma)
        for window in default_windows(n_frames)
        for sigma in SIGMAS_PX
    }
    window, sigma = max(found, key=lambda choice: found[choice])
    snr = filtered_snr(movie, truth, range(n_frames), window, sigma)
    return {"snr_db": round(snr, 2), "window": window, "sigma_px": sigma}


def filtered_snr(movie: CorrectedMovie, truth: np.ndarray, frames: range, window: int, sigma: float) -> float:
    """Average each frame's window along the drift, filter it, and return the mean SNR in dB."""
    whole = (slice(0, truth.shape[1]), slice(0, truth.shape[2]))
    pair = read_pairs(movie, frames, whole, window)
    scores = []
    for even, odd, n_even, n_odd, true in zip(*pair, truth[frames.start : frames.stop : frames.step], strict=True):
        total, count = even * n_even + odd * n_odd, n_even + n_odd
        if sigma:
            total, count = (ndimage.gaussian_filter(part, sigma, mode="mirror") for part in (total, count))
        scores.append(score_frame(total / np.maximum(count, 1e-6), true).snr_db)
    return float(np.mean(scores))


def measure(folder: Path, work: Path, told: argparse.Namespace) -> dict[str, Any]:
    """Train and score the methods asked for on one movie."""
    work.mkdir(parents=True, exist_ok=True)
    prepare(folder, work, told.seed)
    methods = [method for method in told.methods if method in TRAININGS]
    found: dict[str, Any] = {"window": read_json(work / "window.json")["window"]}
    if told.part in ("both", "train"):
        for method in methods:
            seconds = train_in_fresh_process(method, work, settings(method, work, told.minutes, told.seed))
            print(f"{folder.name}: {method} trained in {seconds:.0f} s", flush=True)
    if told.part in ("both", "score"):
        found |= {method: score(method, folder, work) for method in methods}
        if "linear" in told.methods:
            found["linear"] = score_linear(folder, work)
    return found


def summarise(movies: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the mean and the least gain of the default over each other method, over the movies that have both."""
    summary = {}
    for other in ("paper", "linear", "clean"):
        gains = [
            found["default"]["snr_db"] - found[other]["snr_db"]
            for found in movies.values()
            if "default" in found and other in found
        ]
        if gains:
            names = {"mean_db": round(float(np.mean(gains)), 2), "least_db": round(min(gains), 2)}
            summary[f"default over {other}"] = names | {"movies": len(gains)}
    return summary


def main() -> None:
    """Measure, print a table, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--minutes", type=float, default=1.5, help="of training, each")
    parser.add_argument("--methods", nargs="+", choices=(*TRAININGS, "linear"), default=(*TRAININGS, "linear"))
    parser.add_argument("--part", choices=("train", "score", "both"), default="both")
    parser.add_argument("--work", type=Path, help="where models are kept; default: nowhere")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=3, metavar=("METHOD", "WORK", "CONFIG"), help=argparse.SUPPRESS)
    told = parser.parse_args()
    set_quiet(True)
    if told.child:
        method, work, config = told.child
        train_here(method, Path(work), RunConfig.model_validate_json(config))
        return
    folders = told.folders or sorted(path.parent for path in Path(os.environ["N2N_DATA"]).glob("*/truth.mrc"))
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for folder in folders:
            found[folder.name] = measure(folder, (told.work or Path(scratch)) / folder.name, told)
            print(folder.name, json.dumps(found[folder.name]), flush=True)
    if told.part == "train":
        return
    kept = read_json(RESULTS) or {"movies": {}}
    for name, figures in found.items():
        kept["movies"][name] = kept["movies"].get(name, {}) | figures
    kept["summary"] = summarise(kept["movies"])
    kept |= {"minutes": told.minutes, "seed": told.seed, "cores": os.cpu_count(), "torch": torch.__version__}
    kept["machine"] = platform.processor() or platform.machine()
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(kept["summary"], indent=1))


if __name__ == "__main__":
    main()
