from __future__ import annotations

import mrcfile
import numpy as np
import pytest
from camera_files import PIXEL_SIZE, counts, patch, patch_mrc, write_mrc

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.sources import open_movie, read_image

MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


def read(path, **options):
    source = open_movie(path, IngestConfig(**options))
    frames = source.read_frames(0, source.info.shape[0])
    source.close()
    return frames, source.info


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("mode", "dtype"), MODES.items())
def test_every_mode_is_read_in_either_byte_order(tmp_path, mode, dtype, order):
    written = (counts().astype(int) - (2 if dtype[0] != "u" else 0)).astype(order + dtype)
    frames, info = read(write_mrc(tmp_path / "m.mrc", written))
    assert info.dtype == np.dtype(dtype)
    assert np.array_equal(frames, written)


@pytest.mark.parametrize("width", [6, 7])  # an odd row has half a byte to spare
def test_4_bit_counts_have_the_left_pixel_in_the_low_half_of_a_byte(tmp_path, width):
    written = np.random.default_rng(0).integers(0, 16, (3, 4, width), np.uint8)
    padded = np.pad(written, ((0, 0), (0, 0), (0, width % 2)))
    path = write_mrc(tmp_path / "m.mrc", (padded[..., 0::2] | padded[..., 1::2] << 4).astype(np.int8))
    patch_mrc(patch_mrc(path, word=4, value=101), word=1, value=width)
    frames, info = read(path)
    assert info.dtype == np.uint8
    assert np.array_equal(frames, written)


def test_bytes_are_signed_as_the_standard_says(tmp_path):
    path = write_mrc(tmp_path / "m.mrc", np.array([[[-1, 100]]], np.int8))
    frames, info = read(path)
    assert frames.tolist() == [[[-1, 100]]]
    assert info.warnings == ("bytes read as signed, lowest -1: if they are 0..255, give --unsigned",)


def test_the_user_may_say_that_bytes_have_no_sign(tmp_path):
    frames, info = read(write_mrc(tmp_path / "m.mrc", np.array([[[-1, 100]]], np.int8)), unsigned=True)
    assert frames.tolist() == [[[255, 100]]]
    assert (info.dtype, info.warnings) == (np.uint8, ())


@pytest.mark.parametrize(("flags", "expected"), [(0, 255), (1, -1)])
def test_imod_says_with_a_flag_whether_bytes_have_a_sign(tmp_path, flags, expected):
    path = write_mrc(tmp_path / "m.mrc", np.full((1, 2, 2), -1, np.int8))
    patch_mrc(patch_mrc(path, word=39, value=1146047817), word=40, value=flags)
    frames, info = read(path)
    assert frames[0, 0, 0] == expected
    assert info.warnings == ()


def test_a_header_whose_maximum_is_200_says_that_bytes_have_no_sign(tmp_path):
    path = write_mrc(tmp_path / "m.mrc", np.full((1, 2, 2), -56, np.int8))
    frames, info = read(patch_mrc(patch_mrc(path, word=20, value=0.0), word=21, value=200.0))
    assert frames[0, 0, 0] == 200
    assert "against the standard" in info.warnings[0]


def test_the_stamp_of_motioncor2_is_only_worth_a_warning(tmp_path):
    frames, info = read(patch(write_mrc(tmp_path / "m.mrc", counts()), 211, b"\0"))
    assert np.array_equal(frames, counts())
    assert len(info.warnings) == 1
    assert "format stamp" in info.warnings[0]


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_unknown_machine_stamp_is_guessed_and_said(tmp_path, order):
    path = write_mrc(tmp_path / "m.mrc", counts().astype(order + "u2"))
    frames, info = read(patch(path, 212, b"\x12\x34\0\0"))
    assert np.array_equal(frames, counts())
    assert "12 34 00 00" in info.warnings[0]


def test_whole_frames_of_a_cut_file_are_kept_when_asked(tmp_path):
    path = write_mrc(tmp_path / "m.mrc", counts())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"promises 5 frames .* holds 4 whole frames .*--allow-truncated keeps 4"):
        open_movie(path)
    frames, info = read(path, allow_truncated=True)
    assert np.array_equal(frames, counts()[:4])
    assert info.warnings == ("the file was cut: 4 of 5 frames kept",)


def test_bytes_behind_the_data_are_counted(tmp_path):
    path = write_mrc(tmp_path / "m.mrc", counts())
    path.write_bytes(path.read_bytes() + bytes(77))
    assert read(path)[1].warnings == ("77 bytes more than header promises",)


@pytest.mark.parametrize("cell", [0.0, -5.0, float("nan"), float("inf")])
def test_a_senseless_cell_means_that_the_pixel_size_is_unknown(tmp_path, cell):
    info = read(patch_mrc(write_mrc(tmp_path / "m.mrc", counts()), word=11, value=cell))[1]
    assert info.pixel_size is None
    assert any("pixel size is unknown" in warning for warning in info.warnings)


def test_oblong_pixels_are_said(tmp_path):
    info = read(patch_mrc(write_mrc(tmp_path / "m.mrc", counts()), word=12, value=30.0))[1]
    assert info.pixel_size == pytest.approx(PIXEL_SIZE)
    assert info.warnings == ("pixels are 2.5 Å high and 1.25 Å wide; the width is taken for both",)


@pytest.mark.parametrize("kind", [b"FEI1", b"FEI2"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_thermo_fishers_extended_header_tells_of_microscope_and_camera(tmp_path, kind, order):
    dtype = mrcfile.dtypes.get_ext_header_dtype(kind, order)
    blocks = np.zeros(5, dtype)
    values = {"Metadata size": dtype.itemsize, "HT": 3e5, "Pixel size X": 0.9e-10, "Camera name": b"BM-Falcon"}
    for name, value in (values | {"Application": b"EPU", "Dose": 1.2e20, "Integration time": 0.04}).items():
        blocks[name] = value
    path = write_mrc(tmp_path / "m.mrc", counts())
    with mrcfile.open(path, "r+") as mrc:
        mrc.set_extended_header(blocks)
        mrc.header.exttyp = kind
    frames, info = read(path)
    assert np.array_equal(frames, counts())
    assert (info.camera, info.software, info.voltage) == ("BM-Falcon", "EPU", 300.0)
    assert info.pixel_size == pytest.approx(0.9)
    assert (info.dose_per_frame, info.frame_time) == (pytest.approx(1.2), 0.04)


def test_an_image_without_the_third_axis_is_one_frame(tmp_path):
    with mrcfile.new(tmp_path / "gain.mrc") as mrc:
        mrc.set_data(counts()[0])
    assert np.array_equal(read_image(tmp_path / "gain.mrc"), counts()[0])


def test_a_movie_is_not_a_reference_image(tmp_path):
    with pytest.raises(InputError, match="5 frames; expected one image"):
        read_image(write_mrc(tmp_path / "m.mrc", counts()))


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path):
    path = write_mrc(tmp_path / "m.mrc", counts())
    source = open_movie(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(InputError, match="shrank while it was read"):
        source.read_frames(0, 5)
    source.close()
