import numpy as np
import pytest
from scipy import fft, ndimage

from n2n_pipeline.metrics.frc import (
    correlation_with_signal,
    fourier_ring_correlation,
    half_bit_threshold,
    standard_error,
)


def random_scene(seed, shape=(256, 256), width=1.5):
    scene = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), width, mode="wrap")
    return scene / scene.std()


def test_identical_images_correlate_fully_in_every_ring():
    noise = np.random.default_rng(0).standard_normal((64, 64))
    assert fourier_ring_correlation(noise, noise).correlation == pytest.approx(np.ones(33))


def test_opposite_contrast_correlates_with_minus_one():
    noise = np.random.default_rng(0).standard_normal((64, 64))
    assert fourier_ring_correlation(noise, 5 - noise).correlation == pytest.approx(-np.ones(33))


def test_independent_noise_does_not_correlate_beyond_its_standard_error():
    rng = np.random.default_rng(1)
    z = []
    for _ in range(20):
        rings = fourier_ring_correlation(*rng.standard_normal((2, 128, 128)))
        z.append(rings.correlation[3:] / standard_error(rings)[3:])
    assert abs(np.mean(z)) < 0.15
    assert np.std(z) == pytest.approx(1, abs=0.1)


def test_white_signal_under_white_noise_gives_the_textbook_correlation():
    rng = np.random.default_rng(2)
    signal = rng.standard_normal((256, 256))
    even, odd = (signal + 2 * rng.standard_normal((256, 256)) for _ in range(2))
    rings = fourier_ring_correlation(even, odd)
    assert np.average(rings.correlation, weights=rings.coefficients) == pytest.approx(1 / 5, abs=0.02)


@pytest.mark.parametrize("shape", [(64, 64), (48, 80), (61, 67)])  # square, oblong, odd
def test_rings_end_at_nyquist_whatever_the_shape(shape):
    rings = fourier_ring_correlation(*np.random.default_rng(3).standard_normal((2, *shape)), pixel_size=2.0)
    assert rings.frequency[0] == 0
    assert rings.frequency[-1] == pytest.approx((min(shape) // 2) / min(shape) / 2.0)
    assert np.all(np.isfinite(rings.correlation))


def test_a_stack_sums_before_it_divides():
    rng = np.random.default_rng(4)
    even, odd = rng.standard_normal((2, 3, 64, 64)) * np.array([1, 2, 5])[:, None, None]
    stacked = fourier_ring_correlation(even, odd)
    single = fourier_ring_correlation(even[0], odd[0])
    assert stacked.coefficients == pytest.approx(3 * single.coefficients)
    weighted = fourier_ring_correlation(even[2], odd[2])  # the brightest image weighs most
    assert np.corrcoef(stacked.correlation, weighted.correlation)[0, 1] > 0.8


@pytest.mark.parametrize(
    ("coefficients", "expected"),
    [
        (1, (0.2071 + 1.9102) / (1.2071 + 0.9102)),
        (100, (0.2071 + 0.19102) / (1.2071 + 0.09102)),
        (np.inf, 0.2071 / 1.2071),
        (0, 1.0),  # an empty ring tells nothing
    ],
)
def test_the_half_bit_curve_is_that_of_its_paper(coefficients, expected):
    assert half_bit_threshold(coefficients) == pytest.approx(min(expected, 1.0), abs=1e-4)


def low_pass(image, cutoff):
    radius = np.hypot(np.fft.fftfreq(len(image))[:, None], np.fft.rfftfreq(len(image))[None])
    return fft.irfft2(fft.rfft2(image) / (1 + (radius / cutoff) ** 4), s=image.shape)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_correlation_with_the_signal_agrees_with_the_true_one_ring_by_ring(seed):
    rng = np.random.default_rng(100 + seed)
    signal = random_scene(seed)
    even, odd = (signal + rng.standard_normal(signal.shape) for _ in range(2))
    invented = 0.3 * random_scene(
        seed + 50
    )  # what a network might make up is in the denoised image, not in the signal
    denoised = low_pass(even, 0.1) + invented
    found = correlation_with_signal(denoised, even, odd)
    true = fourier_ring_correlation(denoised, signal).correlation
    told = np.isfinite(found.denoised)
    assert told.sum() > 15
    difference = (found.denoised - true)[told]
    assert np.all(np.abs(difference) < 3 * found.error[told])
    assert abs(difference.mean()) < 0.05


def test_correlation_with_the_signal_is_silent_where_the_halves_share_nothing():
    rng = np.random.default_rng(5)
    signal = random_scene(5, width=4)
    even, odd = (signal + 0.5 * rng.standard_normal(signal.shape) for _ in range(2))
    found = correlation_with_signal(even, even, odd)
    assert np.all(np.isnan(found.denoised[found.frequency > 0.3]))
    told = np.isfinite(found.denoised)
    assert found.denoised[told] == pytest.approx(found.raw[told])  # no processing: the raw half's own


def test_images_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        fourier_ring_correlation(np.zeros((64, 64)), np.zeros((64, 60)))
