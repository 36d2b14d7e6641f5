"""All that a training run is made of between two steps, and its resume state on disk.

A state is two files, ``step-N.safetensors`` and ``step-N.json``; the second holds the counters and the digest of
the first, and is written after it, so it never stands for a state that is not whole. Two states are kept, and
the older is dropped only after the newer was read back.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from n2n_pipeline.checkpoint import check_tensors, read_header
from n2n_pipeline.errors import InputError
from n2n_pipeline.files import digest_file, read_json, to_json, write_atomically
from n2n_pipeline.model import UNet

KEPT = 2
ADAM_BETAS = (0.9, 0.99)
ADAM_EPSILON = 1e-8

_log = logging.getLogger(__name__)


@dataclass
class Counters:
    """The numbers of a run; plain JSON."""

    step: int = 0
    """Steps begun and ended, skipped ones included."""
    seconds: float = 0.0
    """Time trained, over all the times it was run; used by time budgets only."""
    skipped: int = 0
    """Steps whose gradient was not finite."""
    skipped_in_row: int = 0
    rollbacks: int = 0
    loss_sum: float = 0.0
    """Training loss since the last line of metrics."""
    loss_count: int = 0
    best_losses: list[float] = field(default_factory=list)
    """Of every validation sample, at the validation with the lowest mean so far."""
    since_best: int = 0
    """Validations since then."""
    rows: list[list[float | None]] = field(default_factory=list)
    """Lines of ``metrics.csv``."""


class TrainingState:
    """A network in training: its weights, their running average, the best so far, and the optimiser.

    Parameters
    ----------
    network : UNet
        On its device; trained in place.
    """

    def __init__(self, network: UNet) -> None:
        self.network = network
        self.counters = Counters()
        parameters = list(network.parameters())
        self.optimizer = torch.optim.Adam(
            parameters, lr=0.0, betas=ADAM_BETAS, eps=ADAM_EPSILON, fused=parameters[0].device.type != "mps"
        )
        self.averaged = [parameter.detach().clone() for parameter in parameters]
        self.best = [parameter.detach().clone() for parameter in parameters]
        for parameter in parameters:
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def average_weights(self, decay: float) -> None:
        """Move the running average, over the last third of the steps or `decay`'s memory, towards the weights.

        The longer it is, the later the average follows the weights into the noise of a small movie, which they
        learn by heart in the end: ``docs/decisions/0017`` has the figures.
        """
        steps = self.counters.step - self.counters.skipped
        memory = min(decay, (1 + steps) / (4 + steps))
        with torch.no_grad():
            for average, parameter in zip(self.averaged, self.network.parameters(), strict=True):
                average.lerp_(parameter, 1 - memory)

    def keep_best(self) -> None:
        """Remember the running average as the best weights so far."""
        for best, average in zip(self.best, self.averaged, strict=True):
            best.copy_(average)

    def named_tensors(self) -> dict[str, Tensor]:
        """Name every tensor of the state."""
        tensors: dict[str, Tensor] = {}
        for (name, parameter), average, best in zip(
            self.network.named_parameters(), self.averaged, self.best, strict=True
        ):
            tensors |= {f"network.{name}": parameter.detach(), f"averaged.{name}": average, f"best.{name}": best}
            tensors |= {f"{key}.{name}": value for key, value in self.optimizer.state[parameter].items()}
        return tensors


def save_state(folder: Path, state: TrainingState) -> None:
    """Write a state, read it back, and drop all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"step-{state.counters.step:09d}"
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.named_tensors().items()}
    data = save(tensors)
    path = stem.with_suffix(".safetensors")
    stem.with_suffix(".json").unlink(missing_ok=True)
    write_atomically(path, data)
    record = {"blake3": digest_file(path), "counters": vars(state.counters)}
    write_atomically(stem.with_suffix(".json"), to_json(record))
    drop_older(folder)


def drop_older(folder: Path) -> None:
    """Drop all states but the newest two, and what a run that was killed left of others."""
    kept = {record.stem for record in sorted(folder.glob("step-*.json"))[-KEPT:]}
    for old in sorted(folder.glob("step-*")):  # by name, so a record before its state
        if old.stem not in kept:
            old.unlink()


def load_state(folder: Path, state: TrainingState) -> bool:
    """Continue from the newest state that is whole; tell whether there was one."""
    for record_path in sorted(folder.glob("step-*.json"), reverse=True):
        try:
            _restore(record_path, state)
        except (InputError, OSError) as error:
            _log.warning("%s; going back to the state before it", error)
        else:
            return True
    return False


def copy_into(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors into others, which keep their place and layout."""
    with torch.no_grad():
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)


def _restore(record_path: Path, state: TrainingState) -> None:
    path = record_path.with_suffix(".safetensors")
    record = read_json(record_path)
    data = path.read_bytes()
    if not isinstance(record, dict) or record.get("blake3") != digest_file(path):
        raise InputError(path, "resume state is damaged")
    targets = state.named_tensors()
    check_tensors(path, read_header(path, data), {name: list(t.shape) for name, t in targets.items()})
    saved = load(data)
    copy_into(list(targets.values()), [saved[name] for name in targets])
    state.counters = Counters(**record["counters"])
