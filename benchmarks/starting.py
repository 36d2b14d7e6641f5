"""What the starting weights are worth: SNR against seconds of training, from them and from random weights.

    python benchmarks/twins.py TWINS --unseen                 # in an environment with de-twin, a minute
    python benchmarks/starting.py TWINS/* --work DIR          # 9 minutes a movie on two cores
    python benchmarks/starting.py --empty                     # blank and planted movies, 4 minutes

For each movie, which pretraining never saw, two trainings run at the same time, each on one core, for five
minutes: `n2n-pipeline train` as it comes, and with ``--init none``. Seed, network, batch, learning rate and its
schedule are the same. At each mark the weights are kept that the training would end with, and some frames are
denoised with them and scored against the truth. At 0 seconds stands the preview.

With --empty: movies of uniform flux at four doses are denoised with the preview and after training. ``blank`` is
the standard deviation of the output, low-passed at 8 px, over that of the plain average of the same frames;
``erased`` is a particle's place in a movie from which that particle was erased, in units of its contrast.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from environments import with_package
from prepared import prepare
from scipy import ndimage

import n2n_pipeline as n2n
from n2n_pipeline.checkpoint import save_model
from n2n_pipeline.config import DenoiseConfig, RunConfig, TrainConfig
from n2n_pipeline.device import set_threads, tune_allocator
from n2n_pipeline.evaluation.evaluate import score_against
from n2n_pipeline.files import read_json
from n2n_pipeline.progress import set_quiet
from n2n_pipeline.sources import open_movie
from n2n_pipeline.starting import STARTING
from n2n_pipeline.store import open_store, write_movie
from n2n_pipeline.training import loop, train
from n2n_pipeline.training.state import copy_into

RESULTS = Path(__file__).parent / "results" / "starting.json"
MARKS_S = (10, 20, 30, 45, 60, 90, 120, 200, 300)
STARTS = ("starting", "none")
FRAMES = 8
DOSES = (0.05, 0.2, 0.8, 3.0)  # electrons per pixel and frame
EMPTY_SHAPE = (32, 256, 256)
LOW_PASS_PX = 8.0
PARTICLES = ((96, 80), (160, 176))  # y, x; the second is erased
PARTICLE_PX, CONTRAST = 6.0, 0.35


class Watched(loop.Trainer):
    """Trains, and keeps at each mark the weights that a training would end with."""

    marks: ClassVar = list(MARKS_S)

    def _after_step(self) -> None:
        super()._after_step()
        while self.marks and self.state.counters.seconds >= self.marks[0]:
            self.validate()  # as at the end of a budget: the weights are then the best on held-out squares
            network = self.denoiser.network
            copy_into(list(network.parameters()), self.state.best)
            card = self.task.card.model_copy(update={"steps": self.state.counters.step})
            save_model(self.task.output.with_name(f"{self.task.output.name}-{self.marks.pop(0)}"), network, card)


def train_here(work: Path, start: str, seconds: float, seed: int) -> None:
    """Train in this process, on one core."""
    tune_allocator()
    set_threads(1)
    train.Trainer = Watched  # type: ignore[misc]
    window = read_json(work / "window.json")["window"]
    config = TrainConfig(init=start, time_minutes=seconds / 60, window=window)
    train.train_model([work / "movie.zarr"], work / start, RunConfig(seed=seed, threads=1, train=config))


def score(work: Path, model: Path, truth: Path, name: str) -> float:
    """Denoise some frames with a model, and return their SNR in dB."""
    n_frames = open_store(work / "movie.zarr").info.shape[0]
    first = (n_frames - FRAMES) // 2
    output = work / f"{name}.zarr"
    n2n.denoise(work / "movie.zarr", model, output, DenoiseConfig(frames=(first, first + FRAMES)))
    part = work / "part.zarr"
    if not part.exists():
        write_movie(part, open_movie(truth).read_frames(first, first + FRAMES))
    return round(score_against(open_store(output), part).snr_db, 2)


def measure(folder: Path, work: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Train from both starts at once, and score what was kept of them."""
    work.mkdir(parents=True, exist_ok=True)
    prepare(folder, work)
    words = [sys.executable, __file__, "--seconds", str(seconds), "--seed", str(seed), "--child", str(work)]
    running = [subprocess.Popen([*words, start], env=with_package()) for start in STARTS]
    if any(process.wait() for process in running):
        raise SystemExit(f"{folder.name}: a training failed")
    truth = folder / "truth.mrc"
    found: dict[str, Any] = {"preview": score(work, STARTING, truth, "preview")}
    for start in STARTS:
        marks = [mark for mark in MARKS_S if mark <= seconds]
        found[start] = {mark: score(work, work / f"{start}-{mark}", truth, f"{start}{mark}") for mark in marks}
    return found


def expose(dose: float, particles: tuple[tuple[int, int], ...], seed: int) -> np.ndarray:
    """Return electrons counted in a field with some particles, darker than the rest."""
    _, y, x = np.mgrid[:1, : EMPTY_SHAPE[1], : EMPTY_SHAPE[2]]
    scene = np.ones(EMPTY_SHAPE[1:])
    for row, col in particles:
        scene -= CONTRAST * np.exp(-((y[0] - row) ** 2 + (x[0] - col) ** 2) / (2 * PARTICLE_PX**2))
    return np.random.default_rng(seed).poisson(dose * scene, EMPTY_SHAPE).astype(np.uint8)


