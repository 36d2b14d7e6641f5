"""On a cluster: the same bytes, whoever dies."""

import os
import signal

import numpy as np
import pytest

from n2n_pipeline.checkpoint import save_model
from n2n_pipeline.cluster import connect
from n2n_pipeline.config import DenoiseConfig, TileConfig
from n2n_pipeline.inference.denoise import denoise_store
from n2n_pipeline.inference.remote import denoise_on_cluster
from n2n_pipeline.store import write_movie

CONFIG = DenoiseConfig(tile=TileConfig(core_px=24, halo_px="exact"), memory_gb=1, augment="off", halves=True)


@pytest.fixture
def movie(tmp_path):
    frames = np.random.default_rng(0).poisson(9, (100, 45, 62)).astype(np.uint8)
    return write_movie(tmp_path / "movie.zarr", frames).path


@pytest.fixture
def model(tmp_path, make_denoiser):
    denoiser = make_denoiser()
    save_model(tmp_path / "model", denoiser.network, denoiser.card)
    return tmp_path / "model"


def shards(path):
    files = [file for name in ("0", "even", "odd") for file in (path / name / "c").rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.mark.slow
def test_workers_write_the_same_bytes_though_one_is_killed(movie, model, tmp_path):
    denoise_store(movie, model, tmp_path / "here.zarr", CONFIG)
    with connect("local:2") as client:
        workers = client.run(os.getpid)
        client.submit(os.kill, next(iter(workers.values())), signal.SIGKILL, pure=False)
        assert denoise_on_cluster(movie, model, tmp_path / "there.zarr", client, CONFIG) == 7  # of 16 frames
    assert shards(tmp_path / "there.zarr") == shards(tmp_path / "here.zarr")
    assert len(shards(tmp_path / "here.zarr")) == 3 * 7
