from __future__ import annotations

import numpy as np
import pytest
from camera_files import PIXEL_SIZE, count_electrons, draw_electrons, write_eer

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.sources import open_movie

SHAPE = (24, 40)
CAMERA_FRAMES = draw_electrons(20, SHAPE)


@pytest.fixture
def path(tmp_path):
    return write_eer(tmp_path / "movie.eer", CAMERA_FRAMES, SHAPE)


def read(path, **options):
    source = open_movie(path, IngestConfig(**options))
    frames = source.read_frames(0, source.info.shape[0])
    source.close()
    return frames, source.info


@pytest.mark.parametrize("superres", [1, 2, 4])
@pytest.mark.parametrize("group", [1, 3, 5, 20])
def test_electrons_are_counted_exactly_on_every_grid_and_for_every_group(path, superres, group):
    frames, info = read(path, superres=superres, group=group)
    n_frames = 20 // group
    expected = count_electrons(CAMERA_FRAMES, SHAPE, superres)[: n_frames * group]
    assert np.array_equal(frames, expected.reshape(n_frames, group, *frames.shape[1:]).sum(axis=1))
    assert info.dtype == np.uint8
    assert info.pixel_size == pytest.approx(PIXEL_SIZE / superres)


@pytest.mark.parametrize("version", [0, 1])
def test_gaps_of_8_and_of_7_bits_are_read(tmp_path, version):
    path = write_eer(tmp_path / "m.eer", CAMERA_FRAMES, SHAPE, version)
    assert np.array_equal(read(path)[0], count_electrons(CAMERA_FRAMES, SHAPE, 1))


def test_a_frame_has_its_share_of_time_and_dose(path):
    info = read(path, group=5)[1]
    assert info.frame_time == pytest.approx(0.5)
    assert info.dose_per_frame == pytest.approx(5 * 0.05 / PIXEL_SIZE**2)
    assert info.camera == "Falcon 4i"


@pytest.mark.parametrize(("dose", "group"), [(0.05, 1), (0.26, 5), (1e-9, 1), (1.0, 20)])
def test_a_dose_per_frame_chooses_the_nearest_group(path, dose, group):
    assert read(path, dose_per_frame=dose)[1].shape[0] == 20 // group


def test_without_metadata_the_electrons_are_counted_to_choose_a_group(path):
    path.write_bytes(path.read_bytes().replace(b"totalDose", b"otherName"))
    per_camera_frame = count_electrons(CAMERA_FRAMES, SHAPE, 1).mean()
    assert read(path, dose_per_frame=5 * per_camera_frame)[1].shape[0] == 4


def test_defaults_are_said(path):
    assert read(path)[1].warnings[0].startswith("EER read at 1x, 1 of 20 camera frames summed")
    assert "by default" not in read(path, group=3)[1].warnings[0]


def test_camera_frames_that_fill_no_group_are_said(path):
    frames, info = read(path, group=3)
    assert len(frames) == 6
    assert info.warnings[1] == "2 camera frames at the end fill no group: left out"


def test_a_group_larger_than_255_frames_counts_in_16_bits(tmp_path):
    one = np.array([[1, 2, 0, 0]])
    frames, info = read(write_eer(tmp_path / "m.eer", [one] * 300, (4, 8)), group=300)
    assert info.dtype == np.uint16
    assert frames[0, 1, 2] == 300


def test_a_cut_file_keeps_its_whole_camera_frames_when_asked(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(InputError, match=r"frame \d+ cut; \d+ whole frames; --allow-truncated keeps"):
        open_movie(path)
    frames, info = read(path, allow_truncated=True)
    assert np.array_equal(frames, count_electrons(CAMERA_FRAMES, SHAPE, 1)[: len(frames)])
    assert info.shape[0] in range(5, 20)


def test_a_group_and_a_dose_contradict_each_other(path):
    with pytest.raises(InputError, match="give one of them"):
        open_movie(path, IngestConfig(group=2, dose_per_frame=1.0))


def test_a_group_longer_than_the_movie_is_refused(path):
    with pytest.raises(InputError, match="20 frames, a group needs 21"):
        open_movie(path, IngestConfig(group=21))
