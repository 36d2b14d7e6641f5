"""Each loss has the minimiser it is known for, and weights leave out what they should."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from n2n_pipeline.training.loop import learning_rate
from n2n_pipeline.training.losses import find_changes, weighted_loss


def best_constant(kind: str, values: np.ndarray, progress: float = 0.0) -> float:
    """The constant output with the least loss against many targets."""
    target = torch.from_numpy(values)[None]
    candidates = np.linspace(values.min(), values.max(), 201)
    losses = [
        float(weighted_loss(kind, torch.full_like(target, c), target, torch.ones_like(target), progress))
        for c in candidates
    ]
    return float(candidates[int(np.argmin(losses))])


VALUES = np.array([0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 8.0])


@pytest.mark.parametrize(
    ("kind", "progress", "expected"),
    [
        ("l2", 0.0, 2.0),  # mean
        ("l1", 0.0, 1.0),  # median
        ("l0", 0.0, 2.0),  # starts as the mean ...
        ("l0", 0.95, 0.0),  # ... and ends as the mode
    ],
)
def test_the_minimiser_is_mean_median_or_mode(kind, progress, expected):
    assert best_constant(kind, VALUES, progress) == pytest.approx(expected, abs=0.05)


def test_huber_lies_between_mean_and_median():
    assert 0.25 < best_constant("huber", VALUES / 4) < 0.5


@pytest.mark.parametrize("kind", ["l2", "l1", "huber", "l0"])
def test_targets_without_weight_do_not_matter(kind):
    output, weight = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    losses = [weighted_loss(kind, output, torch.tensor([[[1.0, 2.0], [3.0, x]]]), weight, 0.5) for x in (0.0, 1e6)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", ["l2", "l1", "huber", "l0"])
def test_gradients_are_finite_where_output_and_target_agree(kind):
    output = torch.zeros(1, 2, 2, requires_grad=True)
    weighted_loss(kind, output, torch.zeros(1, 2, 2), torch.ones(1, 2, 2), 0.5).backward()
    assert output.grad.isfinite().all()


def test_the_learning_rate_rises_stays_and_ends_at_nothing():
    rates = [learning_rate(1e-3, step / 100) for step in range(101)]
    assert rates[0] < rates[2] < rates[3] == 1e-3
    assert rates[3:61] == [1e-3] * 58
    assert all(a > b for a, b in pairwise(rates[60:]))
    assert rates[-1] == 0


def levels_with_an_object(n: int = 2, side: int = 96) -> torch.Tensor:
    """Levels of noise; in the first image the second level alone knows of a faint object."""
    inputs = torch.randn(n, 5, side, side, generator=torch.Generator().manual_seed(3))
    inputs[0, 1, 30:50, 40:60] += 0.4
    return inputs


def test_pixels_around_which_levels_differ_are_found_in_noise_that_hides_them():
    found = find_changes(levels_with_an_object())
    assert found.mean((1, 2)) == pytest.approx(1.0, abs=1e-4)
    assert found[0, 35:45, 45:55].mean() > 3
    assert found[1].max() < 6


def test_levels_that_hold_the_same_frames_say_nothing():
    inputs = levels_with_an_object()
    shorter = inputs.clone()
    shorter[:, 3] = 0
    others = inputs[:, [0, 1, 2, 4]]
    torch.testing.assert_close(find_changes(shorter), find_changes(others))
    assert not find_changes(torch.zeros(1, 5, 32, 32)).any()


def test_an_image_is_weighed_by_itself():
    inputs = levels_with_an_object()
    torch.testing.assert_close(find_changes(inputs)[1:], find_changes(inputs[1:]))
