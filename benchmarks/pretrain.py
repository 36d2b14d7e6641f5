"""Train the weights that `n2n-pipeline train` starts from; see docs/decisions/0017 for what they are and are not.

    python benchmarks/twins.py MOVIES --count 100                      # in an environment with de-twin, 5 minutes
    python benchmarks/pretrain.py MOVIES WORK --network cpu            # half an hour on two cores
    python benchmarks/pretrain.py MOVIES WORK --network full           # 15 minutes on one core
    python benchmarks/pretrain.py MOVIES WORK --network cpu --install  # put them into the package

Every movie is stored and aligned by the package's own commands. Then it is plain Noise2Noise, with the package's
own trainer: random halves of windows of several lengths, one as the target of the other. No truth is read. What
differs from training on one movie: each patch is normalised as its movie and window would be if they were alone,
which makes the weights fit any movie. Movies that are kept aside are validated on. A run that was stopped goes on.
With --install the weights and their card go into the package, and the losses into ``results/``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import n2n_pipeline as n2n
from n2n_pipeline.checkpoint import WEIGHTS, ModelCard, load_model, place_network, save_model
from n2n_pipeline.config import IngestConfig, NetworkConfig, TrainConfig
from n2n_pipeline.device import autocast_dtype, choose_device, set_threads, tune_allocator
from n2n_pipeline.manifest import SHIFTS, content_digest
from n2n_pipeline.model import CPU_NETWORK, PAPER_NETWORK, UNet, predict_mean
from n2n_pipeline.starting import FOLDER
from n2n_pipeline.training.distributed import Ranks
from n2n_pipeline.training.loop import Task, Trainer
from n2n_pipeline.training.patches import Batch, PatchSampler, Recipe
from n2n_pipeline.training.plan import measure_normalisation, open_movies
from n2n_pipeline.training.pool import NORMALISATION, Pool
from n2n_pipeline.training.stacks import Frames
from n2n_pipeline.training.state import TrainingState, copy_into
from n2n_pipeline.training.validation import ValidationSet

RESULTS = Path(__file__).parent / "results"
WINDOWS = (4, 8, 16, 32, 48)
SEED = 17
NETWORKS = {"cpu": CPU_NETWORK, "full": PAPER_NETWORK}
STEPS = {"cpu": 16_000, "full": 1000}
LEARNING_RATE = 1e-3  # of many movies at once, 3e-3 diverges
KEPT_ASIDE = 8  # every eighth movie, from the fifth on
VALIDATION_SAMPLES = 64
NORMALISATION_SAMPLES = 32
SETTINGS = {"steps", "batch", "patch_px", "lr", "loss", "ema_decay"}
MEMORY_BYTES = 4 * 10**9
UNITS = ModelCard(network=CPU_NETWORK, mean=0.0, scale=1.0, window=max(WINDOWS), windows=WINDOWS)


class EachAlone(PatchSampler):
    """Draws patches in units of their own movie and window: mean 0, spread 1."""

    def __init__(self, movies: Sequence[Frames], recipe: Recipe) -> None:
        nothing: list[tuple[()]] = [()] * len(movies)
        super().__init__(Pool(movies, recipe.windows, recipe.seed, MEMORY_BYTES), recipe, nothing)
        self._units = [self._measure(movie) for movie in movies]

    def _measure(self, movie: Frames) -> dict[int, tuple[float, float]]:
        """Return a movie's mean and the spread of its half-window averages, by the frames in a half."""
        units = {}
        for window in self._recipe.windows:
            pool = Pool([movie], [window], SEED, MEMORY_BYTES)
            sampler = PatchSampler(pool, self._recipe._replace(windows=(window,)), [()])
            batch = sampler.draw_batch(0, range(NORMALISATION, NORMALISATION + NORMALISATION_SAMPLES))
            mean, scales = measure_normalisation(batch)
            units[window // 2] = (mean, scales[-1])
            pool.close()
        return units

    def _draw(self, key: tuple[int, int, int]) -> Batch:
        patch = super()._draw(key)
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
        units = self._units[self._pool.choose(key[1], rng).movie]  # the movie that its parent chose
        mean, scale = units[min(units, key=lambda frames: abs(frames - patch.counts.max()))]
        return patch._replace(values=(patch.values - mean) / scale, target=(patch.target - mean) / scale)


def prepare(folder: Path, work: Path) -> Path:
    """Store and align a movie, unless it was."""
    store = work / f"{folder.name}.zarr"
    given = {name: folder / f"{name}.mrc" for name in ("dark", "gain") if (folder / f"{name}.mrc").is_file()}
    n2n.ingest(folder / "movie.mrc", store, IngestConfig(**given))
    if not (store / SHIFTS).exists():
        n2n.align(store)
    return store


def pretrain(stores: Sequence[Path], output: Path, network: NetworkConfig, steps: int, device: str) -> None:
    """Train to the end of the budget, and save the weights with their card."""
    aside = [store for number, store in enumerate(stores) if number % KEPT_ASIDE == KEPT_ASIDE // 2]
    shown = [store for store in stores if store not in aside]
    config = TrainConfig(steps=steps, lr=LEARNING_RATE, window=WINDOWS, validate_every=200, save_every=200)
    recipe = Recipe(SEED, WINDOWS, config.split, config.patch_px)
    sampler = EachAlone(open_movies(shown, config).frames, recipe)
    others = EachAlone(open_movies(aside, config).frames, recipe._replace(seed=SEED + 1))
    chosen = choose_device(device)
    torch.manual_seed(SEED)
    started = UNet(network)
    predict_mean(started)
    state = TrainingState(place_network(started, chosen).train())
    card = UNITS.model_copy(update={"network": network})
    precision = "bfloat16" if autocast_dtype(chosen) == torch.bfloat16 else "float32"
    validation = ValidationSet(others.draw_batch(0, range(VALIDATION_SAMPLES)), None)
    Trainer(
        state,
        Task(config, steps, LEARNING_RATE, card, sampler, validation, precision, output),
        Ranks(device=chosen),
    ).run()
    copy_into(list(state.network.parameters()), state.best)
    save_model(output, state.network, card.model_copy(update=describe(shown, aside, config)))


def describe(shown: Sequence[Path], aside: Sequence[Path], config: TrainConfig) -> dict[str, Any]:
    """Return the card's account of what the weights have seen."""
    provenance = {
        "version": n2n.__version__,
        "purpose": "to start training from; alone they give a preview, which is no result",
        "data": "movies of de-twin 0.3.0, made by benchmarks/twins.py; Noise2Noise, no truth as target",
        "movies": {store.stem: content_digest(store) for store in shown},
        "validated_on": {store.stem: content_digest(store) for store in aside},
        "never_shown": "in-situ heating, droplet crystallisation, steel lamellae, anything atomically resolved",
        "limits": "2 to 24 frames in a half, 0.04 to 1.5 electrons per pixel and frame, 80 000 x at most",
        "settings": config.model_dump(mode="json", include=SETTINGS),
        "seed": SEED,
    }
    return {"is_start": True, "steps": config.steps, "provenance": provenance}


def install(output: Path, name: str) -> None:
    """Copy weights into the package, and the losses of the run into the results."""
    model = load_model(output)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.safetensors").write_bytes((output / WEIGHTS).read_bytes())
    (RESULTS / f"pretrain_{name}.csv").write_bytes((output / "metrics.csv").read_bytes())
    print(f"{name}: {model.card.steps} steps, {(FOLDER / f'{name}.safetensors').stat().st_size} bytes")


def main() -> None:
    """Train one network, or install what was trained."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("movies", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--steps", type=int, help="optimiser updates; more where there is a GPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--install", action="store_true")
    told = parser.parse_args()
    output = told.work / told.network
    if told.install:
        install(output, told.network)
        return
    tune_allocator()
    set_threads(told.threads)
    stores = [prepare(path.parent, told.work) for path in sorted(told.movies.glob("*/movie.mrc"))]
    pretrain(stores, output, NETWORKS[told.network], told.steps or STEPS[told.network], told.device)


if __name__ == "__main__":
    main()
