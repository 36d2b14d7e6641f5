"""Stores in, a model out: the training stage, resumable at any moment, on one process or several."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from n2n_pipeline.checkpoint import (
    WEIGHTS,
    Denoiser,
    ModelCard,
    load_model,
    place_network,
    save_model,
    weights_digest,
)
from n2n_pipeline.config import RunConfig, SweepConfig
from n2n_pipeline.device import autocast_dtype, choose_device, set_threads, tune_allocator
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.files import write_atomically
from n2n_pipeline.model import UNet, predict_mean, start_from_last
from n2n_pipeline.records import Ledger, Unit
from n2n_pipeline.settings_file import dump_settings
from n2n_pipeline.sweep import compare_windows
from n2n_pipeline.training.distributed import Ranks, join_ranks
from n2n_pipeline.training.loop import Task, Trainer
from n2n_pipeline.training.patches import PatchSampler
from n2n_pipeline.training.plan import Movies, TrainingPlan, describe_model, make_plan, open_movies
from n2n_pipeline.training.pool import Pool
from n2n_pipeline.training.state import TrainingState, copy_into
from n2n_pipeline.training.validation import read_validation

UNIT = Unit("weights", (WEIGHTS,))
PLAN = Path("resume") / "plan.json"

_log = logging.getLogger(__name__)


def train_model(
    stores: Sequence[Path], output: Path, config: RunConfig | None = None, restart: bool = False
) -> Path:
    """Train a network on movies, or continue where an earlier call stopped.

    Under ``torchrun`` every process calls this with the same arguments, and they share each step's batch.

    Parameters
    ----------
    stores : sequence of pathlib.Path
        Stores of movies, drawn from in proportion to their frames; or folders that hold ``even`` and ``odd``
        images of the same names.
    output : pathlib.Path
        Folder for ``weights.safetensors``, ``config.yaml``, ``metrics.csv``, ``validation/`` and ``resume/``.
    config : RunConfig, optional
        Settings.
    restart : bool
        Throw away what was begun with other settings.

    Returns
    -------
    pathlib.Path
        The weights.

    Raises
    ------
    InputError
        If the movies or the settings cannot be used, or training diverges.
    Stopped
        If a signal asked to stop; the same call continues.
    """
    config = config or RunConfig()
    tune_allocator()
    movies = open_movies(stores, config.train)
    with join_ranks(choose_device(config.device)) as ranks:
        if not ranks.leads:
            _follow(movies, output, config, ranks)
            return output / WEIGHTS
        with Ledger(output, _fingerprint(movies, config), [UNIT], restart) as ledger:
            ranks.from_leader([float(bool(ledger.pending))])
            if ledger.pending:
                _lead(movies, output, config, ranks, ledger)
            if not ledger.finished:  # also where a run was killed between the weights and this
                ledger.complete()
            return output / WEIGHTS


def _lead(movies: Movies, output: Path, config: RunConfig, ranks: Ranks, ledger: Ledger) -> None:
    """Train as the process that writes."""
    plan = _resolve_plan(movies, output, config)
    ranks.wait()
    state = _train(movies, output, config, plan, ranks)
    copy_into(list(state.network.parameters()), state.best)
    card = describe_model(plan, movies, config, state.counters.step)
    with ledger.writing(UNIT):
        save_model(output, state.network, _settle_window(movies, state.network, card, ranks.device))


def _settle_window(movies: Movies, network: UNet, card: ModelCard, device: torch.device) -> ModelCard:
    """Let a network that was trained over several windows say which it does best with."""
    if not card.windows or movies.first_store is None:
        return card
    denoiser = Denoiser(network.eval(), card, device, autocast_dtype(device))
    found = compare_windows(movies.first_store, SweepConfig(), denoiser)
    _log.info("window: %d frames predict held-out frames best", found["window"])
    return card.model_copy(update={"window": found["window"]})


def _as_told(plan: TrainingPlan) -> dict[str, Any]:
    """Return the settings that would lead to the plan's windows."""
    if plan.target:
        return {"window": "all"}
    return {"window": plan.windows if len(plan.windows) > 1 else plan.windows[0]}


def _follow(movies: Movies, output: Path, config: RunConfig, ranks: Ranks) -> None:
    """Train as one of the other processes."""
    if ranks.from_leader([0.0])[0]:
        ranks.wait()
        _train(movies, output, config, _read_plan(output / PLAN), ranks)


def _resolve_plan(movies: Movies, output: Path, config: RunConfig) -> TrainingPlan:
    """Read the plan that an earlier call made, or make it."""
    if (output / PLAN).exists():
        return _read_plan(output / PLAN)
    plan = make_plan(movies, config, _memory_bytes(config))
    (output / PLAN).parent.mkdir(exist_ok=True)
    told = _as_told(plan) | {"patch_px": plan.patch_px, "steps": plan.steps, "lr": plan.lr}
    train = config.train.model_copy(update=told)
    resolved = config.model_copy(
        update={"network": plan.network, "train": train, "device": plan.device, "threads": plan.threads}
    )
    write_atomically(output / "config.yaml", dump_settings(resolved))
    write_atomically(output / PLAN, plan.model_dump_json(indent=1))
    return plan


def _read_plan(path: Path) -> TrainingPlan:
    return TrainingPlan.model_validate_json(path.read_bytes())


def _train(movies: Movies, output: Path, config: RunConfig, plan: TrainingPlan, ranks: Ranks) -> TrainingState:
    """Train to the end of the budget."""
    if set_threads(plan.threads) != config.threads and config.threads:
        _log.warning("going on with %d threads, as this training began", plan.threads)
    if torch.device(plan.device).type != ranks.device.type:
        todo = f"use --device {plan.device} or --restart"
        raise InputError(output, f"was begun on {plan.device}, not {ranks.device}", todo, ExitCode.UNAVAILABLE)
    state = TrainingState(_start_network(plan, ranks.device))
    pool = Pool(
        movies.frames,
        plan.windows,
        plan.seed,
        _memory_bytes(config),
        with_detail=plan.detail > 0,
    )
    task = Task(
        config.train,
        plan.steps,
        plan.lr,
        describe_model(plan, movies, config, 0),
        PatchSampler(pool, plan.recipe, plan.held_out),
        read_validation(movies.frames, plan.held_out, plan.validation_recipe),
        plan.precision,
        output,
    )
    try:
        Trainer(state, task, ranks).run()
    except torch.cuda.OutOfMemoryError as error:
        what = f"the GPU cannot hold {config.train.batch} patches of {plan.patch_px} px"
        raise InputError("train", what, "lower train.batch or train.patch_px", ExitCode.UNAVAILABLE) from error
    finally:
        pool.close()
    return state


def _start_network(plan: TrainingPlan, device: torch.device) -> UNet:
    if plan.start is not None:
        network = load_model(plan.start).network.requires_grad_(True)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            network = UNet(plan.network)
            predict_mean(network)
            if plan.target:
                start_from_last(network)
    return place_network(network, device).train()


def _memory_bytes(config: RunConfig) -> int:
    return int(config.train.memory_gb * 1e9)


def _fingerprint(movies: Movies, config: RunConfig) -> dict[str, Any]:
    """All that decides the weights, but the device and threads, which the plan remembers."""
    init = config.train.init
    return {
        "stage": "train",
        "movies": movies.digests,
        "seed": config.seed,
        "network": config.network.model_dump(mode="json") if config.network else None,
        "train": config.train.model_dump(mode="json", exclude={"init", "save_every", "tensorboard"}),
        "init": weights_digest(init) if isinstance(init, Path) else init,
    }
