"""What must hold for every reader alike."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from camera_files import PIXEL_SIZE, WRITERS, counts

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.sources import open_movie, read_image

TELLS_NO_PIXEL_SIZE = {"movie.tif", "pngs", "movie.zarr"}
TELLS_FRAME_TIME = {"imagej.tif", "ome.tif", "movie.dm3", "movie.dm4", "velox.emd", "berkeley.emd"}


@pytest.fixture(params=WRITERS)
def movie(request, tmp_path) -> Path:
    return WRITERS[request.param](tmp_path / request.param, counts())


def test_every_format_gives_back_the_counts_that_were_written(movie):
    source = open_movie(movie)
    assert source.info.shape == counts().shape
    assert source.info.dtype == np.uint16
    assert np.array_equal(source.read_frames(0, 5), counts())
    assert np.array_equal(source.read_frames(2, 4), counts()[2:4])
    assert source.read_frames(3, 3).shape == (0, 12, 17)
    source.close()


def test_frames_are_fresh_native_and_contiguous(movie):
    source = open_movie(movie)
    frames = source.read_frames(1, 3)
    assert frames.dtype.isnative
    assert frames.flags.c_contiguous
    assert frames.flags.writeable
    frames[:] = 0
    assert np.array_equal(source.read_frames(1, 3), counts()[1:3])
    source.close()


def test_quantities_come_in_our_units_or_are_unknown(movie):
    source = open_movie(movie)
    if movie.name in TELLS_NO_PIXEL_SIZE:
        assert source.info.pixel_size is None
        assert any("pixel size is unknown" in warning for warning in source.info.warnings)
    else:
        assert source.info.pixel_size == pytest.approx(PIXEL_SIZE)
        assert source.info.warnings == ()
    assert source.info.frame_time == (pytest.approx(0.5) if movie.name in TELLS_FRAME_TIME else None)
    source.close()


def test_the_user_knows_the_pixel_size_better_than_the_file(movie):
    source = open_movie(movie, IngestConfig(pixel_size_angstrom=0.5))
    assert source.info.pixel_size == 0.5
    assert source.info.warnings == ()
    source.close()


def test_threads_that_read_one_movie_do_not_disturb_each_other(movie):
    source = open_movie(movie)
    start = threading.Barrier(4)

    def read(seed: int) -> bool:
        start.wait()
        frames = np.random.default_rng(seed).integers(0, 5, 25)
        return all(np.array_equal(source.read_frames(t, t + 1)[0], counts()[t]) for t in frames)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))
    source.close()


@pytest.mark.parametrize("name", WRITERS)
def test_an_image_is_a_movie_of_one_frame(name, tmp_path):
    image = counts()[:1]
    assert np.array_equal(read_image(WRITERS[name](tmp_path / name, image)), image[0])


def test_a_caller_that_asks_for_frames_past_the_end_is_told(movie):
    source = open_movie(movie)
    with pytest.raises(ValueError, match="frames 3:6 asked of a movie of 5"):
        source.read_frames(3, 6)
    source.close()
