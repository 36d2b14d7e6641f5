import numpy as np
import pytest

from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.placing import REACH_PX, move, offset_of
from n2n_pipeline.store import Shifts, open_store, write_movie, write_shifts

ROWS, COLUMNS = np.arange(40.0)[:, None], np.arange(50.0)
INSIDE = (slice(REACH_PX, -REACH_PX), slice(REACH_PX, -REACH_PX))


def waves(dy=0.0, dx=0.0, cycles_per_px=0.1):
    phase = 2 * np.pi * cycles_per_px
    return (np.sin(phase * (ROWS - dy)) + np.cos(phase * (COLUMNS - dx))).astype(np.float32)


@pytest.mark.parametrize("by", [(0.5, -0.5), (0.25, 0.0), (-0.99, 0.7), (1.0, -1.0), (0.0, 0.01)])
@pytest.mark.parametrize(("cycles_per_px", "error"), [(0.05, 1e-5), (0.1, 5e-4), (0.25, 0.05)])
def test_a_smooth_scene_is_moved_by_a_part_of_a_pixel(by, cycles_per_px, error):
    moved = move(waves(cycles_per_px=cycles_per_px), np.array(by))
    np.testing.assert_allclose(moved[INSIDE], waves(*by, cycles_per_px)[INSIDE], atol=error)


def test_what_lies_beyond_a_few_pixels_does_not_count():
    image = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    by = np.array([0.4, -0.9])
    part = (slice(10, 30), slice(5, 45))
    np.testing.assert_allclose(move(image, by)[part][INSIDE], move(image[part], by)[INSIDE], atol=1e-6)


def test_an_even_image_stays_even_up_to_its_ends_and_one_that_is_not_moved_is_the_same():
    np.testing.assert_allclose(move(np.full((3, 5), 7, np.float32), np.array([0.3, 0.6])), 7, rtol=1e-6)
    image = waves()
    assert move(image, np.zeros(2)) is image


@pytest.fixture
def drifting(tmp_path):
    dy_dx = np.array([[0.0, 0.0], [0.4, 0.2], [0.8, -0.4], [1.6, 0.3]])
    store = write_movie(tmp_path / "movie.zarr", np.ones((4, 8, 8), np.uint8))
    write_shifts(store.path, Shifts(dy_dx, np.ones(4)))
    return CorrectedMovie(open_store(store.path))


def test_an_average_is_moved_from_where_its_frames_put_it_to_where_its_own_frame_lies(drifting):
    # Rounded off: (0, 0), (0.4, 0.2), (-0.2, -0.4), (-0.4, 0.3).
    np.testing.assert_allclose(offset_of(drifting, 1, [0, 1], "camera"), (0.2, 0.1))
    np.testing.assert_allclose(offset_of(drifting, 3, [1, 2], "camera"), (-0.5, 0.4))
    np.testing.assert_allclose(offset_of(drifting, 3, [1, 2], "stable"), (-0.1, 0.1))


def test_a_movie_that_was_never_aligned_is_not_moved(tmp_path):
    movie = CorrectedMovie(write_movie(tmp_path / "movie.zarr", np.ones((4, 8, 8), np.uint8)))
    assert not offset_of(movie, 1, [0, 1], "camera").any()
