"""What a store's records say of it: complete or not, whole or not, how far.

Everything lies in ``STORE/records``: ``plan.json`` (what the store is being made from), ``units/NAME.json`` (one
per finished unit), ``complete.json`` (the manifest: size and digest of every file, written last) and, while a run
is at work, ``lock.json``. Only the lock knows of hosts, and it is gone at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.files import PARTIAL, digest_file, digest_json, read_json

RECORDS = "records"
FAILED = f"{RECORDS}/failed.json"
"""Units that failed on several workers of a cluster, and why."""
SHIFTS = f"{RECORDS}/shifts.json"
"""Written by a later stage into a complete store, so not part of the manifest."""


def is_complete(store: Path) -> bool:
    """Tell whether a store's manifest is there, every file it names has its size, and metadata their digest."""
    manifest = _read_manifest(store)
    return manifest is not None and not absent(store, manifest["files"]) and not _edited(store, manifest["files"])


def check_complete(store: Path) -> None:
    """Refuse a store that is not whole.

    Presence and size of every file are checked, and the digest of all metadata; `verify` reads all bytes.

    Raises
    ------
    InputError
        Saying what is missing [65], or that metadata was changed [76].
    """
    manifest = _read_manifest(store)
    if manifest is None:
        state = status(store)
        what = f"not complete: {state['done']} of {state['units']} parts written"
        raise InputError(store, what, "run the command that makes it again")
    lost = absent(store, manifest["files"])
    if lost:
        what = f"{len(lost)} of {len(manifest['files'])} files missing or cut (first {lost[0]})"
        raise InputError(store, what, "run the command that made it again")
    edited = _edited(store, manifest["files"])
    if edited:
        raise InputError(store, f"{edited[0]} was changed", "run the command that made it again", ExitCode.CORRUPT)


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a unit's record or the manifest; None where there is none that makes sense."""
    record = read_json(path)
    files = record.get("files") if isinstance(record, dict) else None
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        return None
    return record if all({"size", "blake3"} <= entry.keys() for entry in files.values()) else None


def _read_manifest(store: Path) -> dict[str, Any] | None:
    manifest = read_record(store / RECORDS / "complete.json")
    is_sound = manifest is not None and manifest.get("digest") == digest_json(manifest["files"])
    return manifest if is_sound else None


def _edited(store: Path, files: Mapping[str, Any]) -> list[str]:
    """Name metadata that are not what was written; the files must be there."""
    names = (name for name in files if name.endswith("zarr.json"))
    return [name for name in names if digest_file(store / name) != files[name]["blake3"]]


def absent(store: Path, files: Mapping[str, Any]) -> list[str]:
    """Name files that are not there or have another size than recorded."""

    def is_whole(name: str) -> bool:
        try:
            return bool((store / name).stat().st_size == files[name]["size"])
        except OSError:
            return False

    return [name for name in files if not is_whole(name)]


def data_files(store: Path) -> list[str]:
    """Name all files of a store but its records."""
    found = (path.relative_to(store) for path in store.rglob("*") if path.is_file())
    names = [path.as_posix() for path in found if path.parts[0] != RECORDS]
    return sorted(name for name in names if not name.endswith(PARTIAL))


def store_digest(store: Path) -> str | None:
    """Return the digest of a complete store's content (SHA-256 over its files' digests), or None."""
    manifest = _read_manifest(store)
    return None if manifest is None else manifest["digest"]


def content_digest(store: Path) -> str:
    """Return `store_digest`, or, of a store made elsewhere, which has none, that of its metadata."""
    return store_digest(store) or digest_file(next(iter(sorted(store.glob("*.json"))), store / ".zgroup"))


def damaged_shifts(store: Path) -> list[str]:
    """Name the table of shifts, which no manifest lists, if it is not what was written."""
    table = read_json(store / SHIFTS)
    if table is None and not (store / SHIFTS).exists():
        return []
    digest = table.pop("sha256", None) if isinstance(table, dict) else ""
    return [] if digest is None or digest == digest_json(table) else [SHIFTS]


def check_ours(store: Path) -> None:
    """Refuse a path that has no records to be judged by.

    Raises
    ------
    InputError
        If there is nothing [66], or something that no stage wrote [65].
    """
    if not store.exists():
        raise InputError(store, "no such file", code=ExitCode.NO_INPUT)
    if not (store / RECORDS).is_dir():
        raise InputError(store, "was not made by n2n-pipeline, or has lost its records")


def verify(store: Path) -> dict[str, Any]:
    """Read every byte of a store again and compare with what was recorded.

    Returns
    -------
    dict
        ``ok``, ``complete``, number of ``files`` and ``bytes`` read, and the names of ``missing`` (or cut),
        ``changed`` and ``extra`` files.
    """
    manifest = _read_manifest(store)
    files: dict[str, Any] = {} if manifest is None else manifest["files"]
    if manifest is None:
        for record in _unit_records(store):
            files |= record["files"]
    missing = absent(store, files)
    present = [name for name in files if name not in set(missing)]
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda name: digest_file(store / name), present))
    changed = [name for name, digest in zip(present, digests, strict=True) if digest != files[name]["blake3"]]
    changed += damaged_shifts(store)
    return {
        "path": str(store),
        "ok": manifest is not None and not missing and not changed,
        "complete": manifest is not None,
        "files": len(present),
        "bytes": sum(files[name]["size"] for name in present),
        "missing": missing,
        "changed": changed,
        "extra": [] if manifest is None else [name for name in data_files(store) if name not in files],
    }


def status(store: Path) -> dict[str, Any]:
    """Say how far a store has come, from its records alone.

    Returns
    -------
    dict
        ``complete``, number of ``units`` planned and ``done``, names of those ``missing``, what ``failed`` on a
        cluster and why, and ``running``: host, process and job of the run at work, or None.
    """
    plan = read_json(store / RECORDS / "plan.json")
    units = plan.get("units", []) if isinstance(plan, dict) else []
    done = {path.stem for path in (store / RECORDS / "units").glob("*.json") if read_record(path) is not None}
    missing = [name for name in units if name not in done]
    return {
        "path": str(store),
        "complete": is_complete(store),
        "units": len(units),
        "done": len(units) - len(missing),
        "missing": missing,
        "failed": read_json(store / FAILED) or {},
        "running": read_json(store / RECORDS / "lock.json"),
    }


def _unit_records(store: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((store / RECORDS / "units").glob("*.json")):
        record = read_record(path)
        if record is not None:
            yield record
