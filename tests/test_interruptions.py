"""Ingest, training, denoising, struck down anywhere: nothing passes for whole that is not; a rerun mends it.

Every run is a process of its own that is killed for good, signalled, or hit at one of its file operations. What it
leaves is judged by ``verify``; then the same words are run again, and must end in the bytes of a run that nobody
disturbed. All of it takes minutes: some of each kind run every time, the others with ``-m slow``.
"""

from __future__ import annotations

import errno
import itertools
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import mrcfile
import numpy as np
import pytest
from faults import KILLED, in_memory
from processes import Blow, End, Order, Running, run, start

from n2n_pipeline.config import NetworkConfig
from n2n_pipeline.errors import ExitCode
from n2n_pipeline.files import PARTIAL
from n2n_pipeline.ingest import ingest_movie
from n2n_pipeline.manifest import read_record
from n2n_pipeline.records import Ledger, Unit, is_complete, status, verify

slow = pytest.mark.slow
SEEDS = [*range(5), *(pytest.param(seed, marks=slow) for seed in range(5, 20))]
STRIDE = 24
STARTS = [1, *(pytest.param(first, marks=slow) for first in range(2, STRIDE + 1))]
"""Of every so many file operations one is struck: all of them, together."""

SETTINGS = {"layout.SMALL_SHARD_BYTES": 0, "files.RETRY_SECONDS": ()}
TRAINING = "--window 4 --device cpu --threads 1 --set 'network={width: 3, depth: 2}'"
TRAINING += " --set train.batch=2 --set train.patch_px=16"
DENOISING = "--device cpu --threads 1 --set denoise.augment=off --set denoise.tile.halo_px=exact"
STAGES = {
    "ingest": "ingest ../movie.mrc out.zarr --threads 1",
    "train": f"train ../movie.zarr -o out.zarr {TRAINING}",
    "denoise": f"denoise ../movie.zarr -m ../model -o out.zarr {DENOISING}",
}
STEPS = 40
SHORT = {"ingest": "", "train": "--steps 4 --set train.save_every=2 --set train.validate_every=4", "denoise": ""}
LONG = {
    "ingest": "",
    "train": f"--steps {STEPS} --set train.save_every=2 --set train.validate_every=20",
    "denoise": "--set denoise.tile.core_px=32",
}


class Whole(NamedTuple):
    """What a run left that nobody disturbed."""

    tree: dict[str, bytes]
    seconds: float
    """From the first sign of its output to its end."""
    operations: int


def tree(store: Path) -> dict[str, bytes]:
    """Read all files but the lock of a run that was killed, and, of a model, states that count seconds."""
    files = {str(path.relative_to(store)): path for path in store.rglob("*") if path.is_file()}
    counts_time = {
        "records/complete.json",
        *(name for name in files if name.endswith(".json") and "resume/" in name),
    }
    left_out = {"records/lock.json", *(counts_time if (store / "resume").is_dir() else ())}
    return {name: path.read_bytes() for name, path in files.items() if name not in left_out}


class Bench:
    """A movie and a model, and runs of a stage on them, each in a new folder."""

    def __init__(self, root: Path, shape: tuple[int, int, int], more: dict[str, str]) -> None:
        self.root, self._more, self._numbers = root, more, itertools.count()
        frames = np.random.default_rng(0).poisson(5, shape).astype(np.int16)
        with mrcfile.new(root / "movie.mrc") as file:
            file.set_data(frames)
            file.voxel_size = 1.0
        ingest_movie(root / "movie.mrc", root / "movie.zarr")
        make_model(root / "model")
        self.whole = cache(self._measure)

    def order(self, stage: str, blow: Blow | None = None, **environment: str) -> Order:
        return Order(shlex.split(f"{STAGES[stage]} {self._more[stage]}"), SETTINGS, environment, blow)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        path = self.root / f"run-{next(self._numbers)}"
        path.mkdir()
        yield path
        shutil.rmtree(path)

    def finish(self, stage: str, folder: Path) -> None:
        """Run a stage again; it must end well, and in the same bytes."""
        end = run(self.order(stage), folder)
        assert end.code == 0, end.errors
        assert tree(folder / "out.zarr") == self.whole(stage).tree
        assert verify(folder / "out.zarr")["ok"]

    def _measure(self, stage: str) -> Whole:
        with self.folder() as folder:
            running = start(self.order(stage), folder)
            wait_until((folder / "out.zarr/records/lock.json").exists, running)
            begun = time.monotonic()
            end = running.wait()
            seconds = time.monotonic() - begun
            assert end.code == 0, end.errors
            whole = tree(folder / "out.zarr")
        with self.folder() as folder:
            operations = run(self.order(stage, Blow(0)), folder).operations
            assert tree(folder / "out.zarr") == whole
        return Whole(whole, seconds, operations)


