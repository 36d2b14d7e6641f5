"""Frames reach training corrected, at their place, and in step with their counts."""

import numpy as np
import pytest
from PIL import Image

from n2n_pipeline.checkpoint import load_model
from n2n_pipeline.config import NetworkConfig, RunConfig, TrainConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.errors import InputError
from n2n_pipeline.store import References, Shifts, write_movie, write_shifts
from n2n_pipeline.training import train_model
from n2n_pipeline.training.stacks import MovieFrames, Region, pair_images, whole_region

TRAIN = TrainConfig(steps=3, batch=2, patch_px=16, validate_every=2)
CONFIG = RunConfig(network=NetworkConfig(width=3, depth=2), train=TRAIN, threads=1, device="cpu")


@pytest.fixture
def moving_point(tmp_path):
    """One bright pixel that moves by (1, -2) a frame, on a field of ones, with a defect that stays."""
    frames = np.ones((4, 20, 24), np.uint16)
    for t in range(4):
        frames[t, 8 + t, 14 - 2 * t] = 50
    frames[:, 3, 3] = 999
    defects = np.zeros((20, 24), bool)
    defects[3, 3] = True
    write_movie(tmp_path / "movie.zarr", frames, references=References(None, None, defects))
    shifts = np.array([[t, -2.0 * t] for t in range(4)])
    write_shifts(tmp_path / "movie.zarr", Shifts(shifts, np.ones(4)))
    from n2n_pipeline.store import open_store

    return MovieFrames(CorrectedMovie(open_store(tmp_path / "movie.zarr")))


def test_a_point_that_drifts_stays_in_one_place_of_the_stack(moving_point):
    stack = moving_point.read_stack(whole_region(moving_point), 1)
    places = [np.unravel_index(frame.argmax(), frame.shape) for frame in stack.sums]
    assert len(set(places)) == 1
    assert (stack.sums.max(axis=(1, 2)) == 50).all()


def test_defects_and_what_drifted_out_of_sight_are_not_counted(moving_point):
    stack = moving_point.read_stack(whole_region(moving_point), 1)
    assert ((stack.counts == 0) == (stack.sums == 0)).all()
    assert (stack.counts[0] == 0).sum() > 1  # its own defect, and the border
    assert stack.sums.max() < 999


def test_a_region_is_the_same_pixels_as_in_the_whole(moving_point):
    whole = moving_point.read_stack(whole_region(moving_point), 1)
    part = moving_point.read_stack(Region(range(1, 3), range(5, 15), range(4, 20)), 1)
    np.testing.assert_array_equal(part.sums, whole.sums[1:3, 5:15, 4:20])
    np.testing.assert_array_equal(part.counts, whole.counts[1:3, 5:15, 4:20])


def test_groups_are_sums_of_their_frames(moving_point):
    single = moving_point.read_stack(whole_region(moving_point), 1)
    grouped = moving_point.read_stack(whole_region(moving_point), 2)
    np.testing.assert_array_equal(grouped.sums, single.sums.reshape(2, 2, 20, 24).sum(axis=1))
    np.testing.assert_array_equal(grouped.counts, single.counts.reshape(2, 2, 20, 24).sum(axis=1))


def test_frames_held_out_are_in_no_group_and_the_others_stay_in_their_place(moving_point):
    whole = moving_point.read_stack(whole_region(moving_point), 1)
    without = MovieFrames(moving_point._movie, held_out=[1])
    stack = without.read_stack(whole_region(without), 1)
    np.testing.assert_array_equal(stack.sums, whole.sums[[0, 2, 3]])
    np.testing.assert_array_equal(stack.counts, whole.counts[[0, 2, 3]])
    grouped = without.read_stack(Region(range(1, 3), *whole_region(without)[1:]), 2)
    np.testing.assert_array_equal(grouped.sums[0], whole.sums[2] + whole.sums[3])


def write_image(path, seed, shape=(40, 36)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).poisson(30, shape).astype(np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path):
    for half in (0, 1):
        for number in range(3):
            write_image(tmp_path / "set" / ("even", "odd")[half] / f"{number:02d}.png", 10 * half + number)
    return tmp_path / "set"


def test_images_are_paired_by_name_in_the_order_of_names(folders):
    pairs = pair_images(folders)
    assert len(pairs) == 3
    for number, pair in enumerate(pairs):
        stack = pair.read_stack(whole_region(pair), 1)
        for half in ("even", "odd"):
            image = np.asarray(Image.open(folders / half / f"{number:02d}.png"))
            np.testing.assert_array_equal(stack.sums[("even", "odd").index(half)], image)


def test_a_network_is_trained_on_folders_of_images(folders, tmp_path):
    train_model([folders], tmp_path / "model", CONFIG)
    card = load_model(tmp_path / "model").card
    assert card.window == 2
    assert card.mean == pytest.approx(30, rel=0.05)


def test_a_missing_partner_is_named(folders):
    (folders / "odd" / "01.png").unlink()
    with pytest.raises(InputError, match=r"even has 3 images, odd 2; missing in odd: 01\.png"):
        pair_images(folders)


def test_partners_of_other_names_are_refused(folders):
    (folders / "odd" / "01.png").rename(folders / "odd" / "x.png")
    with pytest.raises(InputError, match=r"no odd partner for even/01\.png"):
        pair_images(folders)


def test_partners_of_other_shapes_are_refused(folders):
    write_image(folders / "odd" / "01.png", 0, (40, 30))
    with pytest.raises(InputError, match=r"01\.png: even \(1, 40, 36\) uint8, odd \(1, 40, 30\) uint8"):
        pair_images(folders)


def test_pairs_of_images_and_movies_do_not_mix(folders, tmp_path):
    frames = np.random.default_rng(0).poisson(2, (8, 20, 20)).astype(np.uint8)
    write_movie(tmp_path / "movie.zarr", frames)
    with pytest.raises(InputError, match="pairs of images are windows of 2"):
        train_model([folders, tmp_path / "movie.zarr"], tmp_path / "model", CONFIG)
