"""Where arithmetic runs: the device, CPU threads, precision."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import torch

from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.heap import trim_memory as trim_memory  # handed on to those who have PyTorch loaded
from n2n_pipeline.heap import tune_allocator as tune_allocator


def choose_device(name: str = "auto") -> torch.device:
    """Return the device called ``name``; ``"auto"`` is the first GPU there is, else the CPU.

    Raises
    ------
    InputError
        If a device was asked for that this machine, or this build of PyTorch, does not have.
    """
    kind = name.partition(":")[0]
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if kind == "auto":
        return torch.device(next(device for device, there in available.items() if there))
    if not available.get(kind, False):
        raise InputError(name, f"no {kind.upper()} device", "use --device cpu", ExitCode.UNAVAILABLE)
    return torch.device(name)


def usable_cores() -> int:
    """Return how many CPU cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_threads(threads: int | None = None) -> int:
    """Let PyTorch use ``threads`` CPU threads, by default one per usable core, and return how many.

    ``OMP_NUM_THREADS``, which batch systems set, is the default where it is given.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    chosen = threads or (int(given) if given.isdecimal() and int(given) else usable_cores())
    torch.set_num_threads(chosen)
    return chosen


class NetworkThreads(ThreadPoolExecutor):
    """Threads that each run a network of their own, with an equal share of PyTorch's threads.

    Where these share each layer instead, they wait for the last of them at its end: for long, where layers are
    small or another program is on one of the cores.

    Parameters
    ----------
    count : int
        How many.
    cores : int
        PyTorch's threads, of all of them together.
    """

    def __init__(self, count: int, cores: int) -> None:
        self._count, self._cores = count, cores
        super().__init__(count, "network", torch.set_num_threads, (max(cores // count, 1),))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads; those to come use as many cores as before."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        if self._count > 1:
            torch.set_num_threads(self._cores)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return bfloat16 where ``device`` computes in it faster than in float32, else None."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
        return torch.bfloat16 if fast else None
    return None


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Run what is inside in ``dtype`` where that is safe; None changes nothing."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
