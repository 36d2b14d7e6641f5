"""Patches come from where they should, their halves share no frame, and only (seed, step, index) matters."""

from collections import Counter

import numpy as np
import pytest

from n2n_pipeline.training.patches import (
    Batch,
    Block,
    PatchSampler,
    Recipe,
    average_halves,
    deal_window,
    plan_held_out,
    turn,
)
from n2n_pipeline.training.pool import STEPS_PER_REGION, Pool, Slot
from n2n_pipeline.training.stacks import Region, Stack, group_size, whole_region


class CodedFrames:
    """Frame t is ``2 ** t`` everywhere, so that an average tells which frames it holds."""

    typical_value = 1.0

    def __init__(self, n_frames=16, shape=(24, 40), base=2.0):
        self.n_frames, self.shape, self.base = n_frames, shape, base
        self.reads = []

    def read_stack(self, region, group_size):
        self.reads.append(region)
        sums = self.base ** np.array(region.frames, np.float64)
        sums = sums[: len(sums) // group_size * group_size].reshape(-1, group_size).sum(axis=1)
        shape = (len(sums), len(region.rows), len(region.cols))
        stack = np.broadcast_to(sums[:, None, None], shape).astype(np.float32)
        return Stack(stack, np.full(shape, group_size, np.uint16))


class PlaceFrames(CodedFrames):
    """Every pixel of every frame is its own row and column."""

    def read_stack(self, region, group_size):
        image = np.add.outer(1000.0 * np.array(region.rows), np.array(region.cols))
        sums = np.repeat(image[None], len(region.frames), axis=0).astype(np.float32)
        return Stack(sums, np.ones(sums.shape, np.uint16))


def sampler(*movies, window=8, patch=8, held_out=None, memory=2**30, split="random", seed=0):
    pool = Pool(movies, (window,), seed, memory)
    return PatchSampler(pool, Recipe(seed, (window,), split, patch), held_out or [()] * len(movies))


def frames_in(average, count):
    """Frames whose powers of two add up to a half's sum."""
    total = round(float(average) * count)
    return {bit for bit in range(total.bit_length()) if total >> bit & 1}


@pytest.mark.parametrize("split", ["random", "balanced", "interleaved", "adjacent"])
def test_no_frame_is_in_both_halves_and_together_they_are_the_window(split):
    batch = sampler(CodedFrames(), split=split).draw_batch(3, range(32))
    for values, counts, target in zip(batch.values, batch.counts, batch.target, strict=True):
        even = frames_in(values[0, 0], counts[0, 0])
        odd = frames_in(target[0, 0], 4)
        assert not even & odd
        assert len(even) == len(odd) == 4
        assert max(even | odd) - min(even | odd) == 7


def test_random_splits_are_fresh_each_time():
    batch = sampler(CodedFrames(n_frames=8)).draw_batch(0, range(64))
    assert len({float(values[0, 0]) for values in batch.values}) > 30  # of 70 halves of 8 frames


def test_every_window_is_drawn_the_first_and_the_last_included():
    batch = sampler(CodedFrames(n_frames=10), window=4).draw_batch(0, range(200))
    starts = {
        min(frames_in(v[0, 0], 2) | frames_in(t[0, 0], 2)) for v, t in zip(batch.values, batch.target, strict=True)
    }
    assert starts == set(range(7))


def test_a_batch_is_the_same_whoever_draws_which_part_of_it_and_when():
    whole = sampler(CodedFrames()).draw_batch(7, range(8))
    other = sampler(CodedFrames())
    other.draw_batch(3, range(5))
    odd_ones = other.draw_batch(7, range(1, 8, 2))
    for a, b in zip(whole, odd_ones, strict=True):
        np.testing.assert_array_equal(a[1::2], b)


def test_another_step_or_seed_draws_other_patches():
    first = sampler(PlaceFrames()).draw_batch(0, range(8)).values
    assert not np.array_equal(first, sampler(PlaceFrames()).draw_batch(1, range(8)).values)
    assert not np.array_equal(first, sampler(PlaceFrames(), seed=1).draw_batch(0, range(8)).values)


def test_patches_reach_every_pixel_and_turn_all_eight_ways():
    movie = PlaceFrames(shape=(12, 16))
    batch = sampler(movie, patch=8).draw_batch(0, range(300))
    assert {float(v) for v in np.unique(batch.values)} == {1000.0 * y + x for y in range(12) for x in range(16)}
    steps = Counter((float(v[0, 1] - v[0, 0]), float(v[1, 0] - v[0, 0])) for v in batch.values)
    assert set(steps) == {(a, b) for d in (1, -1) for e in (1000, -1000) for a, b in ((d, e), (e, d))}


def test_input_and_target_are_of_the_same_place_and_turn():
    batch = sampler(PlaceFrames()).draw_batch(0, range(20))
    np.testing.assert_allclose(batch.values, batch.target)


def test_held_out_pixels_weigh_nothing_and_all_others_one():
    block = Block(4, 8, 6)
    batch = sampler(PlaceFrames(), held_out=[(block,)]).draw_batch(0, range(100))
    rows, cols = batch.values // 1000, batch.values % 1000
    inside = (rows >= 4) & (rows < 10) & (cols >= 8) & (cols < 14)
    assert inside.any()
    np.testing.assert_array_equal(batch.weight, np.where(inside, 0, 1))


def test_a_pixel_is_averaged_over_the_frames_that_saw_it_and_weighted_by_them():
    sums = np.full((4, 16, 16), 3.0, np.float32)
    counts = np.ones((4, 16, 16), np.uint16)
    sums[1, 2, 2] = counts[1, 2, 2] = 0  # one of two input frames did not see this pixel
    sums[2, 5, 5] = counts[2, 5, 5] = 0  # one of two target frames
    sums[2:, 9, 9] = counts[2:, 9, 9] = 0  # no target frame
    sums[:2, 12, 12] = counts[:2, 12, 12] = 0  # no input frame
    slot = Slot(0, Region(range(4), range(16), range(16)), Stack(sums, counts), 1, 7.0)
    deal = deal_window(range(4), np.array([True, True, False, False]), 4)
    patch = average_halves(slot, deal, (range(16), range(16)))
    np.testing.assert_allclose(patch.values, 3.0)  # the unseen one is filled from its neighbours
    assert patch.counts[2, 2] == 1
    assert patch.counts[12, 12] == 0
    assert patch.weight[5, 5] == 1
    assert patch.weight[9, 9] == 0
    assert patch.counts[0, 0] == patch.weight[0, 0] == 2


def test_movies_are_drawn_in_proportion_to_their_frames():
    batch = sampler(CodedFrames(8, base=1.0), CodedFrames(24, base=0.0)).draw_batch(0, range(400))
    assert 60 < sum(v[0, 0] == 1.0 for v in batch.values) < 140


def test_long_windows_are_summed_in_groups_and_none_is_split():
    movie = CodedFrames(n_frames=400, base=1.0)
    assert group_size(256) == 4
    batch = sampler(movie, window=256, patch=4).draw_batch(0, range(4))
    np.testing.assert_array_equal(batch.counts, 128)
    np.testing.assert_allclose(batch.values, 1.0)


def test_a_movie_that_does_not_fit_is_sampled_from_regions_that_change_with_the_step_alone():
    movie = PlaceFrames(n_frames=64, shape=(600, 600))
    memory = 4 * 32 * 512 * 512 * 6
    first = sampler(movie, memory=memory)
    early = first.draw_batch(3, range(4))
    late = first.draw_batch(10 * STEPS_PER_REGION, range(4))
    assert all(len(region.rows) == 512 and len(region.frames) == 32 for region in movie.reads)
    resumed = sampler(PlaceFrames(n_frames=64, shape=(600, 600)), memory=memory)
    np.testing.assert_array_equal(late.values, resumed.draw_batch(10 * STEPS_PER_REGION, range(4)).values)
    np.testing.assert_array_equal(early.values, resumed.draw_batch(3, range(4)).values)


def test_one_region_is_replaced_at_a_time():
    pool = Pool([PlaceFrames(n_frames=64, shape=(600, 600))], (8,), 0, 6 * 32 * 512 * 512 * 6)
    before, after = ({pool._key(slot, step) for slot in range(4)} for step in (24, 25))
    assert pool._n_slots == 4
    assert len(before & after) == 3


def test_held_out_squares_lie_inside_and_apart():
    blocks = plan_held_out((300, 500), (1, 2))
    covered = np.zeros((300, 500), int)
    for block in blocks:
        covered[block.y : block.y + block.side, block.x : block.x + block.side] += 1
    assert covered.max() == 1
    assert covered.sum() == sum(block.side**2 for block in blocks)
    assert 0.04 < covered.mean() < 0.08


def test_turns_are_eight():
    image = np.arange(9.0, dtype=np.float32).reshape(3, 3)
    patches = [turn(Batch(*[image] * 4), which).values for which in range(8)]
    assert len({patch.tobytes() for patch in patches}) == 8


def test_the_whole_of_a_movie_is_its_frames_rows_and_columns():
    assert whole_region(CodedFrames(5, (6, 7))) == (range(5), range(6), range(7))


def test_of_several_windows_each_sample_draws_one_and_all_are_drawn():
    movie = CodedFrames(n_frames=24)
    pool = Pool([movie], (2, 4, 8), 0, 2**30)
    batch = PatchSampler(pool, Recipe(0, (2, 4, 8), "balanced", 8), [()]).draw_batch(0, range(64))
    held = batch.counts[:, 0, 0].astype(int)
    assert set(held) == {1, 2, 4}
    for value, count, target in zip(batch.values[:, 0, 0], held, batch.target[:, 0, 0], strict=True):
        frames = frames_in(value, count) | frames_in(target, count)
        assert len(frames) == 2 * count
        assert max(frames) - min(frames) == 2 * count - 1
    np.testing.assert_array_equal(batch.weight[:, 0, 0], 1)  # each window's own full half
