"""The ways to denoise a movie that ``quality.py`` compares, each from the same prepared movie.

A method returns the scored frames as it denoised them, ``(n, y, x)``, and figures of its own. What learns, does so
in a fresh process for the same wall time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from environments import python_of, with_package
from prepared import Prepared, store_truth
from scipy import ndimage
from training import Student, to_grey, write_pngs

import n2n_pipeline as n2n
from n2n_pipeline.averages import read_pairs
from n2n_pipeline.checkpoint import ModelCard, load_model, save_model
from n2n_pipeline.config import DenoiseConfig, NetworkConfig, RunConfig, TrainConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.device import set_threads, tune_allocator
from n2n_pipeline.metrics.quality import score_frame
from n2n_pipeline.model import PAPER_NETWORK, UNet
from n2n_pipeline.starting import STARTING
from n2n_pipeline.store import open_store
from n2n_pipeline.sweep import default_windows
from n2n_pipeline.training import patches, train
from n2n_pipeline.training.stacks import MovieFrames

Floats = npt.NDArray[np.floating[Any]]
Figures = dict[str, Any]

SIGMAS_PX = (0.0, 0.7, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
PAPER = TrainConfig(batch=4, patch_px=256, lr=1e-3, ema_decay=0)
STUDENT = TrainConfig(batch=4, patch_px=256)
STUDENT_FRAMES = 8
PEERS = {
    "careamics": ("careamics", "careamics_n2n.py"),
    "topaz": ("topaz", "topaz_unet.py"),
    "bm3d": ("bm3d", "bm3d_filter.py"),
    "nlm": (None, "nlm_filter.py"),
}


class Budget(NamedTuple):
    """What every method is given."""

    minutes: float
    seed: int
    environments: Path


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


def settings(method: str, prepared: Prepared, budget: Budget) -> RunConfig:
    """Return what one of the package's trainings is told."""
    chosen = TrainConfig()
    if method == "paper":
        start = prepared.work / "paper.start"
        torch.manual_seed(budget.seed)
        card = ModelCard(network=PAPER_NETWORK, mean=0, scale=1, window=2)
        save_model(start, UNet(PAPER_NETWORK), card)
        chosen = PAPER.model_copy(update={"init": start})
    chosen = chosen.model_copy(update={"time_minutes": budget.minutes, "window": prepared.window})
    return RunConfig(seed=budget.seed, train=chosen)


def train_here(method: str, prepared: Prepared, budget: Budget) -> None:
    """Train one method in this process."""
    if method == "student":
        train_student(prepared, budget)
        return
    tune_allocator()
    if method == "clean":
        WithTruth.truth = store_truth(prepared)
        train.PatchSampler = WithTruth  # type: ignore[misc]
    train.train_model([prepared.store], prepared.work / method, settings(method, prepared, budget))


def train_in_fresh_process(method: str, prepared: Prepared, budget: Budget) -> float:
    """Train one method anew; return the seconds that it took, start-up and all."""
    shutil.rmtree(prepared.work / method, ignore_errors=True)
    script = str(Path(__file__).with_name("quality.py"))
    told = ["--minutes", str(budget.minutes), "--seed", str(budget.seed)]
    words = [sys.executable, script, *told, "--child", method, str(prepared.folder), str(prepared.work)]
    start = time.monotonic()
    subprocess.run(words, env=with_package(), check=True)
    return time.monotonic() - start


def by_the_package(method: str, prepared: Prepared, budget: Budget) -> tuple[Floats, Figures]:
    """Train, denoise and judge with the package."""
    seconds = train_in_fresh_process(method, prepared, budget)
    output = prepared.work / f"{method}.zarr"
    shutil.rmtree(output, ignore_errors=True)
    began = time.monotonic()
    n2n.denoise(prepared.store, prepared.work / method, output)
    figures = {"trained_s": round(seconds, 1), "denoised_s": round(time.monotonic() - began, 1)}
    figures["steps"] = load_model(prepared.work / method).card.steps
    return read_scored(prepared, output), figures | judge_output(output)


def preview(method: str, prepared: Prepared, budget: Budget) -> tuple[Floats, Figures]:
    """Denoise with the starting weights, without any training."""
    output = prepared.work / f"{method}.zarr"
    shutil.rmtree(output, ignore_errors=True)
    n2n.denoise(prepared.store, STARTING, output, DenoiseConfig(window=prepared.window))
    return read_scored(prepared, output), judge_output(output)


def judge_output(output: Path) -> Figures:
    """Return the verdict on an output, and what stands against it."""
    judged = n2n.evaluate(output)
    remarks = [
        f"{found['check']}: {found['verdict']}" for found in judged["verdicts"] if found["verdict"] != "pass"
    ]
    return {"verdict": judged["verdict"], "remarks": remarks}


