"""The map of frames averaged, for networks whose choice is known beforehand."""

import numpy as np
import pytest
import torch
from torch import nn

from n2n_pipeline.checkpoint import Denoiser, ModelCard
from n2n_pipeline.config import NetworkConfig
from n2n_pipeline.inference.window_map import effective_frames

LADDER = (5, 9, 33)
COUNTS = np.array([3, 5, 17], np.float32)  # of one half


class Weigh(nn.Module):
    """A weighted sum of the levels, with weights of its own to the left and to the right."""

    def __init__(self, left, right):
        super().__init__()
        self.left, self.right = torch.tensor(left), torch.tensor(right)

    def forward(self, images):
        width = images.shape[-1]
        is_left = (torch.arange(width) < width // 2)[None, :]
        weights = torch.where(is_left, self.left[:, None, None], self.right[:, None, None])
        return (images * weights).sum(dim=1, keepdim=True)


def map_of(left, right=None, counts=COUNTS):
    scales = (3.0, 2.0, 1.0)
    card = ModelCard(
        network=NetworkConfig(width=4, depth=2, in_channels=3),
        mean=1.0, scale=1.0, window=33, ladder=LADDER, level_scales=scales, target=5,
    )  # fmt: skip
    # A level's weight is that of its own channel less that of the channel which it is subtracted in.
    own = [(np.cumsum(side) * scales).astype(np.float32).tolist() for side in (left, right or left)]
    counts = np.broadcast_to(counts[:, None, None], (3, 64, 96))[None].astype(np.float32)
    values = np.random.default_rng(0).normal(1, 1, counts.shape).astype(np.float32)
    return effective_frames(Denoiser(Weigh(*own), card, torch.device("cpu")), values, counts)[0]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((1.0, 0.0, 0.0), 3),
        ((0.0, 1.0, 0.0), 5),
        ((0.0, 0.0, 1.0), 17),
        ((0.0, 0.0, -2.0), 17),
        # 3 frames weigh 1/3 + 1/17, 14 weigh 1/17: (3 * 20/51 + 14 * 3/51)² / (3 * (20/51)² + 14 * (3/51)²)
        ((1.0, 0.0, 1.0), (60 + 42) ** 2 / (3 * 400 + 14 * 9)),
    ],
)
def test_a_network_that_weighs_levels_alike_everywhere_averages_as_many_frames(weights, expected):
    np.testing.assert_allclose(map_of(weights), expected, rtol=1e-4)


def test_each_side_has_its_own_number_and_between_them_it_changes_within_the_neighbourhood():
    found = map_of((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    np.testing.assert_allclose(found[:, :30], 3, rtol=1e-3)
    np.testing.assert_allclose(found[:, 66:], 17, rtol=1e-3)


def test_frames_that_a_short_movie_lacks_are_not_counted():
    np.testing.assert_allclose(map_of((0.0, 0.0, 1.0), counts=np.array([2, 3, 6], np.float32)), 6, rtol=1e-4)
