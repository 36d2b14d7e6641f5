"""Contrast is found where the scene has it, not where there is more noise, and draws follow it."""

import numpy as np
import pytest

from n2n_pipeline.training.detail import SQUARE_PX, draw_start, measure_detail
from n2n_pipeline.training.patches import PatchSampler, Recipe
from n2n_pipeline.training.pool import Pool
from n2n_pipeline.training.stacks import Stack

SHAPE = (4 * SQUARE_PX, 6 * SQUARE_PX)


def stack(noise=0.0, n_groups=16):
    """Stripes in one square of 24; noise ten times as strong in another."""
    rng = np.random.default_rng(0)
    scene = np.ones(SHAPE)
    scene[2 * SQUARE_PX : 3 * SQUARE_PX, 4 * SQUARE_PX : 5 * SQUARE_PX] += np.sin(np.arange(SQUARE_PX) / 4)
    strength = np.full(SHAPE, noise)
    strength[:SQUARE_PX, :SQUARE_PX] *= 10
    frames = scene + strength * rng.standard_normal((n_groups, *SHAPE))
    return Stack(frames.astype(np.float32), np.ones(frames.shape, np.uint16))


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_square_with_stripes_has_most_of_the_draws(noise):
    detail = measure_detail(stack(noise))
    assert detail.shape == (4, 6)
    assert detail.sum() == pytest.approx(1)
    assert np.unravel_index(detail.argmax(), detail.shape) == (2, 4)
    assert detail[2, 4] > 0.5
    assert detail.min() > 0


def test_an_even_field_is_drawn_evenly():
    detail = measure_detail(Stack(np.ones((4, 64, 96), np.float32), np.ones((4, 64, 96), np.uint16)))
    np.testing.assert_allclose(detail, 1 / 6)


def test_pixels_that_no_frame_saw_have_no_detail():
    seen = stack()
    seen.counts[:, :40] = 0
    seen.sums[:, :40] = 0
    assert np.unravel_index(measure_detail(seen).argmax(), (4, 6)) == (2, 4)


def test_patches_lie_within_the_region_with_their_middle_in_the_square():
    detail = np.zeros((4, 6))
    detail[2, 4] = 1.0
    rng = np.random.default_rng(0)
    for _ in range(100):
        y, x = draw_start(detail, (range(100, 100 + SHAPE[0]), range(7, 7 + SHAPE[1])), 64, rng)
        assert 100 <= y <= 100 + SHAPE[0] - 64
        assert 7 <= x <= 7 + SHAPE[1] - 64
        assert 2 <= (y - 100 + 32) / SQUARE_PX <= 3 or y == 100 + SHAPE[0] - 64
        assert 4 <= (x - 7 + 32) / SQUARE_PX <= 5 or x == 7 + SHAPE[1] - 64


class Striped:
    """A movie of that scene."""

    n_frames, shape, typical_value = 16, SHAPE, 1.0

    def read_stack(self, region, group_size):
        return stack()


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0.1, 0.4), (1.0, 0.85, 1.0)])
def test_the_share_decides_how_many_patches_show_the_detail(share, least, most):
    pool = Pool([Striped()], (8,), 0, 2**30, with_detail=share > 0)
    sampler = PatchSampler(pool, Recipe(0, (8,), "random", 32, detail=share), [()])
    batch = sampler.draw_batch(0, range(200))
    shown = float(np.mean(batch.values.std(axis=(1, 2)) > 0.1))
    assert least < shown < most
