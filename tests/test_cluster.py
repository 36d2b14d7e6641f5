"""Workers elsewhere: the same bytes as from threads, whoever dies; jobs that a shell cannot misread."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import distributed
import mrcfile
import numpy as np
import psutil
import pytest

from n2n_pipeline import frame_pass
from n2n_pipeline.cluster import connect, job_script, submit_job
from n2n_pipeline.config import SlurmConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.ingest import ingest_movie
from n2n_pipeline.records import status, verify
from n2n_pipeline.store import open_store

SHAPE = (40, 48, 64)


@contextlib.contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in the background, and end it."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def movie(ram: Path) -> Path:
    with mrcfile.new(ram / "movie.mrc") as file:
        file.set_data(np.random.default_rng(0).poisson(5, SHAPE).astype("f4"))
    return ram / "movie.mrc"


def tree(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_threads_need_no_client():
    with connect("threads") as client:
        assert client is None


@pytest.mark.parametrize("where", ["", "local:x", "locals", "file:///etc", "slurm"])
def test_what_is_no_cluster_is_refused(where):
    with pytest.raises(InputError), connect(where):
        pass


def test_a_scheduler_that_does_not_answer_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr("n2n_pipeline.cluster.REACH_SECONDS", 0.5)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # but nobody listens
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match="no scheduler answers") as error, connect(address):
            pass
    assert error.value.code == ExitCode.UNAVAILABLE


def test_workers_end_with_the_same_bytes_as_threads_and_listen_on_this_host_alone(movie, ram):
    whole = tree(ingest_movie(movie, ram / "threads.zarr"))
    with connect("local:2") as client:
        assert client is not None
        ports = [
            connection.laddr.ip
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
        ingest_movie(movie, ram / "workers.zarr", client=client)
    assert set(ports) == {"127.0.0.1"}
    assert tree(ram / "workers.zarr") == whole


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(movie, ram, seed, record_property):
    whole = tree(ingest_movie(movie, ram / "threads.zarr"))
    with connect("local:2") as client:
        assert client is not None
        client.register_plugin(Slow())
        stop, kills = threading.Event(), [0]
        killer = threading.Thread(target=_kill_now_and_then, args=(stop, kills, seed))
        killer.start()
        ingest_movie(movie, ram / "workers.zarr", client=client)
        stop.set()
        killer.join()
    record_property("kills", kills[0])
    assert kills[0]
    assert tree(ram / "workers.zarr") == whole


def _slow_down() -> None:
    """Make the work last long enough to be killed in."""
    real = frame_pass.write_frames

    def slowly(*args: object) -> None:
        time.sleep(0.4)
        real(*args)

    frame_pass.write_frames = slowly


def _kill_now_and_then(stop: threading.Event, kills: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    while not stop.wait(random.uniform(0.2, 0.8)):
        workers = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
        for worker in workers[-1:]:
            worker.send_signal(signal.SIGKILL)
            kills[0] += 1


def _poison(ending: str) -> None:
    real = frame_pass.write_frames

    def fail(folder: Path, layout: object, span: range, frames: np.ndarray) -> None:
        if span.start == 16 and ending == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if span.start == 16:
            raise ValueError("poison")
        real(folder, layout, span, frames)

    frame_pass.write_frames = fail


class Slow(distributed.WorkerPlugin):
    """Whatever worker comes is slow."""

    def setup(self, worker: object) -> None:
        _slow_down()


cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test's module


class Poison(distributed.WorkerPlugin):
    """Whatever worker comes is poisoned, too."""

    def __init__(self, ending: str) -> None:
        self.ending = ending

    def setup(self, worker: object) -> None:
        _poison(self.ending)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["failed", "killed"])
def test_a_unit_that_fails_everywhere_is_set_aside_and_all_others_are_done(movie, ram, ending):
    with connect("local:2") as client:
        assert client is not None
        client.register_plugin(Poison(ending))
        with pytest.raises(InputError, match=r"1 parts failed, first frames-0000016"):
            ingest_movie(movie, ram / "out.zarr", client=client)
    found = status(ram / "out.zarr")
    assert list(found["failed"]) == ["frames-0000016"]
    assert found["done"] == found["units"] - 1
    ingest_movie(movie, ram / "out.zarr")
    assert verify(ram / "out.zarr")["ok"]
    assert not status(ram / "out.zarr")["failed"]


@pytest.mark.slow
def test_a_scheduler_that_dies_ends_the_command_with_75_and_a_rerun_continues(
    movie, ram, environment, record_property
):
    whole = tree(ingest_movie(movie, ram / "whole.zarr"))
    file = ram / "scheduler.json"
    words = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]
    with contextlib.ExitStack() as stack:
        scheduler = stack.enter_context(_started([sys.executable, "-m", "distributed.cli.dask_scheduler", *words]))
        while not file.exists():
            time.sleep(0.05)
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file)]
        stack.enter_context(_started([*worker, "--host", "127.0.0.1", "--no-dashboard", "--death-timeout", "5"]))
        address = json.loads(file.read_text())["address"]
        with connect(address) as client:
            assert client is not None
            client.wait_for_workers(1)
            client.register_plugin(Slow())
        command = [sys.executable, "-m", "n2n_pipeline", "ingest", str(movie), str(ram / "out.zarr"), "--cluster"]
        with subprocess.Popen([*command, address], env=environment, stderr=subprocess.PIPE, text=True) as ingest:
            while not list((ram / "out.zarr").glob("records/units/*")) and ingest.poll() is None:
                time.sleep(0.05)
            scheduler.kill()
            killed = time.monotonic()
            _, errors = ingest.communicate(timeout=60)
            record_property("seconds to exit", round(time.monotonic() - killed, 1))
    assert ingest.returncode == ExitCode.STOPPED, errors
    assert "the scheduler is gone; run the same command again to continue" in errors
    assert 0 < status(ram / "out.zarr")["done"] < status(ram / "out.zarr")["units"]
    ingest_movie(movie, ram / "out.zarr")
    assert tree(ram / "out.zarr") == whole


# Jobs


def test_a_jobs_script_holds_the_command_as_it_was_typed():
    words = ["train", "a movie.zarr", "-o", "$(touch x)", "--set", "a='b'"]
    text = job_script(SlurmConfig(partition="gpu", directives=("--gres=gpu:1",)), words, "model; rm -rf /")
    assert text.startswith("#!/bin/bash\n")
    assert "#SBATCH --job-name=model__rm_-rf__\n" in text
    assert "#SBATCH --partition=gpu\n" in text
    assert "#SBATCH --gres=gpu:1\n" in text
    assert "#SBATCH --requeue\n" in text
    assert shlex.join(words) in text
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    "setting", [{"partition": "a\n#SBATCH --x"}, {"time": "1 hour"}, {"directives": ("rm",)}, {"setup": ("a\nb",)}]
)
def test_settings_that_would_write_other_lines_into_a_script_are_refused(setting):
    with pytest.raises(ValueError, match="pattern"):
        SlurmConfig(**setting)


def test_without_slurm_a_job_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="there is no SLURM here") as error:
        submit_job(tmp_path / "job.sbatch")
    assert error.value.code == ExitCode.UNAVAILABLE


@pytest.mark.slurm
@pytest.mark.slow
def test_slurm_workers_store_the_same_bytes(movie, tmp_path):
    """Needs a running SLURM that ``SLURM_CONF`` names, with a network interface between its nodes."""
    if not os.environ.get("SLURM_CONF") or not shutil.which("sinfo"):
        pytest.skip("SLURM_CONF does not name a running SLURM")
    whole = tree(ingest_movie(movie, tmp_path / "threads.zarr"))
    file = tmp_path / "slurm.yaml"
    file.write_text("jobs: 2\ncores: 1\nmemory_gb: 2\ntime: '00:10:00'\ninterface: lo\n")
    began = time.monotonic()
    with connect(f"slurm:{file}") as client:
        assert client is not None
        ingest_movie(movie, tmp_path / "workers.zarr", client=client)
    assert tree(tmp_path / "workers.zarr") == whole
    assert time.monotonic() - began < 180
    assert open_store(tmp_path / "workers.zarr").info.shape == SHAPE
