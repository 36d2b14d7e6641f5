"""Drift found in simulated movies, whose path is known, and the parts it is found with."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from n2n_pipeline.config import AlignConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.drift import _kalman, align_store, describe_shifts, estimate_drift
from n2n_pipeline.errors import InputError
from n2n_pipeline.sources.simulated import Detector, simulate_movie
from n2n_pipeline.spectra import choose_bin, read_spectra
from n2n_pipeline.store import References, Shifts, open_store, write_movie


def error_px(shifts: Shifts, truth: np.ndarray) -> float:
    """Root mean square length of the error, a constant removed."""
    error = shifts.dy_dx - truth
    return float(np.sqrt(np.square(error - error.mean(axis=0)).sum(axis=1).mean()))


def walk(n_frames: int, velocity: tuple[float, float], jitter: float, seed: int = 0) -> np.ndarray:
    steps = np.asarray(velocity) + jitter * np.random.default_rng(seed).standard_normal((n_frames, 2))
    return np.cumsum(steps, axis=0)


@pytest.fixture
def stored(tmp_path):
    def store(movie, references=None):
        return write_movie(tmp_path / "movie.zarr", movie.counts, movie.info, references)

    return store


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        (walk(40, (0.0, 0.0), 0.0), 0.15),  # a still movie is held still
        (walk(40, (0.8, -0.5), 0.3), 0.5),  # jerks about a constant velocity
        (walk(40, (1.9, 1.1), 0.1), 0.4),  # leaves half of the field of view behind
    ],
)
def test_the_path_is_found_at_half_an_electron_per_pixel(stored, path, limit):
    movie = simulate_movie((40, 160, 160), dose=0.5, drift=path, seed=4)
    shifts = estimate_drift(stored(movie))
    assert error_px(shifts, movie.shifts) < limit
    assert shifts.dy_dx[0].tolist() == [0, 0]
    assert shifts.confidence.min() > 0.9


def test_a_long_movie_is_followed_through_its_segments(stored):
    turns = np.linspace(0, 3 * np.pi, 150)
    path = np.stack([12 * np.sin(turns), 9 * np.cos(turns)], axis=1)
    movie = simulate_movie((150, 96, 96), dose=1.0, drift=path, seed=5)
    assert error_px(estimate_drift(stored(movie)), path) < 0.6


def test_noise_alone_has_no_drift_and_no_confidence(stored):
    movie = simulate_movie((24, 64, 64), dose=0.01, seed=1)
    flat = np.random.default_rng(0).poisson(0.5, movie.counts.shape).astype(np.uint16)
    shifts = estimate_drift(stored(type(movie)(**{**vars(movie), "counts": flat})))
    assert np.abs(shifts.dy_dx).max() < 2 or not shifts.confidence.any()
    assert (shifts.confidence < 0.5).all() or error_px(shifts, np.zeros((24, 2))) < 1


def test_hot_pixels_do_not_hold_a_drifting_scene(stored):
    movie = simulate_movie((32, 128, 128), dose=0.5, drift=(0.7, 0.4), seed=2, detector=Detector(hot_pixels=12))
    shifts = estimate_drift(stored(movie, References(defects=movie.defects)))
    assert error_px(shifts, movie.shifts) < 0.5


@pytest.mark.parametrize("jump", [(4, -2), (40, -31)], ids=["short", "far"])
def test_a_still_scene_that_jumps_once_is_found_again(stored, jump):
    path = np.zeros((40, 2))
    path[15:] = jump
    shifts = estimate_drift(stored(simulate_movie((40, 192, 192), dose=0.5, drift=path, seed=4)))
    assert error_px(shifts, path) < 0.3
    assert (shifts.confidence > 0.9).all()


def test_frames_of_another_scene_are_not_claimed_as_aligned(stored):
    movie = simulate_movie((40, 128, 128), dose=1.0, drift=(0.3, 0.2), seed=4)
    movie.counts[24:32] = simulate_movie((8, 128, 128), dose=1.0, seed=9).counts
    confidence = estimate_drift(stored(movie)).confidence
    assert (confidence[24:32] < 0.5).all()
    assert (confidence[:24] > 0.5).all()
    assert (confidence[32:] > 0.5).all()


def test_a_full_disk_is_told_before_anything_is_read(stored, monkeypatch):
    store = stored(simulate_movie((12, 64, 64), dose=2.0))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"need .*, .* has"):
        estimate_drift(store)


def test_what_is_kept_on_disk_leaves_no_file(stored):
    store = stored(simulate_movie((12, 64, 64), dose=2.0))
    before = sorted(store.path.rglob("*"))
    spectra = read_spectra(CorrectedMovie(store), AlignConfig(), torch.device("cpu"))
    assert sorted(store.path.rglob("*")) == before
    assert spectra.values.shape == (12, len(spectra.ky))


def test_a_coarser_band_is_the_first_of_the_frequencies(stored):
    spectra = read_spectra(
        CorrectedMovie(stored(simulate_movie((4, 60, 75), dose=2.0))), AlignConfig(), torch.device("cpu")
    )
    radius, coarse = torch.hypot(spectra.ky, spectra.kx), spectra.within(0.1)
    assert (radius.diff() > -1e-6).all()
    assert (spectra.ring.diff() >= 0).all()
    assert len(coarse.ky) == int((radius <= 0.1).sum()) < len(radius)
    np.testing.assert_array_equal(coarse.values, spectra.values[:, : len(coarse.ky)])


def test_the_table_is_saved_in_the_store(stored):
    movie = simulate_movie((12, 64, 64), dose=2.0, drift=(0.5, 0.0), seed=3)
    path = stored(movie).path
    shifts = align_store(path)
    saved = open_store(path).shifts
    np.testing.assert_array_equal(saved.dy_dx, shifts.dy_dx)
    np.testing.assert_array_equal(saved.confidence, shifts.confidence)


def test_one_frame_cannot_drift(stored):
    with pytest.raises(InputError, match="1 frame; pairs need at least 2"):
        estimate_drift(stored(simulate_movie((1, 32, 32))))


def test_the_smoother_weighs_as_least_squares_does():
    """A random walk observed with noise: the posterior mean solves a tridiagonal system."""
    rng = np.random.default_rng(0)
    observed, information, step, velocity = rng.normal(size=9), rng.uniform(0.5, 2, 9), 0.3, 0.2
    difference = np.diff(np.eye(9), axis=0)
    precision = np.diag(information) + difference.T @ difference / step
    mean = np.linalg.solve(precision, information * observed + difference.T @ np.full(8, velocity) / step)
    smoothed, variance, lagged = _kalman(observed, information, np.full(9, step), velocity)
    np.testing.assert_allclose(smoothed, mean, atol=1e-4)  # the filter's own prior is wide, not flat
    covariance = np.linalg.inv(precision)
    np.testing.assert_allclose(variance, np.diag(covariance), rtol=1e-4)
    np.testing.assert_allclose(lagged[1:], np.diag(covariance, -1), rtol=1e-4)


@pytest.mark.parametrize(
    ("n_frames", "sides", "expected"),
    [
        (48, (256, 256), 1),  # a small movie is taken as it is
        (100, (4096, 4096), 4),  # a large frame is binned to about 1000 px
        (5000, (4096, 4096), 8),  # and more where many frames have to be kept
    ],
)
def test_large_movies_are_binned_to_fit_the_budget(n_frames, sides, expected):
    assert choose_bin(n_frames, sides, AlignConfig().max_frequency_per_px) == expected


def test_the_drift_is_told_in_a_sentence():
    path = np.stack([np.linspace(0, 30, 11), np.linspace(0, 40, 11)], axis=1)
    confidence = np.r_[np.ones(10), 0.2]
    assert describe_shifts(Shifts(path, confidence)) == (
        "drift of 50.0 px over the movie, 5.00 px per frame; 1 frames unsure (first: 10)"
    )
    assert "too faint" in describe_shifts(Shifts(path * 0, confidence * 0))
