"""Levels that keep the moment's own side: what came or went is not in them, and all else is as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ladder import peak_bytes
from test_pairs import references_for, store_of

from n2n_pipeline.averages import read_ladder, read_sides
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.inference.changes import measure_changes
from n2n_pipeline.inference.inputs import Inputs
from n2n_pipeline.ladder import level_frames, split_around
from n2n_pipeline.sides import NEAREST, Noise

LADDER = (5, 9, 17, 33, 95)
WHOLE = (slice(None), slice(None))
N_FRAMES, SIDE, DOSE = 72, 96, 4.0
THERE = range(30, 50)
NEAR = range(24, 36)
"""Frames next to where it begins."""
DISC = np.hypot(*(np.mgrid[:SIDE, :SIDE] - SIDE / 2)) < 14
CORE = np.hypot(*(np.mgrid[:SIDE, :SIDE] - SIDE / 2)) < 9
"""What no square of 20 px about its pixels leaves by much."""
NOISE = Noise((DOSE / 16) ** 0.5, DOSE)
"""Of a Poisson movie: a cell has 16 px."""


def movie_of(expected, drift=None, references=None, seed=0):
    """A counted movie of what was expected ``(t, y, x)``."""
    counts = np.random.default_rng(seed).poisson(expected).astype("u1")
    return CorrectedMovie(store_of(counts, references, drift, (8, 48, 48)))


def still_scene():
    """A scene with some texture, ``(t, y, x)``, that stands still."""
    texture = np.random.default_rng(5).normal(0, 0.3, (SIDE, SIDE))
    return np.broadcast_to(np.clip(DOSE + texture, 0.5, None), (N_FRAMES, SIDE, SIDE)).copy()


@pytest.fixture(scope="module")
def appearing():
    """A movie in which a disc is there for some frames, and what was expected."""
    expected = still_scene()
    expected[THERE.start : THERE.stop, DISC] *= 0.5
    return movie_of(expected), expected


@pytest.fixture(scope="module")
def still():
    """A movie in which nothing comes or goes."""
    return movie_of(still_scene())


def read_both(movie, frames, region=WHOLE, reference="camera", noise=NOISE):
    """Levels as they are, and those that keep their own side."""
    return [read_ladder(movie, frames, region, LADDER, reference, given) for given in (None, noise)]


@pytest.mark.parametrize("t", [10, 20, 27, 52, 60])
def test_what_came_or_went_at_another_time_is_in_no_long_level(appearing, t):
    movie, expected = appearing
    plain, own = read_both(movie, range(t, t + 1))
    truth = expected[t][CORE].mean()
    for half in (0, 1):
        off = [abs(pair[half][0, 2:, CORE].mean(axis=0) - truth) for pair in (plain, own)]
        noise = np.sqrt(DOSE / own[2 + half][0, 2:, CORE].sum(axis=0))
        assert off[0].max() > 0.3  # the longest levels hold the disc
        assert (off[1] < 4 * noise).all()


@pytest.mark.parametrize("t", [33, 46])
def test_next_to_its_beginning_and_end_it_is_not_mixed_with_what_was_there(appearing, t):
    movie, expected = appearing
    plain, own = read_both(movie, range(t, t + 1))
    truth = expected[40][CORE].mean()
    for half in (0, 1):
        assert abs(plain[half][0, 3, CORE].mean() - truth) > 0.5
        assert abs(own[half][0, 3, CORE].mean() - truth) < 0.15


def test_frames_are_counted_as_many_as_were_kept(appearing):
    movie, _ = appearing
    pair = read_ladder(movie, range(20, 21), WHOLE, LADDER, "camera", NOISE)
    is_even = split_around(N_FRAMES, 20)
    whole = level_frames(N_FRAMES, 20, LADDER[-1])
    for half, is_in in ((0, is_even), (1, ~is_even)):
        before = sum(is_in[f] for f in whole if f < 20)
        count = pair[2 + half][0, -1]
        assert count[SIDE // 2, SIDE // 2] == before
        assert count[4, 4] == sum(is_in[f] for f in whole)


def test_where_nothing_comes_or_goes_levels_stay_as_they_are(still):
    plain, own = read_both(still, range(20, 50, 5))
    for half in (0, 1):
        assert (plain[half] != own[half]).mean() < 0.01


def test_what_changes_little_by_little_stays_as_it_is():
    expected = still_scene()
    expected[:, DISC] *= np.linspace(0.5, 1.5, N_FRAMES)[:, None]
    plain, own = read_both(movie_of(expected), range(30, 40))
    for half in (0, 1):
        moved = abs(own[half][..., CORE] - plain[half][..., CORE]).mean(axis=(0, 2))
        assert moved.max() < 0.1 * DOSE  # which is what it changes by in the movie


def test_a_half_is_judged_by_its_own_frames(appearing):
    movie, expected = appearing
    t = 25
    other = np.random.default_rng(9).poisson(expected[:, ::-1]).astype("u1")
    counts = np.where(split_around(N_FRAMES, t)[:, None, None], movie.store.array[:], other)
    mixed = read_ladder(CorrectedMovie(store_of(counts)), range(t, t + 1), WHOLE, LADDER, "camera", NOISE)
    own = read_ladder(movie, range(t, t + 1), WHOLE, LADDER, "camera", NOISE)
    np.testing.assert_array_equal(mixed.even, own.even)
    assert (mixed.odd != own.odd).mean() > 0.9


@given(
    corner=st.tuples(st.integers(0, SIDE - 8), st.integers(0, SIDE - 8)),
    size=st.tuples(st.integers(8, SIDE), st.integers(8, SIDE)),
    frames=st.tuples(st.integers(0, len(NEAR) - 1), st.integers(1, 4)),
    reference=st.sampled_from(["camera", "stable"]),
    kind=st.sampled_from(["still", "drifting", "with references"]),
)
@settings(max_examples=30, deadline=None)
def test_any_region_of_any_frames_has_the_bytes_that_it_has_in_the_whole(corner, size, frames, reference, kind):
    movie, whole = whole_ladders(kind, reference)
    rows, columns = (slice(at, min(at + n, SIDE)) for at, n in zip(corner, size, strict=True))
    chosen = range(frames[0], min(sum(frames), len(NEAR)))
    part = read_ladder(movie, NEAR[chosen.start : chosen.stop], (rows, columns), LADDER, reference, NOISE)
    for one, all_of_it in zip(part, whole, strict=True):
        np.testing.assert_array_equal(one, all_of_it[chosen.start : chosen.stop, :, rows, columns])


def whole_ladders(kind, reference, kept={}):  # noqa: B006
    """A movie with something that comes and goes, and the ladders of some frames; made once."""
    if (kind, reference) not in kept:
        expected, rng = still_scene(), np.random.default_rng(2)
        expected[THERE.start : THERE.stop, DISC] *= 0.5
        drift = np.cumsum(rng.normal(0.05, 0.4, (N_FRAMES, 2)), axis=0) if kind == "drifting" else None
        references = references_for((SIDE, SIDE), rng) if kind == "with references" else None
        movie = movie_of(expected, drift, references)
        plain, own = read_both(movie, NEAR, WHOLE, reference)
        assert (plain.even != own.even).mean() > 0.005  # there is something to compare
        kept[kind, reference] = movie, own
    return kept[kind, reference]


@pytest.mark.parametrize("drifts", [False, True])
@pytest.mark.parametrize("referenced", [False, True])
def test_sides_are_what_a_plain_loop_gives(drifts, referenced):
    rng = np.random.default_rng(3)
    drift = np.cumsum(rng.normal(0.3, 0.6, (20, 2)), axis=0) if drifts else None
    counts, windows = rng.poisson(4.0, (20, 24, 24)).astype("u2"), (NEAREST, 5, 33)
    references = references_for((24, 24), rng) if referenced else None
    movie = CorrectedMovie(store_of(counts, references, drift))
    frames, canvas = range(9, 12), (range(8, 18), range(4, 15))
    shifts = np.zeros((20, 2), int) if drift is None else np.round(drift).astype(int)
    images, valid = movie.read(slice(None), slice(None), slice(None))
    moved, seen = (
        np.stack([np.roll(one, -shift, (0, 1))[8:18, 4:15] for one, shift in zip(part, shifts, strict=True)])
        for part in (images, np.broadcast_to(valid, images.shape))
    )
    for half, keep in zip(read_sides(movie, frames, canvas, windows, sided=2), (True, False), strict=True):
        for row, t in enumerate(frames):
            is_whole = half.is_whole(row)
            assert 0.3 < is_whole.mean() <= 1
            for side, (window, is_after) in enumerate((w, after) for w in windows[1:] for after in (False, True)):
                chosen = [
                    f
                    for f in level_frames(20, t, window)
                    if f != t and (f > t) == is_after and split_around(20, t)[f] == keep
                ]
                assert half.of_sides[row, side] == len(chosen)
                assert seen[chosen][:, is_whole].all()
                average = np.where(is_whole, moved[chosen].mean(axis=0), 0)
                expected = [[average[y : y + 4, x : x + 4].sum() for x in (0, 4, 8)] for y in (0, 4, 8)]
                np.testing.assert_allclose(half.sides[row, side], expected, rtol=1e-5)


def inputs_of(movie):
    """A movie as a network of a ladder sees it."""
    return Inputs(movie, 5, ladder=LADDER)


def test_noise_is_that_of_the_electrons(still):
    noise = measure_changes(inputs_of(still))
    assert noise.deviation == pytest.approx(NOISE.deviation, rel=0.05)
    assert noise.mean == pytest.approx(DOSE, rel=0.05)


def test_what_comes_and_goes_in_one_place_is_no_reason_to_leave_a_movie_alone(appearing):
    assert measure_changes(inputs_of(appearing[0])).deviation == pytest.approx(NOISE.deviation, rel=0.05)


def test_a_movie_in_which_everything_moves_is_left_alone():
    scene = (
        np.random.default_rng(1).uniform(0, 2 * DOSE, (SIDE // 8 + 10, SIDE // 8 + 10)).repeat(8, 0).repeat(8, 1)
    )
    moving = movie_of(np.stack([scene[t : t + SIDE, :SIDE] for t in range(N_FRAMES)]))
    assert measure_changes(inputs_of(moving)) is None


@pytest.mark.parametrize("n_frames", [2, 3, 5])
def test_the_shortest_movies_are_judged_too(n_frames):
    movie = movie_of(still_scene()[:n_frames])
    noise = measure_changes(inputs_of(movie))
    for pair in read_both(movie, range(n_frames), noise=noise or NOISE):
        assert np.isfinite(pair.even).all()


def test_a_network_of_one_window_has_nothing_to_judge(still):
    assert measure_changes(replace(inputs_of(still), ladder=())) is None


@pytest.mark.parametrize("drifts", [False, True])
def test_sides_take_little_memory_beside_the_frames_and_levels(drifts):
    rng, side = np.random.default_rng(0), 256
    drift = np.cumsum(rng.normal(0.5, 0.5, (70, 2)), axis=0) if drifts else None
    counts = rng.poisson(1, (70, side, side)).astype("u1")
    counts[35:, 100:130, 100:130] *= 3
    movie = CorrectedMovie(store_of(counts, None, drift, (4, 64, 64)))
    noise = Noise(0.25, 1.0)
    peaks = [peak_bytes(read_ladder, movie, range(40, 41), WHOLE, LADDER, "camera", one) for one in (None, noise)]
    assert peaks[1] < peaks[0] + 48 * len(LADDER) * side**2
