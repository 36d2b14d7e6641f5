import dataclasses

import numpy as np
import pytest
import torch

from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.inference.border import choose_border
from n2n_pipeline.inference.inputs import Inputs
from n2n_pipeline.store import write_movie


class Blur(torch.nn.Module):
    """The mean of 3 x 3 pixels; what lies outside is 0, the network's mean."""

    def forward(self, images):
        return torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1)


@pytest.mark.parametrize(
    ("mean_count", "expected"),
    [
        (10, 0),  # the network's mean: nothing outside is better than noise that is there twice
        (30, 4),  # far from it: ends would be darkened
    ],
)
@pytest.mark.parametrize("ladder", [(), (5, 9)])
def test_the_border_is_the_one_that_predicts_the_other_half_better(
    make_denoiser, tmp_path, mean_count, expected, ladder
):
    counts = np.random.default_rng(0).poisson(mean_count, (12, 70, 50)).astype(np.uint8)
    inputs = Inputs(
        CorrectedMovie(write_movie(tmp_path / "movie.zarr", counts)), 5 if ladder else 4, ladder=ladder
    )
    denoiser = make_denoiser()
    if ladder:
        card = denoiser.card.model_copy(update={"ladder": ladder, "target": 5, "level_scales": (2.0, 2.0)})
        denoiser = dataclasses.replace(denoiser, card=card)
    blurred = dataclasses.replace(denoiser, network=Last(Blur()))
    assert choose_border(blurred, inputs) == expected


def test_where_chance_could_decide_nothing_is_mirrored(make_denoiser, tmp_path):
    denoiser = dataclasses.replace(make_denoiser(), network=Blur())
    chosen = []
    for seed in range(20):  # of a mean at which both predict as well, within their noise
        counts = np.random.default_rng(seed).poisson(12.7, (12, 70, 50)).astype(np.uint8)
        movie = CorrectedMovie(write_movie(tmp_path / f"{seed}.zarr", counts))
        chosen.append(choose_border(denoiser, Inputs(movie, 4)))
    assert chosen.count(0) >= 10


class Last(torch.nn.Module):
    """A network applied to the last of its channels."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images[:, -1:])


def test_of_a_single_frame_a_stride_is_mirrored(make_denoiser, tmp_path):
    counts = np.full((1, 40, 40), 30, np.uint8)
    inputs = Inputs(CorrectedMovie(write_movie(tmp_path / "movie.zarr", counts)), 4)
    assert choose_border(make_denoiser(), inputs) == 4
