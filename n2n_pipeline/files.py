"""Files that are whole or not there: atomic replacement, flushing, digests, one line for what a disk refuses."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from blake3 import blake3

from n2n_pipeline.errors import ExitCode, InputError, printable

T = TypeVar("T")
TRANSIENT = {errno.EIO, errno.ESTALE, errno.EAGAIN}
RETRY_SECONDS = (0.1, 1.0, 5.0)
FETCHED_BYTES = 1 << 28
PARTIAL = ".partial"
"""Ends the name of a file that is being written; Zarr's own writer uses the same."""

_log = logging.getLogger(__name__)
_forced: ContextVar[bool] = ContextVar("forced", default=False)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Put ``data`` at ``path`` such that a crash leaves the old content or the new, on disk, and nothing else."""
    replace_file(path, [data.encode() if isinstance(data, str) else data])
    sync(path.parent)


def replace_file(path: Path, parts: Iterable[bytes]) -> None:
    """Write parts under another name, flush them to disk, rename; the folder's list of names is left to `sync`."""
    _replace(path, parts, flush=True)


def put_file(path: Path, parts: Iterable[bytes]) -> None:
    """Write parts under another name and rename, for whoever flushes the file later or can do without it."""
    _replace(path, parts, flush=False)


def _replace(path: Path, parts: Iterable[bytes], flush: bool) -> None:
    partial = path.with_name(f"{path.name}.{uuid4().hex}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            file.writelines(parts)
            file.flush()
            if flush:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def expect(path: Path, start: int = 0, n_bytes: int = FETCHED_BYTES) -> None:
    """Ask the system to fetch a part of a file that will be read, and do not wait for it."""
    if not hasattr(os, "posix_fadvise") or not path.is_file():
        return
    with suppress(OSError), path.open("rb") as file:  # whoever reads it says what is wrong with it
        os.posix_fadvise(file.fileno(), start, n_bytes, os.POSIX_FADV_WILLNEED)


def digest_file(path: Path) -> str:
    """Return the BLAKE3 of a file's bytes, in hexadecimal, three times as fast as SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, blake3).hexdigest()  # type: ignore[arg-type]  # its update returns itself


def digest_json(value: object) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys, in hexadecimal."""
    return hashlib.sha256(to_json(value).encode()).hexdigest()


def retry_transient(action: Callable[[], T]) -> T:
    """Run an action; try again, after a while, what a network file system refuses for a moment.

    A full disk or a missing right does not pass, and is not tried again.
    """
    for delay in RETRY_SECONDS:
        try:
            return action()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
            _log.warning("%s: %s; trying again in %g s", error.filename, error.strerror, delay)
            time.sleep(delay)
    return action()


@contextmanager
def force_space(force: bool = True) -> Iterator[None]:
    """Let `require_space` only warn inside the body: an estimate may be wrong, or room may be made meanwhile."""
    before = _forced.set(force)
    try:
        yield
    finally:
        _forced.reset(before)


def require_space(path: Path, needed_bytes: int) -> None:
    """Refuse to start what would fill the disk; inside `force_space`, warn.

    Parameters
    ----------
    path : pathlib.Path
        Where the output will be; it need not exist yet.
    needed_bytes : int
        Estimate of the output's size.

    Raises
    ------
    InputError
        If the file system has less room [74].
    """
    place = next(p for p in (path, *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if needed_bytes <= free:
        return
    what = f"need {_gigabytes(needed_bytes)}, {place} has {_gigabytes(free)}"
    if not _forced.get():
        raise InputError(path, what, "--force-space to go on", ExitCode.IO)
    _log.warning("%s: %s; going on as told", printable(path), printable(what))


def _gigabytes(n_bytes: int) -> str:
    """Write a number of bytes as people do.

    Examples
    --------
    >>> _gigabytes(812_300_000_000), _gigabytes(1_500_000), _gigabytes(3)
    ('812 GB', '1.5 MB', '0.003 kB')
    """
    unit, name = next(((u, n) for u, n in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if n_bytes >= u), (1e3, "kB"))
    return f"{n_bytes / unit:.0f} {name}" if n_bytes >= 100 * unit else f"{n_bytes / unit:.2g} {name}"


def to_json(value: object) -> str:
    """Write a JSON value the one way it is kept, so that equal values are equal bytes."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False)


def read_json(path: Path) -> Any:
    """Read a record, or None where there is none that can be read."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


@contextmanager
def one_line_errors(store: Path) -> Iterator[None]:
    """Turn an operating system's error inside the body into an InputError."""
    try:
        yield
    except OSError as error:
        raise one_line(store, error) from error


def one_line(store: Path, error: OSError) -> InputError:
    """Say which file the operating system refused, and why."""
    denied = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOENT)
    place, what = Path(error.filename or store), (error.strerror or str(error)).lower()
    if error.errno == errno.ENOENT and store not in (place, *place.parents):
        return InputError(place, what, code=ExitCode.NO_INPUT)
    if error.errno in denied:
        return InputError(place, what, "choose another output", ExitCode.CANNOT_CREATE)
    return InputError(place, what, "what is done is kept: run again to continue", ExitCode.IO)
