"""What is done, kept beside the data: run lock, done-records with digests, completion manifest, atomic files.

A store is written in *units*, each a set of files that no other unit touches. A unit's record is removed before
its files are, and written after they have reached the disk, so a record never stands over missing data. The
manifest that names every file is written last: a store without it is not complete, and readers refuse it.

Everything lies in ``STORE/records``: ``plan.json`` (what the store is being made from), ``units/NAME.json`` (one
per finished unit), ``complete.json`` (the manifest) and, while a run is at work, ``lock.json``. Only the lock
knows of hosts, and it is gone at the end.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

from n2n_pipeline import __version__
from n2n_pipeline.errors import ExitCode, InputError, Stopped
from n2n_pipeline.files import (
    PARTIAL,
    digest_file,
    digest_json,
    one_line,
    one_line_errors,
    put_file,
    read_json,
    sync,
    to_json,
    write_atomically,
)
from n2n_pipeline.lock import RunLock
from n2n_pipeline.manifest import (
    FAILED,
    RECORDS,
    absent,
    check_complete,
    data_files,
    is_complete,
    read_record,
    status,
    store_digest,
    verify,
)

__all__ = [
    "Ledger",
    "Unit",
    "catch_signals",
    "check_complete",
    "digest_file",
    "is_complete",
    "status",
    "stop_requested",
    "store_digest",
    "verify",
    "write_atomically",
    "write_unit",
]

SCHEMA = 2
FLUSHES = 16  # of folders, at a time
LONGEST_VALUE = 24  # of a setting, in an error's line
FOLLOWING = {"shards", "chunks", "shuffle"}  # of a fingerprint's keys, those that settings decide

_log = logging.getLogger(__name__)
_stop = threading.Event()


class Unit(NamedTuple):
    """A part of a store that is written, recorded and redone as a whole."""

    name: str
    """Letters, digits, ``._-``; names its record."""
    files: tuple[str, ...]
    """The files, relative to the store, that this unit alone writes."""


# Signals


def stop_requested() -> bool:
    """Tell whether a signal has asked this process to stop between two units."""
    return _stop.is_set()


@contextmanager
def catch_signals() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGUSR1 into a flag; a second one ends the process as usual."""
    names = [name for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in (getattr(signal, name) for name in names)}

    def note(number: int, _frame: FrameType | None) -> None:
        _stop.set()
        signal.signal(number, before[number] if number == signal.SIGINT else signal.SIG_DFL)

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _stop.clear()


# Units


@contextmanager
def write_unit(store: Path, unit: Unit, stamp: str) -> Iterator[dict[str, Any]]:
    """Write one unit: remove what is left of it, run the body, flush to disk, record sizes and digests.

    For workers of a cluster, which have no `Ledger`; whoever has one calls `Ledger.writing`.

    Parameters
    ----------
    store : pathlib.Path
        The store being written.
    unit : Unit
        What the body writes, and nothing else does.
    stamp : str
        Of the ledger, so that a record of other settings is not taken for one of these.

    Yields
    ------
    dict
        To be filled with what a later stage must know of the unit (JSON values); kept in the record.

    Raises
    ------
    Stopped
        Before anything is touched, if a signal asked for it.
    RuntimeError
        If the body did not write all files.
    """
    if stop_requested():
        raise Stopped(store)
    record = _record_path(store, unit)
    record.unlink(missing_ok=True)
    for name in unit.files:
        (store / name).unlink(missing_ok=True)
    notes: dict[str, Any] = {}
    yield notes
    missing = [name for name in unit.files if not (store / name).is_file()]
    if missing:
        raise RuntimeError(f"unit {unit.name} did not write {missing[0]}")
    entries = {name: _sync_file(store / name) for name in unit.files}
    # Not flushed: a record that a power cut takes, or cuts, is one unit done again; what it names is on the disk.
    put_file(record, [to_json({"stamp": stamp, "files": entries, "notes": notes}).encode()])


def _record_path(store: Path, unit: Unit) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", unit.name):
        raise ValueError(f"unit name {unit.name!r} is not a plain file name")
    return store / RECORDS / "units" / f"{unit.name}.json"


def _sync_file(path: Path) -> dict[str, Any]:
    """Flush a file to disk, and return its entry in a record.

    That its folder names it may still be lost with the power: then it is absent, which is noticed, never wrong.
    """
    sync(path)
    return {"size": path.stat().st_size, "blake3": digest_file(path)}


# One run on one store


