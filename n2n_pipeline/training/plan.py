"""What a training run resolved before its first step: made once, saved, and read again by all that continues it.

The plan holds what the machine or the movie decided (window, normalisation, device, threads), so that a run that
is continued elsewhere, or whose movie was swept again, goes on as it began.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from n2n_pipeline import __version__
from n2n_pipeline.checkpoint import ModelCard, load_model, subtract_levels, weights_digest
from n2n_pipeline.config import NetworkConfig, Precision, RunConfig, Settings, Split, SweepConfig, TrainConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.device import autocast_dtype, choose_device, set_threads
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.files import digest_file, digest_json
from n2n_pipeline.geometry import spread_evenly
from n2n_pipeline.ladder import ladder_for
from n2n_pipeline.manifest import SHIFTS, content_digest
from n2n_pipeline.metrics.noise import clipped_deviation
from n2n_pipeline.model import stride
from n2n_pipeline.starting import default_network, starting_weights
from n2n_pipeline.store import open_store
from n2n_pipeline.sweep import sweep_windows
from n2n_pipeline.training.exposures import Exposures, pair_exposures
from n2n_pipeline.training.outliers import without_outliers
from n2n_pipeline.training.patches import Batch, Block, PatchSampler, Recipe, plan_held_out
from n2n_pipeline.training.pool import HELD_OUT, NORMALISATION, STEADINESS, Pool
from n2n_pipeline.training.stacks import Frames, ImagePair, MovieFrames, pair_images
from n2n_pipeline.training.steadiness import Targets, choose_targets

NORMALISATION_PATCHES = 64
STEADINESS_PATCHES = 128
STEPS = (800, 350)  # from random weights, from weights that were trained before
LEARNING_RATES = (3e-3, 1e-3)
HELD_OUT_EVERY = 8  # frames, one of which is kept from training
MEDIAN_NEEDS = 0.7  # electrons per half-window below which the median of a Poisson variable is 0
MODE_NEEDS = 1.0

_log = logging.getLogger(__name__)


class Movies(NamedTuple):
    """What is trained on."""

    frames: list[Frames]
    digests: list[str]
    """One for each store or folder that was named."""
    first_store: Path | None
    """The store with most frames, on which windows are compared; None for folders of pairs."""
    held_out: dict[str, list[int]]
    """Frames that are not trained on, by the digest of the store's counts."""


class TrainingPlan(Settings):
    """A run's resolved settings."""

    network: NetworkConfig
    start: Path | None
    """Weights to start from; None for random ones."""
    steps: int
    lr: float
    windows: tuple[int, ...]
    target: int
    """Of a ladder of windows; 0 where they are none."""
    validation_target: int = 0
    """Of a ladder; 0 if it is the same, or there is none."""
    split: Split
    seed: int
    patch_px: int
    detail: float = 0.0
    mean: float
    scales: tuple[float, ...]
    """Of each level of a ladder, or the only one."""
    held_out: tuple[tuple[Block, ...], ...]
    """Squares, for each movie."""
    device: str
    precision: Precision
    threads: int

    @property
    def recipe(self) -> Recipe:
        """How patches are drawn."""
        return Recipe(self.seed, self.windows, self.split, self.patch_px, self.target, self.detail)

    @property
    def validation_recipe(self) -> Recipe:
        """How validation samples are halved."""
        return self.recipe._replace(target=self.validation_target or self.target)

    @property
    def ladder(self) -> tuple[int, ...]:
        """Windows that the network sees at once."""
        return self.windows if self.target else ()


