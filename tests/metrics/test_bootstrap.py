import numpy as np
import pytest

from n2n_pipeline.metrics.bootstrap import block_sums, bootstrap


@pytest.mark.parametrize(
    ("shape", "n_blocks"),
    [
        ((256, 256), 16),
        ((130, 200), 2 * 3),  # what is left over widens the blocks
        ((32, 300), 2 * 4),  # smaller than a block: still two along each axis
        ((1, 1), 1),
    ],
)
def test_every_pixel_is_in_exactly_one_block(shape, n_blocks):
    values = np.random.default_rng(0).random((2, 3, *shape))
    sums = block_sums(values, block=64)
    assert sums.shape == (n_blocks, 2)
    assert sums.sum(axis=0) == pytest.approx(values.sum(axis=(1, 2, 3)))


def test_the_interval_of_a_mean_has_its_textbook_width():
    samples = np.random.default_rng(1).normal(5, 2, 400)
    found = bootstrap(np.stack([samples, np.ones(400)], axis=1), lambda sums: sums[..., 0] / sums[..., 1])
    assert found.value == pytest.approx(samples.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.1)


def test_the_same_seed_gives_the_same_interval():
    sums = np.random.default_rng(2).random((16, 2))
    assert bootstrap(sums, lambda s: s[..., 0] / s[..., 1]) == bootstrap(sums, lambda s: s[..., 0] / s[..., 1])