class Ledger:
    """One run writing one store: takes the lock, checks that the run continues what was begun, says what is left.

    Use as a context manager; an operating system's error inside becomes one line with its exit code.

    Parameters
    ----------
    store : pathlib.Path
        Folder of the store; made if it is not there.
    fingerprint : dict
        All that decides the output's bytes: settings, input digests (JSON values). Versions are added.
    units : sequence of Unit
        What will be written, in order.
    restart : bool
        Throw away what was made with another fingerprint.

    Raises
    ------
    InputError
        On entering: another run holds the store, it was made with other settings, or it is not a store of ours.
    """

    pending: list[Unit]
    """Units still to be written, in order."""
    stamp: str
    """Digest of the fingerprint."""
    finished: bool
    """Complete already: nothing is left to do."""

    def __init__(
        self, store: Path, fingerprint: Mapping[str, Any], units: Sequence[Unit], restart: bool = False
    ) -> None:
        self.store = store
        self.fingerprint = {"schema": SCHEMA, "version": __version__, **fingerprint}
        self.stamp = digest_json(self.fingerprint)
        self.units = tuple(units)
        self.pending = []
        self.finished = False
        self._restart = restart
        self._lock = RunLock(store, store / RECORDS / "lock.json")
        names = [name for unit in units for name in unit.files]
        if len(set(names)) < len(names):
            raise ValueError("two units own the same file")

    def __enter__(self) -> Self:
        with one_line_errors(self.store):
            _refuse_strangers(self.store)
            (self.store / RECORDS / "units").mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            try:
                self._start()
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with one_line_errors(self.store):
            self._lock.release()
        if isinstance(error, OSError):
            raise one_line(self.store, error) from error

    def _start(self) -> None:
        _refuse_links(self.store)
        if self._restart:
            _wipe(self.store)
        plan = self.store / RECORDS / "plan.json"
        begun = read_json(plan)
        before = begun.get("fingerprint") if isinstance(begun, dict) else None
        if isinstance(before, dict) and before != self.fingerprint:
            raise InputError(
                self.store,
                f"made with other settings ({_differences(before, self.fingerprint)})",
                "--restart or another output",
                ExitCode.CANNOT_CREATE,
            )
        _sweep(self.store)
        self.pending = [unit for unit in self.units if not self._is_done(unit)]
        self.finished = not self.pending and is_complete(self.store)
        if not self.finished:
            (self.store / RECORDS / "complete.json").unlink(missing_ok=True)
        if before is None:
            write_atomically(
                plan, to_json({"fingerprint": self.fingerprint, "units": [unit.name for unit in self.units]})
            )

    def _is_done(self, unit: Unit) -> bool:
        record = read_record(_record_path(self.store, unit))
        return (
            record is not None
            and record.get("stamp") == self.stamp
            and set(record["files"]) == set(unit.files)
            and not absent(self.store, record["files"])
        )

    @contextmanager
    def writing(self, unit: Unit) -> Iterator[dict[str, Any]]:
        """Write one unit; see `write_unit`. Safe from several threads for different units."""
        with write_unit(self.store, unit, self.stamp) as notes:
            yield notes

    def notes(self, unit: Unit) -> dict[str, Any]:
        """Return what the run that wrote a finished unit noted of it."""
        return read_json(_record_path(self.store, unit))["notes"]  # type: ignore[no-any-return]

    def complete(self) -> None:
        """Write the manifest over all files, last of all.

        Raises
        ------
        RuntimeError
            If a unit has no record.
        """
        manifest = self.store / RECORDS / "complete.json"
        files: dict[str, Any] = {}
        for unit in self.units:
            if not self._is_done(unit):
                raise RuntimeError(f"unit {unit.name} is not done")
            files |= read_json(_record_path(self.store, unit))["files"]
        files |= {name: _sync_file(self.store / name) for name in data_files(self.store) if name not in files}
        folders = {self.store / folder for name in files for folder in Path(name).parents}
        with ThreadPoolExecutor(FLUSHES) as pool:  # the disk does many at once
            list(pool.map(sync, folders))
        (self.store / FAILED).unlink(missing_ok=True)
        write_atomically(manifest, to_json({"stamp": self.stamp, "files": files, "digest": digest_json(files)}))


def _refuse_strangers(store: Path) -> None:
    """Never write into, nor wipe, what is not a store of ours."""
    for path in (store, store / RECORDS):
        if path.is_symlink():
            raise InputError(path, "is a symbolic link", "name the folder itself", ExitCode.REFUSED)
    if store.exists() and not store.is_dir():
        raise InputError(store, "is a file", "choose another output", ExitCode.CANNOT_CREATE)
    if store.is_dir() and any(store.iterdir()) and not (store / RECORDS).is_dir():
        raise InputError(
            store, "exists and was not made by n2n-pipeline", "choose another output", ExitCode.CANNOT_CREATE
        )


def _wipe(store: Path) -> None:
    """Delete a store's content, records first, keeping the lock."""
    records = store / RECORDS
    (records / "complete.json").unlink(missing_ok=True)
    for path in (records / "units").glob("*.json"):
        path.unlink()
    for path in [*records.iterdir(), *store.iterdir()]:
        if path.name in (RECORDS, "lock.json", "units"):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _refuse_links(store: Path) -> None:
    """Refuse links that would lead writes, or the deleting of what is old, elsewhere."""
    for folder, folders, names in os.walk(store):
        for path in (Path(folder, name) for name in (*folders, *names)):
            if path.is_symlink():
                raise InputError(path, "a symbolic link inside a store", "remove it", ExitCode.REFUSED)


def _sweep(store: Path) -> None:
    """Remove what killed writers left half-written."""
    reclaimed = 0
    for path in store.rglob(f"*{PARTIAL}"):
        reclaimed += path.stat().st_size
        path.unlink()
    if reclaimed:
        _log.info("%s: removed %d bytes that a killed run had left", store, reclaimed)


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Name what changed, as ``window 8 -> 16``; at most three of them, and what follows from others only alone."""
    old, new = _flatten(before), _flatten(after)
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    keys = [key for key in keys if key not in FOLLOWING] or keys
    changed = [f"{key} {_shorten(old.get(key, 'unset'))} -> {_shorten(new.get(key, 'unset'))}" for key in keys]
    more = [f"and {len(changed) - 3} more"] if len(changed) > 3 else []
    return ", ".join(changed[:3] + more)


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