def open_movies(paths: Sequence[Path], config: TrainConfig | None = None) -> Movies:
    """Open stores, and folders with ``even`` and ``odd`` in them, for training.

    Parameters
    ----------
    paths : sequence of pathlib.Path
        Stores and folders.
    config : TrainConfig, optional
        Says how many frames of each store are held out.

    Raises
    ------
    InputError
        If a store has fewer than two frames, or a folder's images do not pair.
    """
    config = config or TrainConfig()
    if config.pair:
        exposures, digests = pair_exposures(paths, int(config.memory_gb * 1e9))
        return Movies([exposures], digests, None, {})
    movies = Movies([], [], None, {})
    longest = 0
    for path in paths:
        if (path / "even").is_dir() and (path / "odd").is_dir():
            pairs = pair_images(path)
            movies.frames.extend(pairs)
            files = sorted(file for half in ("even", "odd") for file in (path / half).iterdir())
            movies.digests.append(digest_json([[file.name, digest_file(file)] for file in files]))
            continue
        store = open_store(path)
        n_frames = store.info.shape[0]
        if n_frames < 2:
            raise InputError(path, f"{n_frames} frame; pairs need at least 2")
        held_out = plan_held_out_frames(n_frames, config)
        movies.held_out[content_digest(path)] = held_out
        movie = CorrectedMovie(store)
        movies.frames.append(
            MovieFrames(without_outliers(movie) if config.outliers == "drop" else movie, held_out)
        )
        movies.digests.append(_digest_store(path))
        if n_frames > longest:
            longest, movies = n_frames, movies._replace(first_store=path)
    return movies


def make_plan(movies: Movies, config: RunConfig, pool_bytes: int) -> TrainingPlan:
    """Resolve a run's settings; reads a part of the movies for their mean and spread.

    Raises
    ------
    InputError
        If the movies are too short for the window, too small for the network, or constant.
    """
    device = choose_device(config.device)
    windows, target = _choose_windows(movies, config)
    network, start = choose_network(config, device.type, windows if target else ())
    held_out = tuple(
        plan_held_out(movie.shape, (config.seed, HELD_OUT, index)) for index, movie in enumerate(movies.frames)
    )
    plan = TrainingPlan(
        network=network,
        start=start,
        steps=config.train.steps or STEPS[start is not None],
        lr=config.train.lr or LEARNING_RATES[start is not None],
        windows=windows,
        target=target,
        split=config.train.split,
        detail=config.train.detail,
        seed=config.seed,
        patch_px=_fit_patch(movies.frames, config.train.patch_px, stride(network)),
        mean=0.0,
        scales=(1.0,),
        held_out=held_out,
        device=str(device),
        precision=_choose_precision(config.train.precision, device),
        threads=set_threads(config.threads),
    )
    sample, targets = _look_at(movies, plan, pool_bytes, config.train.target)
    mean, scales = measure_normalisation(sample)
    _warn_of_low_counts(config, estimate_electrons(sample, target) * (target or min(windows)) / 2)
    chosen = {"target": targets.training, "validation_target": targets.validation}
    return plan.model_copy(update={"mean": mean, "scales": scales, **chosen})


def choose_network(config: RunConfig, device: str, ladder: tuple[int, ...]) -> tuple[NetworkConfig, Path | None]:
    """Return the network asked for, that of the model to start from, or the device's default; and that model."""
    init = config.train.init
    if isinstance(init, Path):
        card = load_model(init).card
        if card.ladder != ladder:
            found = f"was trained on {_describe(card.ladder)}, this training is on {_describe(ladder)}"
            raise InputError(init, found, "start from a model of the same kind", ExitCode.CONFIG)
        if config.network not in (None, card.network):
            raise InputError(init, f"holds another network ({card.network})", "leave out network", ExitCode.CONFIG)
        return card.network, init
    network = config.network or default_network(device)
    if ladder:
        network = network.model_copy(update={"in_channels": len(ladder)})
    return network, starting_weights(network) if init == "starting" else None


def _describe(ladder: tuple[int, ...]) -> str:
    return f"a ladder of {', '.join(map(str, ladder))} frames" if ladder else "one window at a time"


def measure_normalisation(sample: Batch) -> tuple[float, tuple[float, ...]]:
    """Measure the mean and the spread of half-window averages.

    Of a ladder, the spreads are those of `subtract_levels`; where two levels hold the same frames, that of the
    longest.
    """
    is_ladder = sample.values.ndim > sample.target.ndim
    values, seen = (part if is_ladder else part[:, None] for part in (sample.values, sample.counts > 0))
    mean = float(values[seen].mean(dtype=np.float64)) if seen.any() else 0.0
    steps = subtract_levels(torch.from_numpy(values), mean).numpy()
    spreads = [clipped_deviation(steps[:, level][seen[:, level]]) for level in range(steps.shape[1])]
    if not spreads[-1]:
        raise InputError("train", f"all pixels equal {mean:g}; nothing to learn")
    return mean, tuple(spread or spreads[-1] for spread in spreads)


