from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from n2n_pipeline.geometry import Range, Tiling, mirrored, plan_tiles, round_up

quickly = settings(deadline=None, max_examples=60)
SIZES = st.integers(1, 300)
TILINGS = st.builds(
    lambda stride, core, halo, share, border: Tiling(stride, core, halo, core * share // 100, border * stride),
    st.sampled_from([1, 2, 8, 32]),
    st.integers(1, 100),
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(0, 2),
)


@st.composite
def regions(draw, size):
    start = draw(st.integers(0, size - 1))
    return Range(start, draw(st.integers(start + 1, size)))


@quickly
@given(st.data(), SIZES, TILINGS)
def test_cores_cover_the_region_and_nothing_else(data, size, tiling):
    wanted = data.draw(regions(size))
    spans = plan_tiles((size, 1), tiling, (wanted, Range(0, 1))).rows
    assert spans[0].core.start == wanted.start
    assert spans[-1].core.stop == wanted.stop
    for left, right in pairwise(spans):
        assert right.core.start <= left.core.stop
        assert left.core.size > 0 < right.core.size


@quickly
@given(SIZES, TILINGS)
def test_neighbours_share_the_overlap(size, tiling):
    spans = plan_tiles((size, 1), tiling).rows
    for left, right in pairwise(spans):
        clipped = size - right.core.start if right is spans[-1] else tiling.overlap
        assert left.core.stop - right.core.start in (tiling.overlap, clipped)


@quickly
@given(st.data(), SIZES, TILINGS)
def test_reads_start_and_end_on_the_stride(data, size, tiling):
    wanted = data.draw(regions(size))
    for read, _ in plan_tiles((size, 1), tiling, (wanted, Range(0, 1))).rows:
        assert read.start % tiling.stride == 0
        assert read.stop % tiling.stride == 0
        assert read.size > 0


@quickly
@given(st.data(), SIZES, TILINGS)
def test_a_core_has_its_halo_except_at_the_ends_of_the_mirrored_image(data, size, tiling):
    wanted = data.draw(regions(size))
    first, last = -tiling.border, round_up(size + tiling.border, tiling.stride)
    for read, core in plan_tiles((size, 1), tiling, (wanted, Range(0, 1))).rows:
        assert read.start == first or core.start - read.start >= tiling.halo
        assert read.stop == last or read.stop - core.stop >= tiling.halo


@quickly
@given(SIZES, TILINGS)
def test_all_tiles_are_of_one_size_and_no_larger_than_asked(size, tiling):
    reads = [span.read for span in plan_tiles((size, 1), tiling).rows]
    assert len({read.size for read in reads}) == 1
    shared = round_up(2 * tiling.halo + tiling.overlap, tiling.stride)
    longest = max(round_up(tiling.core + 2 * tiling.halo, tiling.stride), shared + tiling.stride)
    assert reads[0].size <= longest


@pytest.mark.parametrize(
    ("size", "core", "halo", "n_tiles", "cost"),
    [
        (4096, 1024, 32, 4, 1.0625),  # the halo is paid between tiles only: 3 seams in 4096 px
        (4096, 4096, 128, 1, 1.0),  # one tile needs no halo at all
        (600, 512, 64, 1, 1.013),  # rather one tile of 608 px than two of 352
        (1536, 512, 64, 3, 1.188),  # three tiles of 608 px, evenly spread, not of 640 px
    ],
)
def test_tiles_are_few_and_waste_little(size, core, halo, n_tiles, cost):
    plan = plan_tiles((size, size), Tiling(32, core, halo))
    assert len(plan.rows) == n_tiles
    assert plan.cost == pytest.approx(cost**2, rel=0.01)


@quickly
@given(st.integers(1, 40), st.integers(-100, 100), st.integers(1, 100))
def test_mirroring_is_what_numpy_calls_reflect(size, start, length):
    before, after = max(-start, 0), max(start + length - size, 0)
    padded = np.pad(np.arange(size), (before, after), mode="reflect")
    expected = padded[start + before : start + before + length]
    assert mirrored(Range(start, start + length), size).tolist() == expected.tolist()


@quickly
@given(SIZES, SIZES, TILINGS)
def test_the_source_is_inside_the_image(height, width, tiling):
    plan = plan_tiles((height, width), tiling)
    for tile in (plan.tiles[0], plan.tiles[-1]):
        for part, whole, size in zip(tile.source(plan.shape), plan.source, plan.shape, strict=True):
            assert 0 <= whole.start <= part.start < part.stop <= whole.stop <= size


@pytest.mark.parametrize(
    ("tiling", "region", "message"),
    [
        (Tiling(8, 16, 8), (Range(0, 11), Range(0, 5)), "no part"),  # one row too many
        (Tiling(8, 16, 8), (Range(3, 3), Range(0, 5)), "no part"),  # empty
        (Tiling(8, 16, 8, overlap=9), None, "more than half"),
        (Tiling(8, 16, 8, border=4), None, "multiple of the stride"),
        (Tiling(8, 16, -1), None, "at least"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tiling, region, message):
    with pytest.raises(ValueError, match=message):
        plan_tiles((10, 10), tiling, region)
