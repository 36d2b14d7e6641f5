import numpy as np
import pytest
from scipy import ndimage

from n2n_pipeline.metrics.noise import fixed_pattern, frame_independence, high_pass, photon_transfer


@pytest.fixture(scope="module")
def electrons():
    y, x = np.mgrid[0:256, 0:256]
    return 2 + 18 * (x / 255) + 3 * np.sin(y / 9)  # electrons per pixel and frame, some of them below 1


def counts(electrons, gain, read_noise, frames=24, seed=0):
    rng = np.random.default_rng(seed)
    electrons = np.maximum(electrons, 0.1)
    return gain * rng.poisson(electrons, (frames, *electrons.shape)) + rng.normal(
        0, read_noise, (frames, *electrons.shape)
    )


@pytest.mark.parametrize(
    ("gain", "read_noise"),
    [
        (1.0, 2.0),  # counts of an electron each
        (206.0, 500.0),  # an integrating camera
        (0.5, 4.0),  # read noise about as strong as the beam's
    ],
)
def test_photon_transfer_recovers_gain_and_read_noise_within_three_per_cent(electrons, gain, read_noise):
    frames = counts(electrons, gain, read_noise)
    found = photon_transfer(frames[:16], ndimage.gaussian_filter(frames[16:].mean(axis=0), 3))
    assert found.gain == pytest.approx(gain, rel=0.03)
    assert np.sqrt(found.read_variance) == pytest.approx(read_noise, rel=0.03)
    assert abs(found.gain - gain) < 4 * found.gain_error


def test_hot_pixels_that_nobody_masked_do_not_move_the_gain(electrons):
    frames = counts(electrons, 1.0, 2.0)
    hot = np.random.default_rng(1).integers(0, 256, (2, 40))
    frames[:, hot[0], hot[1]] += np.random.default_rng(2).normal(400, 100, (24, 40))
    found = photon_transfer(frames[:16], frames[16:].mean(axis=0))
    assert found.gain == pytest.approx(1, rel=0.05)


def test_charge_shared_between_pixels_needs_binned_pixels(electrons):
    shared = ndimage.gaussian_filter(counts(electrons, 1.0, 0.0), (0, 0.6, 0.6), mode="mirror")
    level = ndimage.gaussian_filter(shared[16:].mean(axis=0), 3)
    assert photon_transfer(shared[:16], level).gain < 0.5
    assert photon_transfer(shared[:16], level, side=8).gain == pytest.approx(1, rel=0.2)


def test_frames_of_independent_noise_pass(electrons):
    found = frame_independence(counts(electrons, 1.0, 1.0))
    assert abs(found.z) < 4
    assert found.lag_one == pytest.approx(-0.5, abs=0.01)


def test_a_detector_that_lags_is_seen_with_its_strength():
    noise = np.random.default_rng(3).standard_normal((25, 128, 128))
    found = frame_independence(noise[1:] + 0.1 * noise[:-1])
    assert found.lag_two == pytest.approx(0.1 / (2 * 1.01), abs=0.005)
    assert found.z > 5


def test_motion_of_a_coarse_object_is_kept_out_by_the_cutoff():
    scene = ndimage.gaussian_filter(np.random.default_rng(4).standard_normal((128, 192)), 3) * 20
    moving = np.stack([scene[:, t : t + 128] for t in range(16)])
    frames = moving + np.random.default_rng(5).standard_normal(moving.shape)
    assert frame_independence(frames).z > 5
    assert abs(frame_independence(frames, cutoff=0.35).z) < 4


def test_high_pass_keeps_what_is_finer_and_nothing_else():
    x = np.arange(64)
    coarse, fine = np.cos(2 * np.pi * x * 4 / 64), np.cos(2 * np.pi * x * 28 / 64)
    found = high_pass(np.broadcast_to(coarse + fine, (1, 64, 64)), cutoff=0.3)
    assert found[0] == pytest.approx(np.broadcast_to(fine, (64, 64)), abs=1e-5)


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="3 frames"):
        frame_independence(np.zeros((3, 8, 8)))


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.3])
def test_a_gain_pattern_in_both_halves_is_found_with_its_strength(strength):
    rng = np.random.default_rng(6)
    scene = 10 + ndimage.gaussian_filter(rng.standard_normal((256, 256)), 3) * 10
    pattern = 1 + strength * rng.standard_normal((256, 256))
    even, odd = (rng.poisson(np.maximum(scene * pattern, 0) * 4) / 4 for _ in range(2))
    found = fixed_pattern(even, odd)
    assert (found.z > 5) is (strength > 0)
    if strength:
        assert found.amplitude == pytest.approx(10 * strength, rel=0.1)
