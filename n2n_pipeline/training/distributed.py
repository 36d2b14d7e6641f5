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

from n2n_pipeline.errors import ExitCode, InputError, Stopped

REASON_SECONDS = 3
"""Time that the process which has the reason is given to end before those that lost it: a launcher stops all as
soon as one ends."""
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
        If another process died or did not answer in time: running the command again resumes. Processes other than
        the first end with `ExitCode.PEER`, so that a batch system, which sees the highest code, learns the reason.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks(device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Ranks(distributed.get_rank(), world, device)
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        lost = "another process was lost"
        if distributed.get_rank() == 0:
            raise Stopped("train", f"{lost}; run the same command again to continue") from error
        time.sleep(REASON_SECONDS)
        raise InputError("train", lost, "see what it said", ExitCode.PEER) from error
    finally:
        distributed.destroy_process_group()


def _is_lost_peer(error: RuntimeError) -> bool:
    """Tell a broken connection from other errors; those of gloo have no type of their own."""
    text = str(error).lower()
    known = isinstance(error, distributed.DistBackendError | distributed.DistNetworkError)
    return known or any(word in text for word in ("gloo", "connection closed", "connection reset", "timed out"))
