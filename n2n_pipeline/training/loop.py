"""One step, and the loop around it: train, validate, save, stop when asked to.

Everything a step does is a function of the state before it and of the step's number, so a run that was killed
and continued from its last saved state ends in the same weights as one that never stopped.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from n2n_pipeline.checkpoint import Denoiser, ModelCard, stack_channels
from n2n_pipeline.config import Precision, TrainConfig
from n2n_pipeline.device import autocast
from n2n_pipeline.errors import InputError, Stopped
from n2n_pipeline.progress import progress as show_progress
from n2n_pipeline.records import stop_requested
from n2n_pipeline.training.diary import Row, write_metrics, write_sheet, write_tensorboard
from n2n_pipeline.training.distributed import Ranks
from n2n_pipeline.training.gradients import GradientThreads
from n2n_pipeline.training.losses import find_changes, weighted_loss
from n2n_pipeline.training.patches import PatchSampler
from n2n_pipeline.training.state import TrainingState, copy_into, drop_older, load_state, save_state
from n2n_pipeline.training.steadiness import is_still
from n2n_pipeline.training.validation import Scores, ValidationSet, score

WARM_UP = 0.03
RAMP_DOWN = 0.4
SKIPS_IN_ROW = 10
CAUTION = 0.1
"""Factor on the learning rate after a roll-back."""
DIVERGED = 2.0
"""Times the loss of a blank image above which a training failed, however finite its weights."""

_log = logging.getLogger(__name__)


class Task(NamedTuple):
    """What is to be trained on what."""

    config: TrainConfig
    steps: int
    """As the plan resolved them; of no consequence where time is the budget."""
    lr: float
    card: ModelCard
    sampler: PatchSampler
    validation: ValidationSet
    precision: Precision
    """As the plan resolved it."""
    output: Path
    """Folder of the model."""


def learning_rate(peak: float, progress: float) -> float:
    """Return the learning rate: a short warm-up, constant, and a half cosine down over the last 40 %.

    Parameters
    ----------
    peak : float
        Highest rate.
    progress : float
        Share of the budget that is spent, from 0 to 1.

    Examples
    --------
    >>> [round(learning_rate(1.0, p), 3) for p in (0.0, 0.015, 0.03, 0.6, 0.8, 1.0)]
    [0.05, 0.55, 1.0, 1.0, 0.5, 0.0]
    """
    warm = min(1.0, 0.05 + progress / WARM_UP)
    ramp = max(progress - (1 - RAMP_DOWN), 0.0) / RAMP_DOWN
    return peak * warm * (1 + math.cos(math.pi * ramp)) / 2


class BatchQueue:
    """Batches made ahead in the background, handed out by step.

    Parameters
    ----------
    make : callable
        From a step to its batch; called from several threads.
    workers : int
        How many threads; twice as many batches wait.
    """

    def __init__(self, make: Callable[[int], Sequence[Tensor]], workers: int) -> None:
        self._make, self._ahead = make, 2 * workers
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="training-batches")
        self._waiting: deque[tuple[int, Future[Sequence[Tensor]]]] = deque()

    def get(self, step: int) -> Sequence[Tensor]:
        """Return a step's batch; steps that follow each other are ready sooner."""
        if self._waiting and self._waiting[0][0] != step:
            self._waiting.clear()
        first = step + len(self._waiting)
        for later in range(first, step + self._ahead + 1):
            self._waiting.append((later, self._threads.submit(self._make, later)))
        return self._waiting.popleft()[1].result()

    def close(self) -> None:
        """Drop what waits."""
        self._threads.shutdown(wait=True, cancel_futures=True)


