import numpy as np
import pytest
import torch

from n2n_pipeline.geometry import Tiling, plan_tiles
from n2n_pipeline.inference.forward import denoise_frames
from n2n_pipeline.inference.halo import Sample, measure_halo, sample_tiles
from n2n_pipeline.inference.inputs import Half
from n2n_pipeline.model import exact_halo

STRIDE = 8
SHAPE = (200, 200)
TOLERANCE = 0.2


@pytest.fixture(scope="module")
def network(make_denoiser):
    """A network trained, briefly, to take noise off a smooth scene: it looks less far than it could."""
    denoiser = make_denoiser(width=8, depth=3)
    weights = denoiser.network.requires_grad_(True)
    adam = torch.optim.Adam(weights.parameters(), 3e-3)
    scene = torch.nn.functional.avg_pool2d(torch.randn(8, 1, 80, 80), 9, 1, 4)[..., 8:72, 8:72] * 9
    for _ in range(60):
        noisy, target = (scene + torch.randn_like(scene) for _ in range(2))
        loss = (weights(noisy) - target).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    weights.requires_grad_(False)
    return denoiser


@pytest.fixture(scope="module")
def halves():
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:200, :200] / 20
    scene = 10 + 2 * np.sin(y) * np.cos(1.3 * x)
    noisy = rng.normal(scene, 2, (2, 1, *SHAPE)).astype(np.float32)
    return [Half(values, np.full_like(values, 2)) for values in noisy]


def samples(shape, halves, exact):
    """Places along the diagonal, all of the same frame."""
    found = []
    for tile in sample_tiles(shape, STRIDE, exact):
        rows, columns = (slice(*span.read) for span in tile)
        found.append(Sample(tile, [Half(*(image[:, rows, columns] for image in half)) for half in halves]))
    return found


@pytest.mark.parametrize("n_halves", [2, 1])
def test_the_measured_halo_keeps_tiles_within_the_stated_error(network, halves, n_halves):
    halves = halves[:n_halves]
    exact = exact_halo(network.card.network)
    measured = measure_halo(network, samples(SHAPE, halves, exact), TOLERANCE)
    whole, tiled = (
        [denoise_frames(network, *half, plan_tiles(SHAPE, Tiling(STRIDE, core, measured.halo))) for half in halves]
        for core in (1000, 48)
    )
    noise = np.std(whole[0] - whole[-1]) / 2 if n_halves == 2 else 0.5
    assert np.abs(np.mean(tiled, axis=0) - np.mean(whole, axis=0)).max() < TOLERANCE * noise
    assert measured.halo < exact
    assert measured.error <= TOLERANCE


def test_a_network_that_sees_one_pixel_needs_no_halo(make_denoiser, halves):
    denoiser = make_denoiser(depth=3)
    for name, weights in denoiser.network.named_parameters():
        if name.endswith("weight"):
            weights[..., [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
    exact = exact_halo(denoiser.card.network)
    measured = measure_halo(denoiser, samples(SHAPE, halves, exact), TOLERANCE)
    assert measured.halo == 0


def test_nothing_short_of_exact_is_trusted_when_nothing_is_allowed(network, halves):
    exact = exact_halo(network.card.network)
    measured = measure_halo(network, samples(SHAPE, halves, exact), 1e-12)
    assert measured == (exact, 0.0)


def test_distances_that_a_small_image_does_not_have_are_not_trusted(network, halves):
    exact = exact_halo(network.card.network)
    shape = (2 * STRIDE, 2 * STRIDE)
    small = [Half(half.values[:, :16, :16], half.counts[:, :16, :16]) for half in halves]
    measured = measure_halo(network, samples(shape, small, exact), 1e-12)
    assert measured.halo == exact
