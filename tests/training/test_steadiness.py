"""How far targets reach in time: further where nothing changes than where something does."""

import numpy as np
import pytest

from n2n_pipeline.ladder import LADDER
from n2n_pipeline.training.patches import PatchSampler, Recipe
from n2n_pipeline.training.pool import STEADINESS, Pool
from n2n_pipeline.training.stacks import Stack
from n2n_pipeline.training.steadiness import choose_targets, is_still

FRAMES, SIDE = 96, 64
DOSE = 2.0
RECIPE = Recipe(0, LADDER, "random", SIDE, target=LADDER[0])


class Filmed:
    """A movie in memory: Poisson counts of noiseless frames."""

    path, typical_value = None, DOSE

    def __init__(self, truth, seed=0):
        self.counts = np.random.default_rng(seed).poisson(truth).astype(np.float32)
        self.n_frames, *shape = truth.shape
        self.shape = tuple(shape)

    def read_stack(self, region, group_size):
        part = self.counts[region.frames.start : region.frames.stop, *(slice(p.start, p.stop) for p in region[1:])]
        return Stack(part.copy(), np.ones(part.shape, np.uint16))


class DriftingIn(Filmed):
    """One whose scene lies ever further into the image: a strip of it is unseen at first."""

    def read_stack(self, region, group_size):
        stack = super().read_stack(region, group_size)
        for t, (values, counts) in enumerate(zip(*stack, strict=True)):
            values[:, : (FRAMES - t) // 4] = counts[:, : (FRAMES - t) // 4] = 0
        return stack


def still():
    return np.full((FRAMES, SIDE, SIDE), DOSE)


def appearing(first=40):
    rows, cols = np.mgrid[:SIDE, :SIDE]
    truth = still()
    truth[first:, np.hypot(rows - SIDE // 2, cols - SIDE // 2) < 8] /= 2
    return truth


def drifting(px_per_frame):
    cols = np.arange(SIDE) - px_per_frame * np.arange(FRAMES)[:, None, None]
    return np.broadcast_to(DOSE * (1 + 0.6 * np.sin(2 * np.pi * cols / 12)), (FRAMES, SIDE, SIDE))


def target_of(truth, patch_px=SIDE, patches=32, film=Filmed):
    pool = Pool([film(truth)], LADDER, 0, 2**30)
    sampler = PatchSampler(pool, RECIPE._replace(patch_px=patch_px), [()])
    try:
        return choose_targets(sampler.draw_levels(range(STEADINESS, STEADINESS + patches)), LADDER).training
    finally:
        pool.close()


def test_of_a_still_movie_the_target_is_as_wide_as_any_and_best_weights_are_told_by_all_frames():
    found = []
    for seed in range(5):
        pool = Pool([Filmed(still(), seed)], LADDER, 0, 2**30)
        levels = PatchSampler(pool, RECIPE, [()]).draw_levels(range(STEADINESS, STEADINESS + 32))
        pool.close()
        found.append(choose_targets(levels, LADDER))
    assert found.count((LADDER[-2], LADDER[-1])) >= 4  # two standard errors of so small a movie may deceive


@pytest.mark.parametrize(("px_per_frame", "most"), [(0.1, 17), (0.3, 9), (1.0, 5)])
def test_the_faster_a_movie_drifts_the_narrower_it_is(px_per_frame, most):
    assert target_of(drifting(px_per_frame)) <= most


def test_what_was_not_seen_at_first_is_not_taken_for_something_that_comes():
    assert is_still(target_of(still(), film=DriftingIn), LADDER)


def test_an_object_that_comes_makes_it_narrower():
    assert not is_still(target_of(appearing()), LADDER)


def test_the_halves_that_tell_have_no_noise_in_common_and_are_symmetric_in_time():
    truth = drifting(0.02)  # so slow that nothing blurs; a half that is ahead of the other would show
    pool = Pool([Filmed(truth)], LADDER, 0, 2**30)
    pairs = PatchSampler(pool, RECIPE, [()]).draw_levels(range(STEADINESS, STEADINESS + 64))
    pool.close()
    products = [np.mean((a[0] - a[1]) * (b[0] - b[1])) for a, b in pairs]
    squares = [np.mean((a[0] - a[1]) ** 2) for a, _ in pairs]
    assert abs(np.mean(products)) < 0.02 * np.mean(squares)


@pytest.mark.parametrize("n_frames", [2, 3, 7])
def test_short_movies_have_targets_too(n_frames):
    assert target_of(still()[:n_frames], patch_px=32, patches=4) in LADDER
