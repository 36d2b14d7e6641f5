"""Workers elsewhere: the same bytes as from threads, whoever dies; jobs that a shell cannot misread."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

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
def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(movie, ram, monkeypatch):
    whole = tree(ingest_movie(movie, ram / "threads.zarr"))
    with connect("local:2") as client:
        assert client is not None
        stop = threading.Event()
        killer = threading.Thread(target=_kill_now_and_then, args=(client, stop))
        killer.start()
        ingest_movie(movie, ram / "workers.zarr", client=client)
        stop.set()
        killer.join()
    assert tree(ram / "workers.zarr") == whole


def _kill_now_and_then(client: object, stop: threading.Event) -> None:
    while not stop.wait(0.5):
        for child in psutil.Process().children(recursive=True)[-1:]:
            child.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_a_unit_that_fails_everywhere_is_set_aside_and_all_others_are_done(movie, ram):
    with connect("local:2") as client:
        assert client is not None
        client.run(_poison)
        with pytest.raises(InputError, match=r"1 parts failed, first frames-0000016"):
            ingest_movie(movie, ram / "out.zarr", client=client)
    found = status(ram / "out.zarr")
    assert list(found["failed"]) == ["frames-0000016"]
    assert found["done"] == found["units"] - 1
    ingest_movie(movie, ram / "out.zarr")
    assert verify(ram / "out.zarr")["ok"]
    assert not status(ram / "out.zarr")["failed"]


def _poison() -> None:
    real = frame_pass.write_frames

    def fail(array: object, span: range, frames: np.ndarray) -> None:
        if span.start == 16:
            raise ValueError("poison")
        real(array, span, frames)

    frame_pass.write_frames = fail


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