def estimate_electrons(sample: Batch, ladder_target: int = 0) -> float:
    """Estimate how many electrons a pixel of one frame holds, whatever the camera makes of each.

    As if they alone made the noise: their number is the squared mean over the variance, which the difference of
    two halves shows. Read noise and a spread of the signal per electron make it too low, shared charge too high.

    Parameters
    ----------
    sample : Batch
        Patches.
    ladder_target : int
        Frames about the target, both halves together; 0 where either half of a window has as many as the other.
    """
    is_ladder = sample.values.ndim > sample.target.ndim
    nearest, count = (part[:, 0] if is_ladder else part for part in (sample.values, sample.counts))
    seen = (count > 0) & (sample.weight > 0)
    values, target, frames = (part[seen].astype(np.float64) for part in (nearest, sample.target, count))
    if not len(values):
        return 0.0
    others = sample.weight[seen].astype(np.float64) * ladder_target / 2 if is_ladder else frames
    variance = float(np.mean((values - target) ** 2 / (1 / frames + 1 / others)))
    return float(values.mean()) ** 2 / variance if variance else math.inf


def _look_at(
    movies: Movies, plan: TrainingPlan, pool_bytes: int, target: int | Literal["auto"]
) -> tuple[Batch, Targets]:
    """Read a part of the movies: a sample for their mean and spread, and how wide targets are to be."""
    is_measured = plan.target > 0 and target == "auto"
    pool = Pool(movies.frames, plan.windows, plan.seed, pool_bytes)
    try:
        sampler = PatchSampler(pool, plan.recipe, plan.held_out)
        sample = sampler.draw_batch(0, range(NORMALISATION, NORMALISATION + NORMALISATION_PATCHES))
        if not is_measured:
            return sample, Targets(plan.target, plan.target)
        levels = sampler.draw_levels(range(STEADINESS, STEADINESS + STEADINESS_PATCHES))
        return sample, choose_targets(levels, plan.windows)
    finally:
        pool.close()


def describe_model(plan: TrainingPlan, movies: Movies, config: RunConfig, steps: int) -> ModelCard:
    """Return what is saved beside the weights."""
    settings = config.train.model_dump(mode="json", exclude={"init", "save_every", "memory_gb", "tensorboard"})
    provenance: dict[str, Any] = {
        "version": __version__,
        "movies": movies.digests,
        "seed": config.seed,
        "settings": settings,
        "held_out": [[list(block) for block in blocks] for blocks in plan.held_out],
        "held_out_frames": movies.held_out,
        "init": weights_digest(plan.start) if plan.start else None,
    }
    return ModelCard(
        network=plan.network,
        mean=plan.mean,
        scale=plan.scales[-1],
        window=max(plan.windows),
        windows=plan.windows if len(plan.windows) > 1 and not plan.target else (),
        ladder=plan.ladder,
        level_scales=plan.scales if plan.target else (),
        target=plan.target,
        split=plan.split,
        steps=steps,
        provenance=provenance,
    )


