"""Every guard against losing data is needed: with it a fault is noticed, without it the same fault passes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import mrcfile
import numpy as np
import pytest
import torch

from n2n_pipeline import checkpoint, files, frame_pass, manifest, records, shards, store
from n2n_pipeline.checkpoint import ModelCard, load_model, save_model
from n2n_pipeline.config import NetworkConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.files import digest_file, write_atomically
from n2n_pipeline.ingest import ingest_movie
from n2n_pipeline.layout import Layout
from n2n_pipeline.model import UNet
from n2n_pipeline.records import Ledger, Unit, verify
from n2n_pipeline.shards import write_shard
from n2n_pipeline.store import MovieStore, open_store, write_movie
from n2n_pipeline.training import state

FRAMES = np.random.default_rng(0).poisson(5, (8, 64, 64)).astype("int16")
SHARD = "0/c/0/0/0"
ingest = import_module("n2n_pipeline.ingest")  # the package has a function of that name
NETWORK = NetworkConfig(width=2, depth=1)
CARD = ModelCard(network=NETWORK, mean=5.0, scale=2.0, window=4)


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


def record_without_its_file(folder: Path) -> bool:
    path = folder / "store"
    with Ledger(path, {}, [UNIT]) as ledger, ledger.writing(UNIT):
        (path / "data").write_bytes(b"whole")
    (path / "data").write_bytes(b"to")
    with Ledger(path, {}, [UNIT]) as ledger:
        return ledger.pending == [UNIT]


def file_half_written(folder: Path) -> bool:
    """The run dies in the middle of a small file, such as weights or a table, that was there before."""
    file = folder / "weights"
    write_atomically(file, "old and whole")

    def parts() -> Iterator[bytes]:
        yield b"new and "
        raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        files.replace_file(file, parts())
    return file.read_text() == "old and whole"


def _replace_in_place(path: Path, parts: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(parts)


def newest_state_damaged(folder: Path) -> bool:
    trained = state.TrainingState(UNet(NETWORK))
    for trained.counters.step in (1, 2, 3):
        state.save_state(folder, trained)
    (folder / "step-000000003.safetensors").write_bytes(b"torn")
    return state.load_state(folder, state.TrainingState(UNet(NETWORK)))


def weights_flipped(folder: Path) -> bool:
    path = save_model(folder, UNet(NETWORK), CARD)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    return refused(lambda: load_model(path))


def weights_not_a_number(folder: Path) -> bool:
    network = UNet(NETWORK)
    torch.nn.init.constant_(network.leave.bias, torch.nan)
    return refused(lambda: save_model(folder, network, CARD))


def another_movie_of_that_name(folder: Path) -> bool:
    """The movie was replaced while half of it was stored."""
    file, path = folder / "movie.mrc", folder / "movie.zarr"
    with mrcfile.new(file) as mrc:
        mrc.set_data(FRAMES)
    ingest_movie(file, path)
    (path / "records/complete.json").unlink()
    with mrcfile.open(file, "r+") as mrc:
        mrc.set_data(FRAMES[:, ::-1])
    return refused(lambda: ingest_movie(file, path))


def folder_of_somebody(folder: Path) -> bool:
    path = folder / "thesis"
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")
    refused(lambda: Ledger(path, {}, [UNIT], restart=True).__enter__())
    return (path / "thesis.tex").exists()


def link_in_what_is_thrown_away(folder: Path) -> bool:
    path, elsewhere = folder / "store", folder / "elsewhere"
    with Ledger(path, {}, [UNIT]):
        pass
    elsewhere.mkdir()
    (elsewhere / "thesis.json").write_text("years of work")
    (path / "records/units").rmdir()
    (path / "records/units").symlink_to(elsewhere)
    refused(lambda: Ledger(path, {"new": 1}, [UNIT], restart=True).__enter__())
    return (elsewhere / "thesis.json").exists()


def damaged_table_of_shifts(folder: Path) -> bool:
    path = write_movie(folder / "movie.zarr", FRAMES).path
    store.write_shifts(path, store.Shifts(np.ones((8, 2)), np.ones(8)))
    table = path / manifest.SHIFTS
    table.write_text(table.read_text().replace("1.0", "7.0", 1))
    return refused(lambda: open_store(path))


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
    return str(json.loads((root / "records/complete.json").read_text())["files"][SHARD]["blake3"])


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
    Guard("a record without its file", record_without_its_file, _off(records, "absent", lambda folder, files: [])),
    Guard("a file half-written", file_half_written, _off(files, "replace_file", _replace_in_place)),
    Guard("the newest state damaged", newest_state_damaged, _off(state, "KEPT", 1)),
    Guard("flipped weights", weights_flipped, _off(checkpoint, "_digest_tensors", lambda data: "same")),
    Guard("weights not a number", weights_not_a_number, _off(checkpoint, "_check_finite", lambda *_: None)),
    Guard("another movie of that name", another_movie_of_that_name, _off(ingest, "_identify", lambda movie: {})),
    Guard("a folder of somebody", folder_of_somebody, _off(records, "_refuse_strangers", lambda path: None)),
    Guard(
        "a link in what is thrown away",
        link_in_what_is_thrown_away,
        _off(records, "_refuse_links", lambda _: None),
    ),
    Guard("damaged shifts", damaged_table_of_shifts, _off(store, "damaged_shifts", lambda path: [])),
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
