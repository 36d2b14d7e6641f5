"""Several processes training one network: who each is, and the few words they exchange.

Under ``torchrun`` (or any launcher that sets RANK, WORLD_SIZE and MASTER_ADDR) every process runs the same
command. A step's batch is shared out by patch number, so neither the batch nor the schedule depends on how many
processes there are; gradients are averaged before the step, so all networks stay equal. Rank 0 alone writes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from n2n_pipeline.errors import ExitCode, InputError, Stopped
from n2n_pipeline.records import stop_requested

REASON = "reason"
"""Key under which a process that fails notes so, before the others lose it."""
REASON_SECONDS = 20
"""Longest wait for the launcher to stop a process whose peer has the reason: it stops all as soon as one ends, and
reports the one that ended first. There may be no launcher."""
POLL_SECONDS = 0.05
TIMEOUT = timedelta(minutes=10)


class Ranks(NamedTuple):
    """Who this process is among those that train together."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """Return the patch numbers of a batch that are this process's.

        Raises
        ------
        InputError
            If the batch cannot be shared out evenly.

        Examples
        --------
        >>> list(Ranks(rank=1, world=4).share(8))
        [1, 5]
        """
        if batch % self.world:
            raise InputError(
                "train.batch",
                f"{batch} patches cannot be shared evenly by {self.world} processes",
                f"use a multiple of {self.world}",
                ExitCode.CONFIG,
            )
        return range(self.rank, batch, self.world)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, in place, by their means over all processes."""
        if self.world == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        parts = torch.split(flat.div_(self.world), [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, value: bool) -> bool:
        """Tell whether ``value`` is true in any process."""
        if self.world == 1:
            return value
        flag = torch.tensor(float(value), device=self.device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        return bool(flag)

    def from_leader(self, values: Sequence[float]) -> list[float]:
        """Return rank 0's numbers, of which there are as many in every process."""
        if self.world == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.broadcast(numbers, 0)
        return [float(number) for number in numbers.tolist()]

    def wait(self) -> None:
        """Wait until every process has come here."""
        self.any(False)


@contextmanager
def join_ranks(device: torch.device) -> Iterator[Ranks]:
    """Meet the other processes that the launcher started, if it started any.

    Raises
    ------
    Stopped
        In the first process, if another was killed or did not answer in time: running the command again resumes.
    InputError
        With `ExitCode.PEER` in the other processes, and in all of them if one failed by itself and so has the
        reason: a batch system, which sees the highest code, then learns that one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks(device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    store, rank, world = next(rendezvous("env://", timeout=TIMEOUT))
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    try:
        yield Ranks(rank, world, device)
    except Exception as error:
        if not _is_lost_peer(error):
            store.set(REASON, str(rank))
            raise
        has_reason = _has_reason(store)
        if rank == 0 and not has_reason:
            raise Stopped("train", "another process was lost; run the same command again to continue") from error
        if has_reason:
            _await_launcher()
        raise InputError("train", "another process failed", "see what it said", ExitCode.PEER) from error
    finally:
        distributed.destroy_process_group()


def _has_reason(store: Store) -> bool:
    """Tell whether a process failed by itself; False, too, where nobody is left to ask."""
    try:
        return bool(store.check([REASON]))
    except RuntimeError:
        return False


def _await_launcher() -> None:
    """Wait until a signal asks this process to stop, but not for ever."""
    deadline = time.monotonic() + REASON_SECONDS
    while not stop_requested() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _is_lost_peer(error: Exception) -> bool:
    """Tell a broken connection from other errors; those of gloo have no type of their own."""
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    known = isinstance(error, distributed.DistBackendError | distributed.DistNetworkError)
    return known or any(word in text for word in ("gloo", "connection closed", "connection reset", "timed out"))
