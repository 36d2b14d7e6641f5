"""Hits by X-rays are left out, and not one electron with them."""

import numpy as np
import pytest

from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.store import open_store, write_movie
from n2n_pipeline.training.outliers import estimate_brightest, without_outliers
from n2n_pipeline.training.stacks import MovieFrames, whole_region


def poisson(dose, camera, shape=(32, 128, 128)):
    """Counts; of an integrating camera: each electron leaves a charge that varies, and noise is read."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(dose, shape)
    if camera == "counting":
        return counts.astype(np.uint16)
    return (rng.gamma(np.maximum(counts, 1e-9), 100.0) + rng.normal(0, 10, shape)).astype(np.float32)


@pytest.mark.parametrize("camera", ["counting", "integrating"])
@pytest.mark.parametrize("dose", [0.001, 0.01, 0.15, 2.0, 30.0])
def test_no_electron_is_left_out_and_every_bright_hit_is(tmp_path, dose, camera):
    counts = poisson(dose, camera)
    rng = np.random.default_rng(1)
    hits = tuple(rng.integers(side, size=20) for side in counts.shape)
    clean = write_movie(tmp_path / "clean.zarr", counts)
    unit = 1 if camera == "counting" else 100
    struck = counts.copy()
    struck[hits] += np.array(unit * (50 + 10 * dose), counts.dtype)
    movie = without_outliers(CorrectedMovie(write_movie(tmp_path / "struck.zarr", struck)))
    _, valid = movie.read(*(slice(0, side) for side in counts.shape))
    expected = np.ones(counts.shape, bool)
    expected[hits] = False
    np.testing.assert_array_equal(valid, expected)
    assert counts.max() < estimate_brightest(CorrectedMovie(clean))


def test_the_stack_of_a_struck_movie_averages_over_the_frames_that_were_not(tmp_path):
    counts = poisson(1.0, "counting", (16, 64, 64))
    struck = counts.copy()
    struck[5, 20, 30] = 5000
    write_movie(tmp_path / "movie.zarr", struck)
    frames = MovieFrames(without_outliers(CorrectedMovie(open_store(tmp_path / "movie.zarr"))))
    stack = frames.read_stack(whole_region(frames), 1)
    assert stack.counts.sum(axis=0)[20, 30] == 15
    assert stack.counts.sum() == counts.size - 1
    assert stack.sums.sum() == counts.sum() - counts[5, 20, 30]


def test_a_movie_without_a_valid_pixel_has_no_limit(tmp_path):
    store = write_movie(tmp_path / "movie.zarr", np.full((4, 32, 32), np.nan, np.float32))
    assert estimate_brightest(CorrectedMovie(store)) == np.inf