class Trainer:
    """A network being trained.

    Parameters
    ----------
    state : TrainingState
        Where the training stands; changed in place.
    task : Task
        What to train on.
    ranks : Ranks
        The processes that share the work.
    """

    def __init__(self, state: TrainingState, task: Task, ranks: Ranks) -> None:
        self.state, self.task, self.ranks = state, task, ranks
        self.parameters = list(state.network.parameters())
        self.dtype = None if task.precision == "float32" else torch.bfloat16
        judge = deepcopy(state.network).eval().requires_grad_(False)
        self.denoiser = Denoiser(judge, task.card, ranks.device, self.dtype)
        self.resume = task.output / "resume"
        on_cpu = ranks.device.type == "cpu"
        share = len(ranks.share(task.config.batch))
        self.threads = GradientThreads(torch.get_num_threads() if on_cpu else 1, share)

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, from 0 to 1."""
        config, counters = self.task.config, self.state.counters
        if config.time_minutes is not None:
            return min(counters.seconds / (60 * config.time_minutes), 1.0)
        return min(counters.step / self.task.steps, 1.0)

    @property
    def is_finished(self) -> bool:
        """Whether the budget is spent, or patience is at its end."""
        patience = self.task.config.patience
        return self.progress >= 1 or bool(patience and self.state.counters.since_best >= patience)

    def run(self) -> None:
        """Train from the newest saved state to the end of the budget.

        Raises
        ------
        Stopped
            If a signal asked to stop; the state is saved.
        InputError
            If gradients stay infinite or NaN, or nothing was learned that is better than a blank image.
        """
        if not self.ranks.any(load_state(self.resume, self.state)):  # all have looked before one writes
            self._save()
        elif self.ranks.leads:
            drop_older(self.resume)
        total = None if self.task.config.time_minutes else self.task.steps
        batches = BatchQueue(self.make_batch, workers=1 if self.ranks.device.type == "cpu" else 8)
        try:
            with show_progress("train", total, "steps") as show:
                show(self.state.counters.step)
                self._run_steps(batches, show)
        finally:
            batches.close()
            self.threads.close()
        self._check_learned()
        if self.progress < 1:
            found = f"no lower loss in {self.state.counters.since_best} validations"
            _log.info("%s: ended after %d steps", found, self.state.counters.step)

    def _check_learned(self) -> None:
        """Refuse weights that learned less than nothing."""
        card, best = self.task.card, self.state.counters.best_losses
        blank = score(self.task.validation, np.full_like(self.task.validation.batch.target, card.mean), card.scale)
        if not best or np.mean(best) > DIVERGED * blank.loss:
            raise InputError(
                self.task.output, "training diverged; no weights were saved", "use a lower --set train.lr"
            )

    def _run_steps(self, batches: BatchQueue, show: Callable[[int], None]) -> None:
        before = time.monotonic()
        while not self.is_finished:
            self.train_step(batches.get(self.state.counters.step))
            now = time.monotonic()
            if self.task.config.time_minutes is not None:
                self.state.counters.seconds += self.ranks.from_leader([now - before])[0]
            before = now
            self._after_step()
            show(1)

    def make_batch(self, step: int) -> Sequence[Tensor]:
        """Draw this process's share of a step's batch, as tensors in the host's memory."""
        batch = self.task.sampler.draw_batch(step, self.ranks.share(self.task.config.batch))
        tensors = [torch.from_numpy(part) for part in batch]
        return [part.pin_memory() for part in tensors] if self.ranks.device.type == "cuda" else tensors

    def train_step(self, batch: Sequence[Tensor]) -> None:
        """Update the weights once, unless the gradient is not finite."""
        counters = self.state.counters
        peak = self.task.lr * CAUTION**counters.rollbacks
        self.state.optimizer.param_groups[0]["lr"] = learning_rate(peak, self.progress)
        loss, gradients = self.threads.differentiate(self._loss, batch, self.parameters)
        self.ranks.average(gradients)
        counters.step += 1
        if not bool(get_total_norm(gradients).isfinite()):
            counters.skipped += 1
            counters.skipped_in_row += 1
            return
        counters.skipped_in_row = 0
        counters.loss_sum += float(loss)
        counters.loss_count += 1
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.state.optimizer.step()
        self.state.average_weights(self.task.config.ema_decay)

    def validate(self) -> None:
        """Score the averaged weights on the validation samples, keep the best so far, and report."""
        counters, validation = self.state.counters, self.task.validation
        losses = [0.0] * len(validation.batch.values)
        scores = self._score() if self.ranks.leads else None
        found = np.array(self.ranks.from_leader(losses if scores is None else scores.losses.tolist()))
        counters.since_best += 1
        if np.isfinite(found).all() and (not counters.best_losses or found.mean() < np.mean(counters.best_losses)):
            self.state.keep_best()
            counters.best_losses, counters.since_best = found.tolist(), 0
        training_loss = torch.tensor([counters.loss_sum / max(counters.loss_count, 1)], device=self.ranks.device)
        self.ranks.average([training_loss])
        if scores is not None:
            self._report(scores, float(training_loss) if counters.loss_count else None)
        counters.loss_sum, counters.loss_count = 0.0, 0

    def _score(self) -> Scores:
        copy_into(list(self.denoiser.network.parameters()), self.state.averaged)
        batch = self.task.validation.batch
        parts = zip(batch.values[:, None], batch.counts[:, None], strict=True)
        denoised = np.concatenate([self.denoiser(values, counts) for values, counts in parts])
        write_sheet(self.task.output, self.state.counters.step, self.task.validation, denoised)
        return score(self.task.validation, denoised, self.task.card.scale)

    def _report(self, scores: Scores, training_loss: float | None) -> None:
        counters = self.state.counters
        rate = float(self.state.optimizer.param_groups[0]["lr"])
        umse, low, high = scores.umse or (None, None, None)
        row = Row(counters.step, rate, training_loss, scores.loss, umse, low, high, counters.skipped)
        counters.rows.append([value if value is not None and math.isfinite(value) else None for value in row])
        write_metrics(self.task.output, counters.rows)
        if self.task.config.tensorboard:
            write_tensorboard(self.task.output, row)
        _log.debug("step %d: validation loss %.5g", counters.step, scores.loss)

    def _after_step(self) -> None:
        counters, config = self.state.counters, self.task.config
        if counters.skipped_in_row >= SKIPS_IN_ROW:
            self._roll_back()
            return
        if counters.step % config.validate_every == 0 or self.is_finished:
            self.validate()
        stopping = self.ranks.any(stop_requested())
        if stopping or counters.step % config.save_every == 0 or self.is_finished:
            self._save()
        if stopping and not self.is_finished:
            raise Stopped(self.task.output)

    def _roll_back(self) -> None:
        """Go back to the last saved state, once, and go on with a lower learning rate."""
        found = f"{SKIPS_IN_ROW} steps in a row had gradients that are not finite"
        if self.state.counters.rollbacks or not load_state(self.resume, self.state):
            raise InputError(self.task.output, found, "use a lower --set train.lr")
        self.state.counters.rollbacks += 1
        _log.warning("%s; going back to step %d, with a lower learning rate", found, self.state.counters.step)

    def _save(self) -> None:
        if self.ranks.leads:
            save_state(self.resume, self.state)
        self.ranks.wait()

    def _loss(self, batch: Sequence[Tensor]) -> Tensor:
        values, counts, target, weight = (part.to(self.ranks.device, non_blocking=True) for part in batch)
        card, config = self.task.card, self.task.config
        inputs = stack_channels(values, counts, card)
        with autocast(self.ranks.device, self.dtype):
            output = self.state.network(inputs)[:, 0]
        if card.ladder and not is_still(card.target, card.ladder):
            weight = weight * (1 + find_changes(inputs)) / 2
        return weighted_loss(config.loss, output, (target - card.mean) / card.scale, weight, self.progress)
