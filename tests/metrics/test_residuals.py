import numpy as np
import pytest
from scipy import ndimage

from n2n_pipeline.metrics.residuals import (
    autocorrelation,
    calibration,
    leakage,
    normalised_variance,
    radial_profile,
    structure_left,
)


@pytest.fixture(scope="module")
def scene():
    return 10 + ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((2, 256, 256)), (0, 3, 3)) * 10


def white(seed, shape=(2, 256, 256), sigma=1.0):
    return np.random.default_rng(seed).normal(0, sigma, shape)


def test_white_noise_correlates_with_itself_only_at_no_shift():
    found = autocorrelation(white(1), max_lag=3)
    assert found[3, 3] == 1
    found[3, 3] = 0
    assert np.abs(found).max() < 4 / np.sqrt(2 * 256**2)


def test_a_blurred_noise_has_the_autocorrelation_of_its_blur():
    blurred = ndimage.correlate1d(white(2, (1, 512, 512)), [0.5, 0.5], axis=2, mode="wrap")
    found = autocorrelation(blurred, max_lag=2)
    assert found[2] == pytest.approx([0, 0.5, 1, 0.5, 0], abs=0.01)
    assert found[1] == pytest.approx(np.zeros(5), abs=0.01)
    assert radial_profile(found)[:2] == pytest.approx(
        [1, (0.5 + 0.5) / 8], abs=0.01
    )  # 8 neighbours round to lag 1


def test_the_shift_by_a_pixel_is_the_pixel_asked_for():
    image = np.zeros((1, 64, 64))
    image[0, 20, 30] = image[0, 22, 31] = 1
    found = autocorrelation(image, max_lag=3)
    assert found[3 + 2, 3 + 1] == pytest.approx(0.5, abs=0.03)  # fewer pixels overlap
    assert found[3 - 2, 3 + 1] == pytest.approx(0, abs=0.02)


def test_noise_that_the_camera_blurs_is_not_called_structure():
    residual, noise = (ndimage.gaussian_filter(white(seed), (0, 0.7, 0.7)) for seed in (3, 4))
    assert abs(structure_left(residual, noise)) < 0.01


def test_a_planted_leak_is_seen_in_every_measure_and_a_clean_residual_in_none(scene):
    other = scene + white(5)
    flattened = 0.7 * (scene - scene.mean()) + scene.mean()  # 30 % of the contrast stays in the residual
    for denoised, leaks in ((scene, False), (flattened, True)):
        residual = other - denoised
        found = leakage(denoised, residual)
        assert (found.low > 0.02) is leaks
        assert found.low < found.value < found.high
        assert (structure_left(residual, white(6)) > 0.02) is leaks
        assert (calibration(denoised, other).slope.low > 1.2) is leaks


@pytest.mark.parametrize(("contrast", "offset"), [(1, 0), (0.5, 0), (2, 3), (1, -4)])
def test_calibration_recovers_the_contrast_and_brightness_that_were_lost(scene, contrast, offset):
    found = calibration((scene - offset) / contrast, scene + white(7))
    assert found.slope.value == pytest.approx(contrast, rel=0.02)
    assert found.intercept == pytest.approx(offset, abs=0.2)


def test_the_residual_of_a_perfect_image_has_the_predicted_variance(scene):
    frames = 6
    other = np.random.default_rng(8).poisson(scene * frames) / frames
    assert normalised_variance(other - scene, scene / frames) == pytest.approx(1, abs=0.02)
    blank = np.full_like(scene, scene.mean())
    expected = 1 + scene.var() / (scene.mean() / frames)
    assert normalised_variance(other - blank, blank / frames) == pytest.approx(expected, rel=0.03)


def test_pixels_that_do_not_count_change_nothing(scene):
    denoised = scene.copy()
    denoised[:, 7, 7] = np.nan
    assert calibration(denoised, scene + white(9)).slope.value == pytest.approx(1, abs=0.02)
    assert abs(leakage(denoised, white(9)).value) < 0.02
    assert normalised_variance(denoised - scene + white(9), np.ones_like(scene)) == pytest.approx(1, abs=0.02)
