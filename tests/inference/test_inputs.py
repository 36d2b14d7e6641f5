import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from n2n_pipeline.averages import read_pairs
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.geometry import Range, Span, Tile, mirrored
from n2n_pipeline.inference.inputs import Inputs, keep_chunks
from n2n_pipeline.store import References, write_movie

SHAPE = (9, 40, 30)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("n2n_pipeline.layout.SMALL_SHARD_BYTES", 1)
        patch.setattr("n2n_pipeline.layout.CHUNK_PX", 16)
        frames = np.random.default_rng(0).poisson(100, SHAPE).astype(np.uint16)
        return write_movie(tmp_path_factory.mktemp("inputs") / "movie.zarr", frames)


@pytest.fixture(scope="module")
def montage(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("n2n_pipeline.layout.SMALL_SHARD_BYTES", 1)
        patch.setattr("n2n_pipeline.layout.CHUNK_PX", 16)
        counts = np.random.default_rng(1).poisson(100, (1, 70, 61)).astype(np.uint16)
        return write_movie(tmp_path_factory.mktemp("inputs") / "montage.zarr", counts)


@st.composite
def cuts(draw, size):
    start = draw(st.integers(0, size - 1))
    return slice(start, draw(st.integers(start + 1, size)))


@settings(deadline=None, max_examples=60)
@given(data=st.data(), budget=st.integers(0, 30_000), back=st.integers(0, 9))
def test_kept_chunks_are_the_array_whatever_the_budget(store, data, budget, back):
    kept = keep_chunks(store, budget, back).array
    expected = np.asarray(store.array[...])
    for _ in range(3):
        region = tuple(data.draw(cuts(size)) for size in SHAPE)
        np.testing.assert_array_equal(kept[region], expected[region])


@settings(deadline=None, max_examples=20)
@given(data=st.data(), budget=st.integers(0, 5000))
def test_kept_chunks_of_a_single_frame_are_the_frame(montage, data, budget):
    kept, expected = keep_chunks(montage, budget, 1).array, np.asarray(montage.array[...])
    for _ in range(3):
        region = (slice(0, 1), *(data.draw(cuts(size)) for size in montage.info.shape[1:]))
        np.testing.assert_array_equal(kept[region], expected[region])


def test_kept_chunks_stay_within_the_budget(store):
    kept = keep_chunks(store, 5000, 9)
    for row in range(40):
        kept.read(slice(0, 9), slice(row, row + 1), slice(0, 30))
        assert sum(chunk.nbytes for chunk in kept.array._chunks.values()) <= 5000


def test_chunks_that_reading_has_left_behind_are_let_go(store):
    kept = keep_chunks(store, 10**6, back_frames=2)
    per_chunk = store.array.chunks[0]
    for t in range(9):
        kept.read(slice(t, t + 1), slice(0, 40), slice(0, 30))
        held = {index[0] for index in kept.array._chunks}
        assert held == {k for k in range(t // per_chunk + 1) if (k + 1) * per_chunk > t - 2}


def test_a_tile_past_the_ends_reads_mirrored_halves(store):
    inputs = Inputs(CorrectedMovie(store), window=4)
    tile = Tile(Span(Range(32, 48), Range(32, 40)), Span(Range(-8, 32), Range(0, 30)))
    even, odd = inputs.read(range(2, 5), tile)
    pair = read_pairs(CorrectedMovie(store), range(2, 5), (slice(0, 40), slice(0, 30)), window=4)
    rows, columns = mirrored(Range(32, 48), 40), mirrored(Range(-8, 32), 30)
    for half, whole in ((even, pair.even), (odd, pair.odd)):
        np.testing.assert_array_equal(half.values, whole[:, rows][:, :, columns])
    assert (even.counts == 2).all()


def test_a_single_frame_that_needs_no_correction_is_read_as_it_is_stored(tmp_path):
    counts = np.random.default_rng(0).poisson(100, (1, 40, 30)).astype(np.uint16)
    tile = Tile(Span(Range(8, 48), Range(8, 40)), Span(Range(-8, 32), Range(0, 30)))
    expected = counts[:, mirrored(Range(8, 48), 40)][:, :, mirrored(Range(-8, 32), 30)]
    plain = CorrectedMovie(write_movie(tmp_path / "plain.zarr", counts))
    (half,) = Inputs(plain, window=8).read(range(1), tile)
    assert half.values.dtype == np.uint16
    np.testing.assert_array_equal(half.values, expected)
    assert (half.counts == 4).all()
    references = References(gain=np.full((40, 30), 0.5, np.float32))
    corrected = CorrectedMovie(write_movie(tmp_path / "corrected.zarr", counts, references=references))
    (half,) = Inputs(corrected, window=8).read(range(1), tile)
    np.testing.assert_allclose(half.values, 0.5 * expected)
