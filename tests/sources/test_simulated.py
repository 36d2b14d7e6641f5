from __future__ import annotations

import numpy as np
import pytest

from n2n_pipeline.sources import open_movie
from n2n_pipeline.sources.simulated import PIXEL_SIZE, Detector, simulate_movie


def test_the_same_seed_gives_the_same_movie():
    first, second, other = (simulate_movie((4, 32, 32), seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.counts, second.counts)
    assert not np.array_equal(first.truth, other.truth)


def test_counts_are_poisson_around_the_truth():
    movie = simulate_movie((64, 64, 64), dose=3.0)
    residual = (movie.counts - movie.truth) / np.sqrt(movie.truth)
    assert residual.mean() == pytest.approx(0, abs=0.01)
    assert residual.std() == pytest.approx(1, abs=0.01)


def test_whole_pixel_drift_moves_the_truth_by_its_shifts():
    still, moving = (simulate_movie((4, 64, 64), drift=drift) for drift in ((0, 0), (2, -3)))
    for t, (dy, dx) in enumerate(moving.shifts.astype(int)):
        moved = np.roll(still.truth[0], (dy, dx), (0, 1))[8:-8, 12:-12]
        assert np.allclose(moving.truth[t][8:-8, 12:-12], moved, atol=1e-5)


def test_a_path_may_be_given_whole():
    path = np.random.default_rng(0).normal(size=(4, 2))
    assert np.array_equal(simulate_movie((4, 32, 32), drift=path).shifts, path)


def test_particles_sway_on_their_own_and_come_back():
    movie = simulate_movie((8, 64, 64), sway=3.0)
    assert np.abs(movie.truth[2] - movie.truth[0]).max() > 0.1
    assert np.array_equal(movie.shifts, np.zeros((8, 2)))


def test_the_gain_reference_takes_out_the_detectors_pattern():
    movie = simulate_movie((200, 16, 16), dose=5.0, detector=Detector(gain_spread=0.2))
    mean = movie.counts.mean(axis=0)
    assert np.std(mean * movie.gain_reference / movie.truth[0]) < 0.2 * np.std(mean / movie.truth[0])


def test_hot_and_dead_pixels_are_listed_as_defects():
    movie = simulate_movie((8, 32, 32), detector=Detector(hot_pixels=5, dead_pixels=3))
    mean = movie.counts.mean(axis=0)
    assert movie.defects.sum() == 8
    assert (mean[movie.defects] > 100).sum() == 5
    assert (mean[movie.defects] == 0).sum() == 3


def test_lag_makes_neighbouring_frames_share_noise_and_keeps_the_mean():
    def correlation(lag):
        movie = simulate_movie((100, 32, 32), dose=4.0, detector=Detector(lag=lag))
        noise = movie.counts[1:] - movie.truth[1:]
        assert noise.mean() == pytest.approx(0, abs=0.02)
        return np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1]

    assert correlation(0.0) == pytest.approx(0, abs=0.01)
    assert correlation(0.3) == pytest.approx(0.3 / 1.3, abs=0.02)  # lag λ over λ and its echo, lag λ


def test_it_reads_like_a_file_and_is_written_as_one(tmp_path):
    movie = simulate_movie((4, 32, 48))
    assert np.array_equal(movie.read_frames(1, 3), movie.counts[1:3])
    source = open_movie(movie.write_mrc(tmp_path / "movie.mrc"))
    assert source.info.shape == movie.info.shape
    assert source.info.pixel_size == pytest.approx(PIXEL_SIZE)
    assert np.array_equal(source.read_frames(0, 4), movie.counts)
    source.close()
