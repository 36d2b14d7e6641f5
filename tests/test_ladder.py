"""Ladders of windows against a plain loop over frames, and halves that share nothing at any level."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pairs import references_for, store_of

import n2n_pipeline as n2n
from n2n_pipeline.averages import read_ladder, read_pairs
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.halving import Halves
from n2n_pipeline.ladder import LADDER, Ladder, check_ladder, ladder_for, level_frames, split_around
from n2n_pipeline.shifted import ShiftedFrames, whole_shifts

LADDERS = ((3,), (5, 9, 17), (3, 7, 13, 21), (5, 9, 17, 33, 65))


def average_by_hand(store, t, windows, frame_of_reference):
    """Sums and counts, ``(half, level, y, x)``, of one frame's ladder, frame by frame."""
    movie, n_frames = CorrectedMovie(store), store.info.shape[0]
    whole = (slice(0, store.info.shape[1]), slice(0, store.info.shape[2]))
    frames = ShiftedFrames(movie, range(n_frames), range(t, t + 1), whole, whole_shifts(movie), frame_of_reference)
    is_even = split_around(n_frames, t)
    parts = [
        [frames.sum_frames(t, [f for f in level_frames(n_frames, t, w) if is_even[f] == even]) for w in windows]
        for even in (True, False)
    ]
    return tuple(np.array([[level[which] for level in half] for half in parts]) for which in (0, 1))