def make_model(folder: Path) -> None:
    import torch

    from n2n_pipeline.checkpoint import ModelCard, save_model
    from n2n_pipeline.model import UNet

    torch.manual_seed(0)
    network = NetworkConfig(width=3, depth=2)
    save_model(folder, UNet(network), ModelCard(network=network, mean=5.0, scale=2.0, window=4))


def wait_until(happened: Callable[[], bool], running: Running, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened() and running.process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.0005)


def check_left(store: Path, whole: Whole) -> bool:
    """Fail where a store says of itself more than is true; tell whether it says that it is whole."""
    for record in (store / "records/units").glob("*.json"):
        for name, entry in (read_record(record) or {"files": {}})["files"].items():
            assert (store / name).stat().st_size == entry["size"], f"a record over a missing file: {name}"
    if not is_complete(store):
        return False
    assert verify(store)["ok"]
    assert tree(store) == whole.tree
    return True


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=in_memory() or tmp_path_factory.mktemp("runs")) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def small(root) -> Bench:
    (root / "small").mkdir()
    return Bench(root / "small", (6, 24, 24), SHORT)


@pytest.fixture(scope="module")
def large(root) -> Bench:
    (root / "large").mkdir()
    return Bench(root / "large", (16, 128, 128), LONG)


# Kills and signals at any time


def progress_of(store: Path) -> float:
    """Tell which share of a run is recorded: units, or, of a training, states."""
    states = [int(path.stem.partition("-")[2]) for path in (store / "resume").glob("step-*.json")]
    found = status(store)
    return max(states) / STEPS if states else found["done"] / max(found["units"], 1)


def recorded_files(store: Path) -> dict[str, int]:
    """Name the files of recorded units, with what tells whether they were written again."""
    records = filter(None, map(read_record, (store / "records/units").glob("*.json")))
    return {name: (store / name).stat().st_ino for record in records for name in record["files"]}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_time_it_continues_to_the_same_bytes(large, stage, seed, record_property):
    whole = large.whole(stage)
    draw = np.random.default_rng(seed)
    with large.folder() as folder:
        store = folder / "out.zarr"
        while True:
            running = start(large.order(stage), folder)
            wait_until((store / "records/lock.json").exists, running)
            time.sleep(draw.uniform(0, whole.seconds))
            if running.kill():
                break
            shutil.rmtree(store)  # it was faster than the one that was measured
        record_property("share done", progress_of(store))
        check_left(store, whole)
        done = recorded_files(store)
        large.finish(stage, folder)
        again = recorded_files(store)
        redone = [name for name in done if done[name] != again[name]]
        record_property("recorded units redone", len(redone))
        assert not redone


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", pytest.param("SIGINT", marks=slow)])
@pytest.mark.parametrize("stage", STAGES)
def test_asked_to_stop_it_ends_soon_with_75_and_the_same_words_continue(large, stage, name, record_property):
    """As SLURM asks before a time limit, and then starts the same job again."""
    whole = large.whole(stage)
    with large.folder() as folder:
        store = folder / "out.zarr"
        running = start(large.order(stage, SLURM_JOB_ID="7"), folder)
        wait_until(lambda: progress_of(store) > 0, running)
        running.send(getattr(signal, name))
        asked = time.monotonic()
        end = running.wait(20)
        record_property("seconds to exit", time.monotonic() - asked)
        assert end.code == ExitCode.STOPPED, end.errors
        assert end.errors.splitlines()[-1].endswith("stopped; run the same command again to continue")
        assert not list(store.rglob(f"*{PARTIAL}"))
        assert not (store / "records/lock.json").exists()
        check_left(store, whole)
        again = run(large.order(stage, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="1"), folder)
        assert again.code == 0, again.errors
        assert tree(store) == whole.tree
        assert (folder / "log.txt").read_text().count(" job 7: ") == 2


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=slow) for seed in range(1, 5))])
def test_a_second_signal_or_a_kill_that_follows_leaves_what_a_rerun_completes(large, second, seed):
    stage = list(STAGES)[seed % 3]
    whole = large.whole(stage)
    with large.folder() as folder:
        store = folder / "out.zarr"
        running = start(large.order(stage), folder)
        wait_until(lambda: progress_of(store) > 0, running)
        running.send(signal.SIGTERM)
        time.sleep(np.random.default_rng(seed).uniform(0, 0.02))
        running.send(second)
        assert running.wait(20).code in (ExitCode.STOPPED, -second)
        check_left(store, whole)
        large.finish(stage, folder)