def plan_held_out_frames(n_frames: int, config: TrainConfig) -> list[int]:
    """Choose the frames of a movie that are not trained on.

    Examples
    --------
    >>> plan_held_out_frames(32, TrainConfig(window=(4, 8))), plan_held_out_frames(32, TrainConfig(window=4))
    ([4, 12, 20, 28], [])
    """
    several = isinstance(config.window, tuple) and len(config.window) > 1
    automatic = min(n_frames // HELD_OUT_EVERY, SweepConfig().sample_frames) if several else 0
    wanted = config.held_out_frames
    return spread_evenly(n_frames, min(automatic if wanted == "auto" else wanted, n_frames - 2))


def _choose_windows(movies: Movies, config: RunConfig) -> tuple[tuple[int, ...], int]:
    """Return windows and, where they are a ladder, the frames of its target; else 0."""
    wanted = config.train.window
    if any(isinstance(movie, ImagePair | Exposures) for movie in movies.frames):
        if movies.first_store is not None or wanted not in ("auto", 2):
            raise InputError(
                "train", "pairs of images are windows of 2", "train on them alone, with --window auto"
            )
        return (2,), 0
    if movies.first_store is None:
        raise ValueError("no movies to compare windows on")
    if wanted == "auto":
        wanted = window_to_use(sweep_windows(movies.first_store, config.sweep), config)
    if wanted == "all":
        return _choose_ladder(config, max(movie.n_frames for movie in movies.frames))
    windows = (wanted,) if isinstance(wanted, int) else tuple(sorted(set(wanted)))
    shortest = min(movies.frames, key=lambda movie: movie.n_frames)
    held_out = max(map(len, movies.held_out.values()), default=0)
    if shortest.n_frames + held_out < windows[-1] or windows[0] < 2:
        needs = f"window needs {windows[-1]}" if windows[0] >= 2 else "a window of 1 has no halves"
        raise InputError(shortest.path, f"{shortest.n_frames} frames, {needs}", "choose another --window")
    return windows, 0


def window_to_use(found: dict[str, Any], config: RunConfig) -> int | Literal["all"]:
    """Return what `sweep_windows` found best; all at once only for networks that have weights to start from."""
    init = config.train.init
    if isinstance(init, Path):
        return "all" if load_model(init).card.ladder else int(found["window"])
    has_start = config.network is None or starting_weights(config.network) is not None
    use: int | Literal["all"] = found["use" if has_start else "window"]
    return use


def _choose_ladder(config: RunConfig, n_frames: int) -> tuple[tuple[int, ...], int]:
    """Return the windows of the ladder to start from, or those for such a movie, and the frames of the target."""
    init = config.train.init
    started = load_model(init).card.ladder if isinstance(init, Path) else ()
    ladder = started or ladder_for(n_frames)
    target = ladder[0] if config.train.target == "auto" else config.train.target
    if target not in ladder:
        wanted = f"{target} is not one of {', '.join(map(str, ladder))} frames"
        raise InputError("train.target", wanted, code=ExitCode.CONFIG)
    return ladder, target


def _choose_precision(wanted: Precision, device: torch.device) -> Precision:
    if wanted != "auto":
        return wanted
    return "bfloat16" if autocast_dtype(device) == torch.bfloat16 else "float32"


def _fit_patch(movies: Sequence[Frames], patch_px: int, step: int) -> int:
    """Return the largest multiple of the network's stride that patch and images hold."""
    height, width = (min(movie.shape[axis] for movie in movies) for axis in (0, 1))
    if min(height, width) < step:
        smallest = min(movies, key=lambda movie: min(movie.shape))
        what = f"{smallest.shape[1]}x{smallest.shape[0]} image, the network needs {step}"
        raise InputError(smallest.path, what, "use a lower network.depth")
    fitted = max(min(patch_px, height, width) // step, 1) * step
    if fitted != patch_px:
        _log.warning(
            "patches are %d px, not %d: images hold %dx%d, the network's stride is %d",
            fitted,
            patch_px,
            width,
            height,
            step,
        )
    return fitted


def _warn_of_low_counts(config: RunConfig, electrons: float) -> None:
    needed = {"l1": MEDIAN_NEEDS, "l0": MODE_NEEDS}.get(config.train.loss, 0.0)
    if electrons < needed:
        _log.warning(
            "half a window holds about %.2g electrons per pixel: below %g, loss %s would learn 0; use l2",
            electrons,
            needed,
            config.train.loss,
        )


def _digest_store(path: Path) -> str:
    """Return the digest of what training reads of a store: counts, references and shifts."""
    shifts = path / SHIFTS
    return digest_json([content_digest(path), digest_file(shifts) if shifts.exists() else None])
