"""The same pixels, by however many workers, however they are interrupted."""

import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import zarr
from distributed import Client
from private_slurm import ask

from n2n_pipeline.checkpoint import save_model
from n2n_pipeline.cluster import connect
from n2n_pipeline.config import DenoiseConfig, TileConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.inference.denoise import denoise_store
from n2n_pipeline.inference.remote import denoise_on_cluster, worker_memory_gb
from n2n_pipeline.store import open_store, write_movie

_log = logging.getLogger(__name__)  # the digests, with --log-level=INFO -rP

SHAPE = (100, 45, 62)
BLOCKS = 7  # of 16 frames
KILLS = 5
CONFIG = DenoiseConfig(tile=TileConfig(core_px=24, halo_px="exact"), memory_gb=1, augment="off", halves=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_denoiser):
    """A movie, a model, and what one thread makes of them."""
    folder = tmp_path_factory.mktemp("remote")
    write_movie(folder / "movie.zarr", np.random.default_rng(0).poisson(9, SHAPE).astype(np.uint8))
    denoiser = make_denoiser()
    save_model(folder / "model", denoiser.network, denoiser.card)
    denoise_store(folder / "movie.zarr", folder / "model", folder / "here.zarr", CONFIG)
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    found = digest(folder / "here.zarr")
    _log.info("one process: %s", found)
    return found


def digest(path):
    """SHA-256 of the decoded pixels of both halves and their mean; of a store that is complete."""
    open_store(path)
    pixels = hashlib.sha256()
    for name in ("0", "even", "odd"):
        pixels.update(np.asarray(zarr.open_group(path, mode="r")[name]).tobytes())
    return pixels.hexdigest()


def done(path):
    return len([file for file in (path / "odd" / "c").rglob("*") if file.is_file()])


def kill_when_begun(pid, output):
    while not done(output):
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("limit", "most"), [("4GiB", 2), ("3GiB", 1), (0, None)])
def test_a_worker_uses_no_more_than_half_of_what_it_has(limit, most):
    with Client(processes=False, n_workers=2, memory_limit=limit, dashboard_address=None) as client:
        allowed = worker_memory_gb(client)
    assert allowed == (most and most * 2**30 / 1e9)


def test_a_folder_of_images_is_refused_by_a_cluster(tmp_path):
    with pytest.raises(InputError, match="leave out --cluster"):
        denoise_on_cluster(tmp_path, tmp_path, tmp_path / "out", client=None)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["uninterrupted", "a worker is killed"])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_write_the_same_pixels_though_one_is_killed(folder, expected, tmp_path, workers, killed):
    output = tmp_path / "there.zarr"
    with connect(f"local:{workers}") as client:
        if killed:
            pids = client.run(os.getpid)
            killer = threading.Thread(target=kill_when_begun, args=(next(iter(pids.values())), output))
            killer.start()
        assert denoise_on_cluster(folder / "movie.zarr", folder / "model", output, client, CONFIG) == BLOCKS
        if killed:
            killer.join()
            assert client.run(os.getpid) != pids
    found = digest(output)
    _log.info("%d workers, %s: %s", workers, "one killed" if killed else "uninterrupted", found)
    assert found == expected


def start(folder, output, cluster, environment=os.environ, cwd=None):
    words = [sys.executable, "-m", "n2n_pipeline", "denoise", folder / "movie.zarr", "-m", folder / "model"]
    words += ["--quiet", "--halves", "--memory", "1GB", "--set", "denoise.augment=off", "--cluster", cluster]
    words += ["--set", "denoise.tile={core_px: 24, halo_px: exact}", "-o", output]
    return subprocess.Popen(words, env={**environment, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, cwd=cwd)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cluster", ["threads", "local:1", "local:2", "local:4"])
def test_a_command_killed_five_times_ends_in_the_same_pixels(folder, expected, tmp_path, cluster):
    output = tmp_path / "out.zarr"
    for number in range(1, KILLS + 1):
        command = start(folder, output, cluster)
        while done(output) < number and command.poll() is None:
            time.sleep(0.002)
        command.kill()
        command.wait()
    assert done(output) < BLOCKS
    assert start(folder, output, cluster).wait() == 0
    found = digest(output)
    _log.info("%s, killed %d times: %s", cluster, KILLS, found)
    assert found == expected


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.timeout(900)
def test_two_slurm_jobs_one_cancelled_midway_end_in_the_same_pixels(slurm, folder, expected, tmp_path):
    pytest.importorskip("dask_jobqueue")
    output, asked = tmp_path / "out.zarr", tmp_path / "slurm.yaml"
    asked.write_text("jobs: 2\ncores: 1\nmemory_gb: 2\ntime: '00:10:00'\ninterface: lo\npartition: test\n")
    command = start(folder, output, f"slurm:{asked}", {**slurm, "TMPDIR": str(tmp_path)}, cwd=tmp_path)
    while done(output) < 2 and command.poll() is None:
        time.sleep(0.002)
    jobs = ask(slurm, "squeue", "--noheader", "--format=%i", "--states=RUNNING").split()
    ask(slurm, "scancel", jobs[0])
    _log.info("jobs %s, cancelled %s after %d of %d blocks", jobs, jobs[0], done(output), BLOCKS)
    assert done(output) < BLOCKS
    assert command.wait() == 0
    found = digest(output)
    _log.info("two jobs, one cancelled: %s", found)
    assert found == expected
    assert "CANCELLED" in ask(slurm, "scontrol", "show", "job", jobs[0])
