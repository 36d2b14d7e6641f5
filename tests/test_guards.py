"""Every guard against losing data is needed: with it a fault is noticed, without it the same fault passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
import pytest

from n2n_pipeline import frame_pass, manifest, records, shards, store
from n2n_pipeline.errors import InputError
from n2n_pipeline.files import digest_file
from n2n_pipeline.layout import Layout
from n2n_pipeline.records import Ledger, Unit, verify
from n2n_pipeline.shards import write_shard
from n2n_pipeline.store import MovieStore, open_store, write_movie

FRAMES = np.random.default_rng(0).poisson(5, (8, 64, 64)).astype("int16")
SHARD = "0/c/0/0/0"


class Guard(NamedTuple):
    against: str
    notices: Callable[[Path], bool]
    """Make a store, do it harm, and say whether that was noticed before a wrong value was read or kept."""
    turn_off: Callable[[pytest.MonkeyPatch], object]


def refused(action: Callable[[], object]) -> bool:
    try:
        action()
    except (InputError, ValueError):
        return True
    return False


def cut_shard(folder: Path) -> bool:
    path = write_movie(folder / "movie.zarr", FRAMES).path
    (path / SHARD).write_bytes(b"")
    return refused(lambda: open_store(path))


def lost_shard_after_opening(folder: Path) -> bool:
    movie = write_movie(folder / "movie.zarr", FRAMES)
    (movie.path / SHARD).unlink()
    return refused(lambda: movie.read(slice(None)))


def flipped_bits(folder: Path) -> bool:
    movie = write_movie(folder / "movie.zarr", FRAMES)
    whole = (movie.path / SHARD).read_bytes()
    noticed = []
    for offset in np.random.default_rng(1).integers(len(whole), size=100):
        flipped = bytearray(whole)
        flipped[offset] ^= 4
        (movie.path / SHARD).write_bytes(flipped)
        noticed.append(refused(lambda: movie.read(slice(None))))
    return all(noticed)


def bits_flipped_at_rest(folder: Path) -> bool:
    path = write_movie(folder / "movie.zarr", FRAMES).path
    data = bytearray((path / SHARD).read_bytes())
    data[len(data) // 2] ^= 1
    (path / SHARD).write_bytes(data)
    return not verify(path)["ok"]


def unfinished_store(folder: Path) -> bool:
    path = write_movie(folder / "movie.zarr", FRAMES).path
    (path / "records/complete.json").unlink()
    (path / SHARD).unlink()
    return refused(lambda: open_store(path))


def edited_metadata(folder: Path) -> bool:
    path = write_movie(folder / "movie.zarr", FRAMES).path
    file = path / "0/zarr.json"
    file.write_text(file.read_text().replace("int16", "uint8"))
    return refused(lambda: open_store(path))


UNIT = Unit("only", ("data",))


def crash_while_writing_again(folder: Path) -> bool:
    """New content of the same size, half of it written when the run dies: the old record must not vouch for it."""
    path = folder / "store"
    with Ledger(path, {}, [UNIT]) as ledger, ledger.writing(UNIT):
        (path / "data").write_bytes(b"old")
    with suppress(KeyboardInterrupt), Ledger(path, {}, [UNIT]) as ledger, ledger.writing(UNIT):
        (path / "data").write_bytes(b"ne?")
        raise KeyboardInterrupt
    with Ledger(path, {}, [UNIT]) as ledger:
        return ledger.pending == [UNIT]


def two_runs_at_once(folder: Path) -> bool:
    with Ledger(folder / "store", {}, [UNIT]):
        return refused(lambda: Ledger(folder / "store", {}, [UNIT]).__enter__())


def record_of_other_settings(folder: Path) -> bool:
    path = folder / "store"
    with Ledger(path, {"window": 8}, [UNIT]) as ledger, ledger.writing(UNIT):
        (path / "data").write_bytes(b"old")
    (path / "records/plan.json").unlink()
    with Ledger(path, {"window": 16}, [UNIT]) as ledger:
        return ledger.pending == [UNIT]


def two_writers_in_one_shard(folder: Path) -> bool:
    layout = Layout((4, 8, 8), np.dtype("i2"), (4, 8, 8), (2, 8, 8), "counts")
    return refused(lambda: write_shard(folder, layout, (0, 0, 0), np.zeros((2, 8, 8), "i2")))


def movie_that_grows(folder: Path) -> bool:
    file = folder / "movie"
    file.write_bytes(b"1")
    before = [frame_pass._see(file)]
    file.write_bytes(b"12")
    return refused(lambda: frame_pass._check_unchanged(file, before))


def _digest_as_recorded(path: Path) -> str:
    """Pretend that a shard has not changed."""
    if path.name != "0":
        return digest_file(path)
    root = path.parents[len(Path(SHARD).parts) - 1]
    return str(json.loads((root / "records/complete.json").read_text())["files"][SHARD]["sha256"])


def _keep_records(patch: pytest.MonkeyPatch) -> None:
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name != "units":
            real(path, missing_ok)

    patch.setattr(Path, "unlink", unlink)


def _lock_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(records.RunLock, "acquire", lambda lock: None)
    patch.setattr(records.RunLock, "release", lambda lock: None)


def _off(owner: object, name: str, value: object) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(owner, name, value)


GUARDS = [
    Guard("a shard of 0 bytes", cut_shard, _off(manifest, "absent", lambda folder, files: [])),
    Guard("a shard lost while open", lost_shard_after_opening, _off(MovieStore, "_shards_in", lambda *_: ())),
    Guard("flipped bits, on reading", flipped_bits, _off(google_crc32c, "value", lambda data: 0)),
    Guard("flipped bits, at rest", bits_flipped_at_rest, _off(manifest, "digest_file", _digest_as_recorded)),
    Guard("a store never completed", unfinished_store, _off(store, "check_complete", lambda folder: None)),
    Guard("edited metadata", edited_metadata, _off(manifest, "_edited", lambda folder, files: [])),
    Guard("records that outlive their files", crash_while_writing_again, _keep_records),
    Guard("two runs at once", two_runs_at_once, _lock_nothing),
    Guard("records of other settings", record_of_other_settings, _off(records, "digest_json", lambda _: "same")),
    Guard("two writers in one shard", two_writers_in_one_shard, _off(shards, "_check_whole", lambda *_: None)),
    Guard(
        "a movie that grows",
        movie_that_grows,
        _off(frame_pass, "_see", lambda path: frame_pass._Seen(path, 0, 0)),
    ),
]


@pytest.mark.parametrize("guard", GUARDS, ids=[guard.against for guard in GUARDS])
def test_a_guard_notices_and_nothing_else_would(guard, ram, monkeypatch):
    (ram / "on").mkdir()
    (ram / "off").mkdir()
    assert guard.notices(ram / "on")
    guard.turn_off(monkeypatch)
    assert not guard.notices(ram / "off")
