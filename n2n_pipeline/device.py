"""Where arithmetic runs: the device, CPU threads, precision, and how the C library keeps freed memory."""

from __future__ import annotations

import ctypes
import os
from contextlib import AbstractContextManager, nullcontext

import torch

from n2n_pipeline.errors import ExitCode, InputError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT_BYTES = 2**30


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


def tune_allocator() -> bool:
    """Make glibc keep freed blocks of up to 1 GiB, so that layers do not fault the same pages in again.

    Worth 20 to 40 % of a network's speed on a CPU; call it before tensors are made. The process keeps the
    memory of its largest moment. Returns whether it took effect: other C libraries have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT_BYTES) and mallopt(M_TRIM_THRESHOLD, 2 * KEPT_BYTES - 1))


def trim_memory() -> None:
    """Give the system back what is free, between pieces of work so large that they can fault it in again."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return


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