def read_scored(prepared: Prepared, output: Path) -> Floats:
    """Return the frames that are scored."""
    store = open_store(output)
    return np.stack([store.read(slice(t, t + 1))[0] for t in prepared.scored])


def by_a_peer(method: str, prepared: Prepared, budget: Budget) -> tuple[Floats, Figures]:
    """Run another library's script in its environment."""
    peer, script = PEERS[method]
    python = python_of(peer, budget.environments) if peer else Path(sys.executable)
    output = prepared.work / f"{method}.npy"
    path = Path(__file__).parent / "peers" / script
    words = [str(python), str(path), str(prepared.work), str(60 * budget.minutes), str(output)]
    environment = {**os.environ, "PYTHONPATH": ""}
    began = time.monotonic()
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures = {"seconds": round(time.monotonic() - began, 1)}
    told = done.stdout.strip().splitlines()[-1:]
    frames = prepared.place(np.load(output), prepared.window)
    return frames, figures | ({"said": told[0]} if told else {})


def train_student(prepared: Prepared, budget: Budget) -> None:
    """Train by the student project's recipe and denoise the scored frames: adjacent averages, no alignment.

    Averages are over 8 frames; the target of each is the average over the next 8, and what is denoised is the one
    about the frame.
    """
    folder = prepared.work / "student"
    store = open_store(prepared.store)
    movie = CorrectedMovie(replace(store, shifts=None))
    n_frames, height, width = store.info.shape
    whole = (slice(0, height), slice(0, width))
    starts = range(STUDENT_FRAMES, n_frames - STUDENT_FRAMES + 1, STUDENT_FRAMES)
    pair = read_pairs(movie, starts, whole, 2 * STUDENT_FRAMES, "adjacent")
    folder.mkdir()
    write_pngs(folder / "even", pair.even)
    write_pngs(folder / "odd", pair.odd)
    set_threads()
    torch.manual_seed(budget.seed)
    ends = time.monotonic() + 60 * budget.minutes
    student = Student(folder, NetworkConfig(kind="unet-transpose"), STUDENT, torch.device("cpu"))
    steps = 0
    while time.monotonic() < ends:
        student.step()
        steps += 1
    halves = read_pairs(movie, prepared.scored, whole, STUDENT_FRAMES)
    averages = (halves.even + halves.odd) / 2
    with torch.inference_mode():
        inputs = [torch.from_numpy(to_grey(image)).float()[None, None] / 255 for image in averages]
        np.save(prepared.work / "student.npy", [student.network(image)[0, 0].numpy() for image in inputs])
    print(f"student: {steps} updates on {len(starts)} pairs", flush=True)


def by_the_student(_method: str, prepared: Prepared, budget: Budget) -> tuple[Floats, Figures]:
    """Train by the student project's recipe."""
    seconds = train_in_fresh_process("student", prepared, budget)
    return np.load(prepared.work / "student.npy"), {"trained_s": round(seconds, 1)}


def by_averaging(_method: str, prepared: Prepared, _budget: Budget) -> tuple[Floats, Figures]:
    """Take the averages as they are."""
    averages = np.load(prepared.work / "averages.npy")
    return prepared.place(averages, prepared.window), {"window": prepared.window}


def by_the_best_filter(_method: str, prepared: Prepared, _budget: Budget) -> tuple[Floats, Figures]:
    """Choose window and Gaussian with the truth."""
    truth, movie = prepared.truth(), prepared.corrected()
    whole = tuple(slice(0, side) for side in truth.shape[1:])
    best: tuple[float, int, float, Floats] | None = None
    for window in default_windows(movie.store.info.shape[0]):
        pair = read_pairs(movie, prepared.scored, (whole[0], whole[1]), window)
        total, count = pair.even * pair.even_count + pair.odd * pair.odd_count, pair.even_count + pair.odd_count
        for sigma in SIGMAS_PX:
            spread = (0, sigma, sigma)
            parts = (
                ndimage.gaussian_filter(part, spread, mode="mirror") if sigma else part for part in (total, count)
            )
            filtered = prepared.place(next(parts) / np.maximum(next(parts), 1e-6), window)
            snr = float(np.mean([score_frame(*both).snr_db for both in zip(filtered, truth, strict=True)]))
            if best is None or snr > best[0]:
                best = snr, window, sigma, filtered
    if best is None:
        raise ValueError("no window fits the movie")
    return best[3], {"window": best[1], "sigma_px": best[2]}


METHODS: dict[str, Callable[[str, Prepared, Budget], tuple[Floats, Figures]]] = {
    "default": by_the_package,
    "preview": preview,
    "clean": by_the_package,
    "paper": by_the_package,
    "careamics": by_a_peer,
    "topaz": by_a_peer,
    "student": by_the_student,
    "bm3d": by_a_peer,
    "nlm": by_a_peer,
    "linear": by_the_best_filter,
    "average": by_averaging,
}
