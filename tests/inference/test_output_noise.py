from dataclasses import replace

import numpy as np
import pytest
import torch

from n2n_pipeline.inference import noise
from n2n_pipeline.inference.inputs import Half
from n2n_pipeline.inference.noise import is_precise, output_noise

SIGMA = 3.0


@pytest.fixture
def halves():
    values = np.random.default_rng(0).normal(10, SIGMA, (2, 1, 128, 128)).astype(np.float32)
    return [Half(half, np.full_like(half, 2)) for half in values]


@pytest.fixture
def half_as_strong(make_denoiser):
    """A network that halves what it sees, about its mean."""
    network = torch.nn.Conv2d(1, 1, 1, bias=False).requires_grad_(False)
    network.weight[...] = 0.5
    return replace(make_denoiser(), network=network)


def test_the_noise_of_the_mean_of_two_halves_is_measured(half_as_strong, halves):
    denoised = [(half.values - 10) / 2 for half in halves]
    assert output_noise(half_as_strong, halves, denoised) == pytest.approx(SIGMA / 2 / np.sqrt(2), rel=0.03)


def test_the_noise_of_a_single_image_is_measured_from_its_residual(half_as_strong, halves):
    denoised = [10 + (halves[0].values - 10) / 2]
    # The residual, half of the noise, is what stands for it; the network halves it again.
    assert output_noise(half_as_strong, halves[:1], denoised) == pytest.approx(SIGMA / 4, rel=0.05)


def test_float32_is_precise_without_a_trial(make_denoiser, monkeypatch):
    monkeypatch.setattr(noise, "run_network", None)
    assert is_precise(make_denoiser(), [])


@pytest.mark.parametrize(("rounding", "precise"), [(1e-3, True), (1.0, False)])
def test_a_precision_that_shows_above_the_noise_is_refused(make_denoiser, halves, monkeypatch, rounding, precise):
    real = noise.run_network

    def rounded(denoiser, values, counts):
        denoised = real(replace(denoiser, dtype=None), values, counts)
        return denoised if denoiser.dtype is None else denoised + rounding * np.resize([-1, 1], denoised.shape)

    monkeypatch.setattr(noise, "run_network", rounded)
    assert is_precise(replace(make_denoiser(), dtype=torch.bfloat16), halves) is precise
