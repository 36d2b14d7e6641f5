"""What is recorded is there, whatever happens on the way: locks, crashes, errors, damage."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import KILLED, counted, die, raise_error

from n2n_pipeline import records
from n2n_pipeline.errors import ExitCode, InputError, Stopped
from n2n_pipeline.files import PARTIAL, require_space, write_atomically
from n2n_pipeline.records import (
    Ledger,
    Unit,
    catch_signals,
    check_complete,
    is_complete,
    status,
    stop_requested,
    verify,
)

UNITS = [Unit(f"part-{number}", (f"data/{number}.bin", f"data/{number}.txt")) for number in range(3)]
SETTINGS = {"window": 8, "train": {"lr": 1e-3}}


def content(unit: Unit, name: str) -> bytes:
    return f"{unit.name} {name}".encode() * 10


def write(
    store: Path, settings: dict = SETTINGS, restart: bool = False, on_unit: Callable[[], object] = lambda: None
) -> int:
    """Do what a stage does; return how many units were left to do."""
    with Ledger(store, settings, UNITS, restart) as ledger:
        todo = len(ledger.pending)
        for unit in ledger.pending:
            with ledger.writing(unit) as notes:
                on_unit()
                for name in unit.files:
                    (store / name).parent.mkdir(exist_ok=True)
                    (store / name).write_bytes(content(unit, name))
                notes["length"] = len(unit.files)
        if not ledger.finished:
            write_atomically(store / "about.json", "{}")
            ledger.complete()
    return todo


def tree(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "movie.zarr"


def test_a_store_is_complete_when_all_is_written_and_not_before(store):
    with Ledger(store, SETTINGS, UNITS) as ledger:
        assert ledger.pending == UNITS
        with pytest.raises(InputError, match=r"not complete: 0 of 3 parts written; run the command"):
            check_complete(store)
        with pytest.raises(RuntimeError, match="part-0 is not done"):
            ledger.complete()
    assert not is_complete(store)
    write(store)
    check_complete(store)
    assert verify(store) | {"path": ""} == {
        "path": "",
        "ok": True,
        "complete": True,
        "files": 7,
        "bytes": sum(len(content(unit, name)) for unit in UNITS for name in unit.files) + 2,
        "missing": [],
        "changed": [],
        "extra": [],
    }


def test_a_second_run_finds_nothing_to_do_and_changes_nothing(store):
    write(store)
    before = tree(store)
    assert write(store) == 0
    assert tree(store) == before


def test_notes_of_a_unit_survive_the_run(store):
    write(store)
    with Ledger(store, SETTINGS, UNITS) as ledger:
        assert ledger.finished
        assert ledger.notes(UNITS[0]) == {"length": 2}


def test_neither_clock_nor_host_is_left_in_a_store(store):
    write(store)
    text = b" ".join(tree(store).values())
    assert socket.gethostname().encode() not in text
    # As a word of its own: the digits of a short process id also occur within checksums.
    assert not re.search(rb"\b%d\b" % os.getpid(), text)
    assert str(store.parent).encode() not in text


def test_other_settings_are_refused_with_what_differs(store):
    write(store)
    with pytest.raises(
        InputError, match=r"other settings \(train.lr 0.001 -> 0.002, window 8 -> unset\); --restart"
    ) as e:
        write(store, {"train": {"lr": 2e-3}})
    assert e.value.code == ExitCode.CANNOT_CREATE
    assert is_complete(store)


def test_another_version_of_the_code_does_not_continue_what_one_began(store, monkeypatch):
    with Ledger(store, SETTINGS, UNITS):
        pass
    monkeypatch.setattr(records, "__version__", "99")
    with pytest.raises(InputError, match=r"version .* -> 99"):
        write(store)


def test_restart_throws_away_what_other_settings_made(store):
    write(store)
    (store / "stray").mkdir()
    assert write(store, {"window": 16}, restart=True) == 3
    assert not (store / "stray").exists()
    assert verify(store)["ok"]


@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_that_is_not_ours_is_never_touched(store, restart):
    store.mkdir()
    (store / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="was not made by n2n-pipeline") as error:
        write(store, restart=restart)
    assert error.value.code == ExitCode.CANNOT_CREATE
    assert tree(store) == {"thesis.tex": b"years of work"}


def test_an_output_that_is_a_file_or_a_link_is_refused(store, tmp_path):
    store.write_text("a file")
    with pytest.raises(InputError, match="is a file") as error:
        write(store)
    assert error.value.code == ExitCode.CANNOT_CREATE
    store.unlink()
    (tmp_path / "elsewhere").mkdir()
    store.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="symbolic link") as error:
        write(store)
    assert error.value.code == ExitCode.REFUSED


def test_a_link_inside_a_store_does_not_lead_writes_elsewhere(store, tmp_path):
    write(store)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in (store / "data").iterdir():
        file.unlink()
    (store / "data").rmdir()
    (store / "data").symlink_to(elsewhere)
    with pytest.raises(InputError, match="symbolic link inside"):
        write(store)
    assert not list(elsewhere.iterdir())


def test_two_units_cannot_own_one_file(store):
    with pytest.raises(ValueError, match="own the same file"):
        Ledger(store, SETTINGS, [Unit("a", ("x",)), Unit("b", ("x",))])


def test_a_unit_that_leaves_a_file_out_is_not_recorded(store):
    with Ledger(store, SETTINGS, UNITS) as ledger:
        with pytest.raises(RuntimeError, match="did not write"), ledger.writing(UNITS[0]):
            pass
        assert status(store)["done"] == 0


# The lock


def test_a_second_run_on_the_same_store_is_refused_and_told_who_is_at_work(store):
    with Ledger(store, SETTINGS, UNITS):
        assert status(store)["running"]["pid"] == os.getpid()
        with pytest.raises(InputError, match=f"in use by process {os.getpid()} on ") as error:
            write(store)
        assert error.value.code == ExitCode.CANNOT_CREATE
    assert write(store) == 3


@pytest.mark.parametrize(
    ("host", "job", "todo"),
    [
        (socket.gethostname(), None, 3),  # this host can tell that nobody holds it
        ("elsewhere", "77", 3),  # the same job, requeued on another node
        ("elsewhere", "78", None),  # may be alive: this host cannot know
        ("elsewhere", None, None),
    ],
)
def test_the_lock_of_a_dead_run_is_taken_over_where_death_is_certain(store, host, job, todo, monkeypatch, caplog):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with Ledger(store, SETTINGS, UNITS):
        pass
    (store / "records/lock.json").write_text(json.dumps({"host": host, "pid": 2**22 + 1, "job": job}))
    if todo is None:
        with pytest.raises(InputError, match=r"on elsewhere.*; wait for it, or delete .*lock.json"):
            write(store)
    else:
        assert write(store) == todo
        assert "taking over" in caplog.text


def test_of_many_runs_that_start_at_once_one_wins(store):
    won, lost, start = [], [], threading.Barrier(8)

    def contend() -> None:
        start.wait()
        try:
            with Ledger(store, SETTINGS, UNITS):
                won.append(1)
                end.wait()
        except InputError:
            lost.append(1)
        finally:
            if len(lost) == 7:
                end.set()

    end = threading.Event()
    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (len(won), len(lost)) == (1, 7)


# Damage


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = {
    "removed": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut by a byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "cut by half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "one bit flipped": _flip,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["data/1.bin", "about.json"])
def test_verify_names_whatever_is_damaged(store, damage, name):
    write(store)
    DAMAGES[damage](store / name)
    found = verify(store)
    assert not found["ok"]
    assert name in found["missing"] + found["changed"]


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name not in ("zeroed", "one bit flipped")])
def test_a_lost_or_cut_file_makes_the_store_incomplete_and_is_written_again(store, damage):
    write(store)
    whole = tree(store)
    DAMAGES[damage](store / "data/1.bin")
    with pytest.raises(InputError, match=r"1 of 7 files missing or cut \(first data/1.bin\)"):
        check_complete(store)
    assert write(store) == 1
    assert tree(store) == whole


def test_a_record_is_not_trusted_alone(store):
    write(store)
    record = store / "records/units/part-1.json"
    for spoilt in (
        "",  # half-written
        record.read_text().replace(f'"size": {len(content(UNITS[1], UNITS[1].files[0]))}', '"size": 1'),
        record.read_text().replace('"stamp": "', '"stamp": "other'),
    ):
        record.write_text(spoilt)
        assert write(store) == 1
        assert verify(store)["ok"]


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"files": 3}', '{"files": {"data/0.bin": {}}}'])
@pytest.mark.parametrize("name", ["complete.json", "plan.json", "units/part-0.json"])
def test_records_that_make_no_sense_are_made_again(store, name, text):
    write(store)
    whole = tree(store)
    (store / "records" / name).write_text(text)
    status(store)
    verify(store)
    write(store)
    assert tree(store) == whole


def test_a_changed_manifest_is_not_believed(store):
    write(store)
    manifest = store / "records/complete.json"
    manifest.write_text(manifest.read_text().replace('"size": ', '"size": 1', 1))
    with pytest.raises(InputError, match="not complete"):
        check_complete(store)


def test_an_old_record_is_gone_before_its_files_are_touched(store):
    """Or a crash in between would leave a record over files that are not there."""
    write(store)
    with Ledger(store, SETTINGS, UNITS) as ledger, ledger.writing(UNITS[0]):
        assert not (store / "records/units/part-0.json").exists()
        assert not (store / UNITS[0].files[0]).exists()
        for name in UNITS[0].files:
            (store / name).write_bytes(b"again")


def test_what_a_killed_writer_left_half_written_is_swept(store):
    write(store)
    whole = tree(store)
    for number in range(10):
        (store / "data" / f"0.bin.{number}{PARTIAL}").write_bytes(b"half")
    assert verify(store)["ok"]
    write(store)
    assert tree(store) == whole


# Crashes and errors at every file operation


def _count_operations(store: Path) -> int:
    with counted() as faults:
        write(store)
    return faults.count


def write_among(store: Path, at: int, strike: Callable[[str], None]) -> None:
    with counted(at, strike):
        write(store)


def failure(action: Callable[[], object]) -> InputError | None:
    """Run, and return the one-line error that it ended with; any other goes on."""
    try:
        action()
    except InputError as error:
        return error
    return None


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_after_a_crash_at_any_file_operation_nothing_is_taken_for_whole_and_a_rerun_completes(ram):
    points = _count_operations(ram / "whole")
    expected = tree(ram / "whole")
    assert points > 40
    for at in range(1, points + 1):
        store = ram / f"at-{at}"
        child = multiprocessing.get_context("fork").Process(target=write_among, args=(store, at, die))
        child.start()
        child.join()
        assert child.exitcode == KILLED
        if is_complete(store):
            assert verify(store)["ok"]
        for done in (store / "records/units").glob("*.json"):
            for name, entry in json.loads(done.read_text())["files"].items():
                assert (store / name).stat().st_size == entry["size"]
        write(store)
        assert tree(store) == expected, f"operation {at}"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES])
def test_an_error_at_any_file_operation_is_one_line_and_a_rerun_completes(ram, number):
    points = _count_operations(ram / "whole")
    expected = tree(ram / "whole")
    for at in range(1, points + 1):
        store = ram / f"at-{at}"
        error = failure(lambda store=store, at=at: write_among(store, at, raise_error(number)))
        if error is not None:  # making a folder that is there may fail without harm
            assert error.code in (ExitCode.IO, ExitCode.CANNOT_CREATE)
            assert os.strerror(number).lower() in str(error)
        write(store)
        assert tree(store) == expected, f"operation {at}"


# Signals


def test_a_signal_is_obeyed_between_two_units(store):
    with catch_signals():
        with pytest.raises(Stopped) as stopped:
            write(store, on_unit=lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert stop_requested()
    assert stopped.value.code == ExitCode.STOPPED
    assert status(store)["done"] == 1
    assert not stop_requested()
    assert write(store) == 2


def test_a_second_signal_ends_the_process():
    script = """if True:
        import time
        from n2n_pipeline.records import catch_signals
        with catch_signals():
            print("ready", flush=True)
            time.sleep(60)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    process.stdout.close()


# Space


def test_what_would_fill_the_disk_is_not_begun(tmp_path):
    require_space(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(InputError, match=r"need 1000 TB, .* has .* GB; --force-space to go on") as error:
        require_space(tmp_path / "not" / "there" / "yet", 10**15)
    assert error.value.code == ExitCode.IO


def test_a_read_only_place_is_refused_before_any_work(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="permission denied") as error:
        write(tmp_path / "movie.zarr")
    tmp_path.chmod(0o700)
    assert error.value.code == ExitCode.CANNOT_CREATE
