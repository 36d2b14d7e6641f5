"""A disk that fails, or a machine that dies, at the N-th file operation.

Every open for writing, write, flush to disk, rename, removal and new folder that Python code does is counted. At
the one chosen, either an operating system's error is raised, or the process ends on the spot as under SIGKILL.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

OPERATIONS = ("mkdir", "unlink", "remove", "rename", "replace", "fsync", "rmdir", "truncate")
KILLED = 9


def in_memory() -> str | None:
    """Return a folder on a disk of memory, where a flush costs nothing, or None if there is none."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and os.access(shared, os.W_OK) else None


class Faults:
    """Counts file operations and strikes at one of them."""

    def __init__(self, at: int | None, strike: Callable[[str], None]) -> None:
        self.at = at
        self.count = 0
        self._strike = strike

    def pass_by(self, what: str) -> None:
        self.count += 1
        if self.count == self.at:
            self._strike(what)


def raise_error(number: int) -> Callable[[str], None]:
    """Fail once with an error number such as ``errno.ENOSPC``."""

    def strike(what: str) -> None:
        raise OSError(number, os.strerror(number), what)

    return strike


def die(_what: str) -> None:
    """End as SIGKILL does: no handler, no cleaning up, no flushing."""
    os._exit(KILLED)


@contextmanager
def counted(at: int | None = None, strike: Callable[[str], None] = die) -> Iterator[Faults]:
    """Count all file operations inside; strike at number ``at``."""
    faults = Faults(at, strike)
    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, _counting(faults, name, getattr(os, name)))
        patch.setattr(io, "open", _opening(faults, io.open))
        patch.setattr(Path, "open", lambda path, *args, **kwargs: io.open(path, *args, **kwargs))  # noqa: SIM115, UP020
        yield faults


def _counting(faults: Faults, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def operation(*args: Any, **kwargs: Any) -> Any:
        faults.pass_by(f"{name} {args[0]}")
        return real(*args, **kwargs)

    return operation


def _opening(faults: Faults, real: Callable[..., Any]) -> Callable[..., Any]:
    def operation(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wxa+"):
            faults.pass_by(f"open {file}")
            return _CountedFile(faults, real(file, mode, *args, **kwargs))
        return real(file, mode, *args, **kwargs)

    return operation


class _CountedFile:
    """A file whose every write is an operation."""

    def __init__(self, faults: Faults, file: Any) -> None:
        self._faults, self._file = faults, file

    def write(self, data: Any) -> int:
        self._faults.pass_by(f"write {self._file.name}")
        return int(self._file.write(data))

    def writelines(self, parts: Any) -> None:
        for part in parts:
            self.write(part)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _CountedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
