"""How far targets reach in time: everywhere where nothing changes, and hardly at all where something does."""

import numpy as np
import pytest

from n2n_pipeline.ladder import LADDER, level_frames
from n2n_pipeline.training.patches import PatchSampler, Recipe, average_halves, deal_ladder
from n2n_pipeline.training.pool import STEADINESS, Pool, Slot
from n2n_pipeline.training.stacks import Region, Stack
from n2n_pipeline.training.steadiness import BIN_PX, BOXES, choose_reach, measure_noise

FRAMES, SIDE = 96, 64
DOSE = 2.0
RECIPE = Recipe(0, LADDER, "random", SIDE, target=LADDER[0], widest=LADDER[-1])


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


def still():
    return np.full((FRAMES, SIDE, SIDE), DOSE)


def disc():
    rows, cols = np.mgrid[:SIDE, :SIDE]
    return np.hypot(rows - SIDE // 2, cols - SIDE // 2) < 8


def appearing(first=40):
    truth = still()
    truth[first:, disc()] /= 2
    return truth


def drifting():
    cols = np.arange(SIDE) - np.arange(FRAMES)[:, None, None]
    return np.broadcast_to(DOSE * (1 + 0.6 * np.sin(2 * np.pi * cols / 12)), (FRAMES, SIDE, SIDE))


def slot_of(movie):
    region = Region(range(FRAMES), range(SIDE), range(SIDE))
    stack = movie.read_stack(region, 1)
    return Slot(0, region, stack, 1, DOSE, None, measure_noise(stack))


def mean_targets(slot, t, recipe=RECIPE, draws=30):
    rng = np.random.default_rng(1)
    place = slot.region[1:]
    deals = [deal_ladder(FRAMES, t, recipe, rng) for _ in range(draws)]
    return np.stack([average_halves(slot, deal, place).target for deal in deals])


def reach_of(truth):
    pool = Pool([Filmed(truth)], LADDER, 0, 2**30, with_noise=True)
    sampler = PatchSampler(pool, RECIPE, [()])
    try:
        return choose_reach(sampler.draw_levels(range(STEADINESS, STEADINESS + 32)), LADDER)
    finally:
        pool.close()


def test_the_noise_of_a_square_is_that_of_its_pixels_over_their_number():
    stack = Filmed(still()).read_stack(Region(range(FRAMES), range(SIDE), range(SIDE)), 1)
    inner = measure_noise(stack)[:, 12:-12, 12:-12].mean(axis=(1, 2))
    pixels = np.square(BIN_PX * np.array(BOXES[:2], float))
    np.testing.assert_allclose(inner[:2], DOSE / pixels, rtol=0.15)


def test_where_nothing_changes_a_target_is_nearly_as_quiet_as_all_frames_of_its_half():
    slot = slot_of(Filmed(still()))
    narrow = mean_targets(slot, 48, RECIPE._replace(widest=LADDER[0])).var()
    assert mean_targets(slot, 48).var() < 0.15 * narrow  # 0.05 if no pixel were ever taken for one that changes


@pytest.mark.parametrize("t", [34, 36, 42, 44, 60])
def test_an_object_that_appears_is_in_the_target_when_it_is_there_and_not_before(t):
    truth = appearing()
    target = mean_targets(slot_of(Filmed(truth)), t)[:, disc()].mean()
    expected = np.mean([truth[f][disc()].mean() for f in level_frames(FRAMES, t, LADDER[0])])
    assert abs(target - expected) < 0.15 * DOSE / 2


def test_without_any_test_a_wide_target_would_hold_it_long_before():
    truth = appearing()
    wide = np.mean([truth[f][disc()].mean() for f in level_frames(FRAMES, 34, LADDER[-1])])
    assert abs(wide - truth[34][disc()].mean()) > 0.4 * DOSE / 2


def test_how_far_a_target_reaches_is_not_decided_by_the_target():
    movie, rng = Filmed(appearing()), np.random.default_rng(2)
    deal = deal_ladder(FRAMES, 41, RECIPE, rng)
    slot, place = slot_of(movie), (range(SIDE), range(SIDE))
    before = average_halves(slot, deal, place)
    slot.stack.sums[deal.target] += 100  # which a test of the target could not miss
    after = average_halves(slot, deal, place)
    np.testing.assert_array_equal(after.weight, before.weight)
    share = (after.target - before.target) / 100  # of the frames nearest to the middle
    assert share[disc()].mean() > 0.8
    assert np.median(share[~disc()]) < 0.2


def test_of_a_still_movie_targets_may_be_as_wide_as_the_ladder_and_of_one_that_drifts_they_stay_narrow():
    assert reach_of(still()) == (LADDER[0], LADDER[-1])
    assert reach_of(drifting()) == (LADDER[0], LADDER[0])


def test_where_something_moves_or_comes_no_pixel_is_trusted_to_say_that_it_does_not():
    everywhere, where_steady = reach_of(appearing())
    assert where_steady == everywhere <= LADDER[1]


@pytest.mark.parametrize("n_frames", [2, 3, 7])
def test_short_movies_have_targets_too(n_frames):
    movie = Filmed(still()[:n_frames])
    pool = Pool([movie], LADDER, 0, 2**30, with_noise=True)
    try:
        sampler = PatchSampler(pool, RECIPE._replace(patch_px=32), [()])
        reach = choose_reach(sampler.draw_levels(range(STEADINESS, STEADINESS + 4)), LADDER)
        batch = sampler.draw_batch(0, range(8))
    finally:
        pool.close()
    assert set(reach) <= set(LADDER)
    assert all(np.isfinite(part).all() for part in batch)
    assert (batch.weight > 0).all()