# Blows at every file operation


def strike(bench: Bench, stage: str, blow: Blow) -> End:
    """Strike one run, judge what it left, and let another run finish it."""
    with bench.folder() as folder:
        end = run(bench.order(stage, blow), folder)
        if (folder / "out.zarr/records").is_dir():
            check_left(folder / "out.zarr", bench.whole(stage))
        bench.finish(stage, folder)
    return end


@pytest.mark.parametrize("first", STARTS)
@pytest.mark.parametrize("stage", STAGES)
def test_after_a_crash_at_any_file_operation_nothing_is_taken_for_whole_that_is_not(
    small, stage, first, record_property
):
    points = range(first, small.whole(stage).operations + 1, STRIDE)
    for at in points:
        end = strike(small, stage, Blow(at))
        assert end.code in (KILLED, 0), f"operation {at}: {end.errors}"
    record_property("points", len(points))


ERRORS = {errno.ENOSPC: 74, errno.EIO: 74, errno.EDQUOT: 74, errno.EACCES: 73}


@pytest.mark.parametrize("first", STARTS)
@pytest.mark.parametrize("stage", STAGES)
def test_an_error_at_any_file_operation_is_one_line_and_a_rerun_completes(small, stage, first, record_property):
    points = range(first, small.whole(stage).operations + 1, STRIDE)
    for number, at in enumerate(points, first):
        error = list(ERRORS)[number % len(ERRORS)]
        end = strike(small, stage, Blow(at, error))
        assert "Traceback" not in end.errors
        assert end.code in (ERRORS[error], 0), f"operation {at}: {end.errors}"
        if end.code:  # making a folder that is there, or a log, may fail without harm
            last = end.errors.splitlines()[-1]
            assert last.startswith("n2n-pipeline: error: ")
            assert os.strerror(error).lower() in last
    record_property("points", len(points))


# Disks


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[None]:
    """Mount a disk of memory of so many bytes over a folder."""
    words = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "n2n-test", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("root alone can mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_line_and_with_more_room_the_same_words_finish(large, stage, record_property):
    whole = large.whole(stage)
    pages = sum(-(-len(data) // 4096) * 4096 for data in whole.tree.values())
    with large.folder() as folder, small_disk(folder, pages // 2):
        order = large.order(stage)
        if stage != "train":  # whose size does not depend on the movie's
            refused = run(order, folder)
            assert refused.code == ExitCode.IO
            assert "need" in refused.errors
            assert refused.errors.rstrip().endswith("--force-space to go on")
            assert not list((folder / "out.zarr").rglob("c"))
            order = Order([*order.words, "--force-space"], order.settings)
        end = run(order, folder)
        assert end.code == ExitCode.IO, end.errors
        assert "no space left on device" in end.errors.splitlines()[-1]
        assert "Traceback" not in end.errors
        strays = list((folder / "out.zarr").rglob(f"*{PARTIAL}"))
        record_property("strays", len(strays))
        assert not strays
        check_left(folder / "out.zarr", whole)
        remount(folder, f"size={4 * pages}")
        assert run(order, folder).code == 0
        assert tree(folder / "out.zarr") == whole.tree


@pytest.mark.parametrize("stage", STAGES)
def test_where_nothing_may_be_written_it_is_refused_before_any_work(small, stage, record_property):
    with small.folder() as folder, small_disk(folder, 1 << 20):
        remount(folder, "ro")
        begun = time.monotonic()
        end = run(small.order(stage), folder)
        record_property("ms to fail", round(1000 * (time.monotonic() - begun)))
    assert end.code == ExitCode.CANNOT_CREATE
    assert end.errors.count("\n") == 1
    assert "read-only file system" in end.errors


def test_a_second_run_on_one_output_is_refused_and_told_who_is_at_work(small):
    with small.folder() as folder, Ledger(folder / "out.zarr", {}, [Unit("only", ("data",))]):
        end = run(small.order("ingest"), folder)
    assert end.code == ExitCode.CANNOT_CREATE
    assert f"in use by process {os.getpid()} on {socket.gethostname()}" in end.errors
