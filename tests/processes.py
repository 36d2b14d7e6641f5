"""The command in processes of their own, forked from a server that has loaded everything: started in a moment.

Each is a real process in a group of its own, with its own standard streams, so that it can be signalled, killed
for good, or struck down at a file operation, and judged by its exit code and by what a user would have read.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from faults import counted, die, raise_error

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["preloaded"])


@cache
def _start_server() -> None:
    """Start the server where it finds what it shall load: it is told of folders by the environment alone."""
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent)]), prepend=os.pathsep)
        ensure_running()


@dataclass(frozen=True)
class Blow:
    """What shall happen to a process at one of its file operations."""

    at: int
    """Which, counted from 1; 0 for none: they are only counted."""
    error: int | None = None
    """An error number such as ``errno.ENOSPC``; None to die on the spot."""

    def __str__(self) -> str:
        return f"{errno.errorcode[self.error] if self.error else 'kill'} at {self.at}"


@dataclass(frozen=True)
class Order:
    """A command, and what is different in its process."""

    words: Sequence[object]
    settings: Mapping[str, object] = field(default_factory=dict)
    """Values of the package's names, as ``{"layout.SMALL_SHARD_BYTES": 0}``."""
    environment: Mapping[str, str] = field(default_factory=dict)
    blow: Blow | None = None


@dataclass(frozen=True)
class End:
    """How a command ended."""

    code: int
    """Exit code; a signal's number, negative, if that ended it."""
    out: str
    errors: str
    operations: int
    """How many file operations there were, if they were counted."""


class Running:
    """A command at work; its streams are files beside its folder, whose disk may be full."""

    def __init__(self, order: Order, folder: Path) -> None:
        self._streams = {name: folder.with_name(f"{folder.name}.{name}") for name in ("out", "err", "count")}
        for stream in self._streams.values():
            stream.unlink(missing_ok=True)
        _start_server()
        self.process: BaseProcess = _SERVER.Process(target=_work, args=(order, folder, self._streams))
        self.process.start()

    def send(self, number: int) -> None:
        """Send a signal to the process alone, which may have ended by itself."""
        if self.process.is_alive() and self.process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def kill(self) -> bool:
        """Kill it and all that it started; tell whether it was still at work."""
        alive = self.process.is_alive() and self.process.pid is not None
        if alive:
            for kill in (os.killpg, os.kill):  # it may not lead its group yet, or have ended by itself
                with contextlib.suppress(ProcessLookupError):
                    kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    def wait(self, seconds: float = 120) -> End:
        """Wait for its end."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"still at work after {seconds} s")
        out, errors, count = (
            stream.read_text(errors="replace") if stream.exists() else "" for stream in self._streams.values()
        )
        return End(self.process.exitcode, out, errors, int(count or 0))


def start(order: Order, folder: Path) -> Running:
    """Start a command in a folder."""
    return Running(order, folder)


def run(order: Order, folder: Path, seconds: float = 120) -> End:
    """Run a command to its end."""
    return start(order, folder).wait(seconds)


def _work(order: Order, folder: Path, streams: Mapping[str, Path]) -> None:
    if "preloaded" not in sys.modules:
        raise RuntimeError("the server has loaded nothing: every command would take seconds")
    os.setpgid(0, 0)
    os.chdir(folder)
    os.environ.update(order.environment)
    for descriptor, name in ((1, "out"), (2, "err")):
        with streams[name].open("w") as stream:
            os.dup2(stream.fileno(), descriptor)
    sys.argv = ["n2n-pipeline", *map(str, order.words)]
    for name, value in order.settings.items():
        module, _, attribute = name.rpartition(".")
        setattr(import_module(f"n2n_pipeline.{module}"), attribute, value)
    main = import_module("n2n_pipeline.cli").main
    if order.blow is None:
        main(sys.argv[1:])
        return
    strike = die if order.blow.error is None else raise_error(order.blow.error)
    with counted(order.blow.at or None, strike) as faults:
        try:
            main(sys.argv[1:])
        finally:
            os.write(os.open(streams["count"], os.O_CREAT | os.O_WRONLY), str(faults.count).encode())