def denoise_middle(store: Path, model: Path, output: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a denoised frame and the plain average of the frames that it was made of."""
    t = EMPTY_SHAPE[0] // 2
    window = None if model != STARTING else EMPTY_SHAPE[0]
    n2n.denoise(store, model, output, DenoiseConfig(frames=(t, t + 1), window=window))
    return open_store(output).read(slice(0, 1))[0], open_store(store).read(slice(None)).mean(axis=0)


def measure_empty(work: Path, seed: int) -> dict[str, Any]:
    """Denoise blank movies and one with a particle erased, with the preview and after training."""
    found: dict[str, Any] = {"blank": {}, "erased": {}}
    pictures = []
    for dose in DOSES:
        for name, particles in (("blank", ()), ("erased", PARTICLES[:1])):
            place = work / f"{name}{dose:g}"
            write_movie(place / "movie.zarr", expose(dose, particles, seed))
            config = RunConfig(seed=seed, train=TrainConfig(window=EMPTY_SHAPE[0]))
            train.train_model([place / "movie.zarr"], place / "model", config)
            figures = {}
            for way, model in (("preview", STARTING), ("trained", place / "model")):
                image, average = denoise_middle(place / "movie.zarr", model, place / f"{way}.zarr")
                measured = structure(image, average) if name == "blank" else contrast_left(image, dose)
                figures[way] = round(measured, 3)
                pictures.append((image / dose - 1, average / dose - 1))
            found[name][f"{dose:g}"] = figures
            print(name, dose, figures, flush=True)
    draw(pictures)
    return found


def structure(image: np.ndarray, average: np.ndarray) -> float:
    """Return how much stronger the output's low frequencies are than those of the average."""
    low = [ndimage.gaussian_filter(part, LOW_PASS_PX, mode="mirror").std() for part in (image, average)]
    return float(low[0] / low[1])


def contrast_left(image: np.ndarray, dose: float) -> float:
    """Return how dark the erased particle's place is beside its surroundings, over the particle's contrast."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    away = np.hypot(y - PARTICLES[1][0], x - PARTICLES[1][1])
    inside, around = image[away < PARTICLE_PX].mean(), image[(away > 20) & (away < 40)].mean()
    return float((around - inside) / (CONTRAST * dose))


def draw(pictures: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write the outputs above the averages, all at the same contrast, to look at."""
    rows = [np.hstack([pair[which][::2, ::2] for pair in pictures]) for which in (0, 1)]
    grey = np.clip(128 + 127 * np.vstack(rows) / CONTRAST, 0, 255).astype(np.uint8)
    PIL.Image.fromarray(grey).save(RESULTS.with_name("starting_empty.png"))


def summarise(movies: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the least gain over the random start at each mark, and what a minute is worth."""
    common = sorted({int(mark) for found in movies.values() for mark in found["none"]})
    gains = {
        mark: [found["starting"][mark] - found["none"][mark] for found in movies.values() if mark in found["none"]]
        for mark in common
    }
    summary: dict[str, Any] = {
        "mean gain, dB": {mark: round(float(np.mean(values)), 2) for mark, values in gains.items()},
        "least gain, dB": {mark: round(min(values), 2) for mark, values in gains.items()},
    }
    both = [(found["starting"].get(60), found["none"].get(200)) for found in movies.values()]
    if all(None not in pair for pair in both):
        summary["60 s over random 200 s, dB"] = round(float(np.mean([a - b for a, b in both])), 2)
    return summary


def _by_mark(scores: Any) -> Any:
    """Read marks as the numbers that they were before they became JSON's keys."""
    return {int(mark): snr for mark, snr in scores.items()} if isinstance(scores, dict) else scores


def main() -> None:
    """Measure, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=MARKS_S[-1])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--empty", action="store_true", help="blank and planted movies instead")
    parser.add_argument("--child", nargs=2, metavar=("WORK", "START"), help=argparse.SUPPRESS)
    told = parser.parse_args()
    set_quiet(True)
    if told.child:
        train_here(Path(told.child[0]), told.child[1], told.seconds, told.seed)
        return
    if told.empty:
        with tempfile.TemporaryDirectory() as scratch:
            found = measure_empty(told.work or Path(scratch), told.seed)
        kept = (read_json(RESULTS) or {}) | {"empty": found}
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
        return
    movies = {}
    with tempfile.TemporaryDirectory() as scratch:
        for folder in told.folders:
            work = (told.work or Path(scratch)) / folder.name
            movies[folder.name] = measure(folder, work, told.seconds, told.seed)
            print(folder.name, json.dumps(movies[folder.name]), flush=True)
    kept = read_json(RESULTS) or {}
    known = {
        name: {way: _by_mark(scores) for way, scores in ways.items()}
        for name, ways in kept.get("movies", {}).items()
    }
    kept["movies"] = known | movies
    kept |= {"summary": summarise(kept["movies"]), "cores": 1, "torch": torch.__version__}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(kept["summary"], indent=1))


if __name__ == "__main__":
    main()