CASES = {
    "counts alone are summed as whole numbers": {},
    "references are applied once to the sums of a still movie": {"references": True},
    "drift is undone frame by frame": {"drift": True},
    "each frame of a drifting movie is corrected where the camera saw it": {"references": True, "drift": True},
    "pixels that are not finite count in no frame": {"nan": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("frame_of_reference", ["camera", "stable"])
def test_every_level_is_what_a_plain_loop_gives(case, frame_of_reference):
    rng, options = np.random.default_rng(3), CASES[case]
    counts = rng.poisson(4.0, (14, 9, 10)).astype("f4" if "nan" in options else "u2")
    if "nan" in options:
        counts[3, 4, 5] = np.nan
    drift = np.cumsum(rng.normal(0.6, 0.6, (14, 2)), axis=0) if "drift" in options else None
    store = store_of(counts, references_for((9, 10), rng) if "references" in options else None, drift)
    region, windows = (slice(1, 8), slice(0, 10)), (3, 5, 9, 33)
    pair = read_ladder(CorrectedMovie(store), range(14), region, windows, frame_of_reference)
    for t in range(14):
        total, seen = average_by_hand(store, t, windows, frame_of_reference)
        for half in (0, 1):
            count = seen[half][:, *region]
            expected = total[half][:, *region] / np.maximum(count, 1)
            np.testing.assert_array_equal(pair[2 + half][t], count)
            np.testing.assert_allclose(pair[half][t][count > 0], expected[count > 0], rtol=1e-6, atol=1e-6)
            assert np.isfinite(pair[half][t]).all()


@pytest.mark.parametrize("n_frames", [2, 48, 49, 64, 95])
def test_the_longest_level_of_a_short_movie_holds_all_of_it_from_any_frame(n_frames):
    windows = ladder_for(n_frames)
    check_ladder(windows)
    assert all(level_frames(n_frames, t, windows[-1]) == range(n_frames) for t in (0, n_frames // 2, n_frames - 1))
    assert ladder_for(96) == LADDER


@given(n_frames=st.integers(2, 80), windows=st.sampled_from(LADDERS), seed=st.integers(0, 99))
def test_no_level_of_one_half_shares_a_frame_with_any_level_of_the_other(n_frames, windows, seed):
    order = np.random.default_rng(seed).random(n_frames) < 0.5
    for t in range(n_frames):
        for is_even in (split_around(n_frames, t), split_around(n_frames, t, order)):
            levels = [set(level_frames(n_frames, t, window)) for window in windows]
            even = [level & set(np.flatnonzero(is_even).tolist()) for level in levels]
            odd = [level & set(np.flatnonzero(~is_even).tolist()) for level in levels]
            assert all(not a & b for a in even for b in odd)
            assert all(a | b == level for a, b, level in zip(even, odd, levels, strict=True))


@given(n_frames=st.integers(2, 80), windows=st.sampled_from(LADDERS))
def test_a_level_has_only_the_movies_own_frames_and_both_halves_have_some(n_frames, windows):
    counts = Ladder(n_frames, range(n_frames), windows).count_frames()
    for t in range(n_frames):
        for level, window in enumerate(windows):
            members = level_frames(n_frames, t, window)
            assert t in members
            assert len(members) == sum(abs(f - t) <= window // 2 for f in range(n_frames))
            even, odd = (int(half[t, level]) for half in counts)
            assert even + odd == len(members)
            assert min(even, odd) >= 1
            if len(members) == window:
                assert abs(even - odd) == 1


@given(
    n_frames=st.integers(2, 50),
    windows=st.sampled_from(LADDERS),
    place=st.tuples(st.floats(0, 1), st.integers(1, 20)),
    dtype=st.sampled_from(["u1", "i2", "u2", "f4", "f8"]),
)
@settings(max_examples=60, deadline=None)
def test_averages_of_a_ladder_are_those_of_each_level(n_frames, windows, place, dtype):
    frames = np.random.default_rng(n_frames).poisson(30.0, (n_frames, 5)).astype(dtype)
    first = int(place[0] * (n_frames - 1))
    ladder = Ladder(n_frames, range(first, min(first + place[1], n_frames)), windows)
    seen = np.random.default_rng(1).random(frames.shape) < 0.9
    averages, counts = (Halves(*np.full((2, *ladder.rows, 7), -1.0, "f4")) for _ in range(2))
    needed = slice(ladder.needed.start, ladder.needed.stop)
    ladder.average_placed((frames * seen)[needed], seen[needed], 2, averages, counts)
    for row, t in enumerate(ladder.frames):
        is_even = split_around(n_frames, t)
        for level, window in enumerate(windows):
            members = list(level_frames(n_frames, t, window))
            for half, is_in in enumerate((is_even[members], ~is_even[members])):
                part, were_seen = frames[members][is_in].astype(float), seen[members][is_in]
                count = were_seen.sum(axis=0)
                expected = (part * were_seen).sum(axis=0) / np.maximum(count, 1)
                np.testing.assert_array_equal(counts[half][row, level, 2:], count)
                np.testing.assert_array_equal(averages[half][row, level, 2:], expected.astype("f4"))
    for part in (*averages, *counts):
        assert (part[..., :2] == -1).all()


@given(
    cut=st.tuples(st.integers(1, 7), st.integers(4, 16), st.integers(4, 16)),
    stride=st.integers(1, 5),
    drifts=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_any_chunking_gives_the_bytes_of_the_whole(cut, stride, drifts):
    rng = np.random.default_rng(0)
    counts = rng.poisson(5.0, (12, 16, 17)).astype("u1")
    drift = np.cumsum(rng.normal(0.5, 0.5, (12, 2)), axis=0) if drifts else None
    windows, whole = (3, 5, 9), (slice(None), slice(None))
    eager = read_ladder(
        CorrectedMovie(store_of(counts, None, drift)), range(0, 12, stride), whole, windows, "stable"
    )
    lazy = n2n.pairs(store_of(counts, None, drift, cut), window=windows, stride=stride, target=5)
    for name in eager._fields:
        assert lazy[name].dims == ("t", "window", "y", "x")
        assert lazy[name].values.tobytes() == getattr(eager, name).tobytes()
    np.testing.assert_array_equal(lazy["odd_target"], eager.odd[:, 1])
    np.testing.assert_array_equal(lazy["even_target"], eager.even[:, 1])


def test_a_ladder_of_the_pairs_says_which_frames_are_in_which_half():
    counts = np.random.default_rng(1).poisson(5.0, (9, 6, 6)).astype("u1")
    halves = n2n.pairs(store_of(counts), window=[3, 5])
    assert halves.attrs["target"] == 3
    even = counts[3:8][halves["is_even"].sel(t=5).values[3:8]]
    np.testing.assert_allclose(halves["even"].sel(t=5, window=5), even.mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("windows", [(), (4, 8), (9, 5), (5, 5), (1, 3)])
def test_windows_that_are_no_ladder_are_refused(windows):
    with pytest.raises(ValueError, match="ascending odd numbers"):
        check_ladder(windows)


def test_a_target_must_be_one_of_the_windows():
    store = store_of(np.ones((9, 6, 6), "u1"))
    with pytest.raises(ValueError, match="target is 7"):
        n2n.pairs(store, window=[3, 5], target=7)
    with pytest.raises(ValueError, match="only a ladder"):
        n2n.pairs(store, window=4, target=4)


@pytest.mark.parametrize("drifts", [False, True])
def test_a_ladder_takes_the_memory_of_its_longest_window_and_of_its_levels(drifts):
    rng = np.random.default_rng(0)
    drift = np.cumsum(rng.normal(0.5, 0.5, (70, 2)), axis=0) if drifts else None
    movie = CorrectedMovie(store_of(rng.poisson(1, (70, 192, 192)).astype("u1"), None, drift, (4, 64, 64)))
    frame, region = range(35, 36), (slice(32, 160), slice(32, 160))
    windows = (5, 9, 17, 33, 65)
    longest = peak_bytes(read_pairs, movie, frame, region, windows[-1])
    assert peak_bytes(read_ladder, movie, frame, region, windows) < longest + 64 * len(windows) * 128**2


def peak_bytes(read, *given):
    read(*given)  # compiled by now
    tracemalloc.start()
    read(*given)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak
