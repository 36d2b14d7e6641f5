"""The right to write a store: one run at a time, taken over from a run that died."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.files import read_json, to_json

try:
    import fcntl
except ImportError:  # Windows: the lock then rests on the process id alone
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)


class RunLock:
    """The right to write ``store``, held by one process at a time through the file ``path``."""

    def __init__(self, store: Path, path: Path) -> None:
        self.store = store
        self.path = path
        self._descriptor = -1

    def acquire(self) -> None:
        """Take the lock, over a dead owner if need be; raises InputError naming a living one."""
        while self._descriptor < 0:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
            try:
                if self._claim(descriptor):
                    self._descriptor = descriptor
            finally:
                if self._descriptor < 0:
                    os.close(descriptor)

    def release(self) -> None:
        """Let go; the file is removed first, while it is still locked."""
        try:
            self.path.unlink(missing_ok=True)
        finally:
            os.close(self._descriptor)
            self._descriptor = -1

    def _claim(self, descriptor: int) -> bool:
        """Make an open lock file ours; False if its owner has just removed it."""
        free = _flock(descriptor)
        owner = read_json(self.path)
        if free is False or (owner and not _is_stale(owner, free)):
            raise InputError(
                self.store,
                f"in use by {_describe(owner)}",
                f"wait for it, or delete {self.path} if it is no more",
                ExitCode.CANNOT_CREATE,
            )
        if not self.path.exists() or os.fstat(descriptor).st_ino != self.path.stat().st_ino:
            return False
        if owner:
            _log.warning("%s: taking over from %s, which is no more", self.store, _describe(owner))
        me = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
        os.truncate(descriptor, 0)
        os.write(descriptor, to_json(me).encode())
        return True


def _flock(descriptor: int) -> bool | None:
    """Lock an open file: True if it is ours now, False if another has it, None if the file system cannot tell."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_stale(owner: Mapping[str, Any], free: bool | None) -> bool:
    if owner.get("host") == socket.gethostname():
        return bool(free) or not psutil.pid_exists(owner.get("pid", -1))
    return owner.get("job") is not None and owner["job"] == os.environ.get("SLURM_JOB_ID")  # requeued elsewhere


def _describe(owner: Mapping[str, Any] | None) -> str:
    if not owner:
        return "another run"
    job = f", job {owner['job']}" if owner.get("job") else ""
    return f"process {owner.get('pid')} on {owner.get('host')}{job}"
