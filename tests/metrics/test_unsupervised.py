import numpy as np
import pytest
from scipy import ndimage

from n2n_pipeline.metrics.unsupervised import (
    Copies,
    error_of_mean,
    unsupervised_error,
    unsupervised_mse,
    unsupervised_psnr,
)


@pytest.fixture(scope="module")
def scene():
    texture = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((4, 512, 512)), (0, 3, 3))
    return np.maximum(3 + 8 * texture, 0.1)


def noisy(scene, frames, seed):
    return np.random.default_rng(seed).poisson(scene * frames) / frames


def test_the_estimated_error_is_within_three_per_cent_of_the_true_one(scene):
    y, a, b, c = (noisy(scene, frames, seed) for seed, frames in enumerate((8, 4, 4, 4)))
    denoised = ndimage.gaussian_filter(y, (0, 2.5, 2.5))
    found = unsupervised_mse(unsupervised_error(denoised, Copies(a, b, c)))
    true = np.mean((denoised - scene) ** 2)
    assert found.value == pytest.approx(true, rel=0.03)
    assert found.low < true < found.high


def test_the_error_of_the_mean_of_both_halves_is_estimated_without_bias(scene):
    halves = [[noisy(scene, 4, 10 * half + copy) for copy in range(3)] for half in range(2)]
    denoised = [ndimage.gaussian_filter(np.mean(half, axis=0), (0, 0.4, 0.4)) for half in halves]
    errors = tuple(unsupervised_error(denoised[i], Copies(*halves[1 - i])) for i in range(2))
    found = unsupervised_mse(error_of_mean(errors, tuple(denoised)))
    true = np.mean((np.mean(denoised, axis=0) - scene) ** 2)
    assert found.value == pytest.approx(true, rel=0.03)
    assert true < 0.8 * np.mean((denoised[0] - scene) ** 2)  # or the identity would not have been tried


def test_intervals_cover_the_truth_as_often_as_they_promise():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        copies = Copies(*rng.normal(0, 1, (3, 1, 256, 256)))
        denoised = rng.normal(0, 0.5, (1, 256, 256))
        found = unsupervised_mse(unsupervised_error(denoised, copies), block=32)
        covered += found.low < 0.25 < found.high
    assert 50 <= covered <= 60  # 95 % of 60 is 57


def test_pixels_that_do_not_count_are_left_out():
    error = np.ones((2, 128, 128))
    error[:, 5, 5] = np.nan
    assert unsupervised_mse(error) == pytest.approx((1, 1, 1))


def test_the_same_error_in_decibels_turns_the_interval_round():
    found = unsupervised_psnr(unsupervised_mse(np.random.default_rng(2).normal(1, 3, (1, 256, 256))), peak=10.0)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(20, abs=0.3)


def test_an_error_below_zero_is_infinitely_many_decibels():
    assert unsupervised_psnr(unsupervised_mse(np.full((1, 128, 128), -1.0)), peak=1.0).value == np.inf
