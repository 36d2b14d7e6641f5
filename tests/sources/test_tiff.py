from __future__ import annotations

import numpy as np
import pytest
import tifffile
from camera_files import counts, write_imagej, write_tiff

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.sources import open_movie


def read(path, **options):
    source = open_movie(path, IngestConfig(**options))
    frames = source.read_frames(0, source.info.shape[0])
    source.close()
    return frames, source.info


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"byteorder": ">"},
        {"bigtiff": True},
        {"metadata": None},  # pages only, no description of the stack
        {"rowsperstrip": 5},
        {"tile": (16, 16)},  # hangs over both edges
        {"compression": "lzw"},
        {"compression": "lzw", "predictor": True, "byteorder": ">"},
        {"compression": "deflate", "rowsperstrip": 5},
        {"compression": "zstd", "tile": (16, 32)},
        {"compression": "packbits"},
        {"compression": "lerc"},
        {"compression": "png"},
    ],
    ids=str,
)
def test_every_codec_and_layout_gives_back_the_counts(tmp_path, settings):
    frames, info = read(write_tiff(tmp_path / "m.tif", counts(), **settings))
    assert np.array_equal(frames, counts())
    assert info.dtype == np.uint16


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_every_real_type_is_read(tmp_path, dtype, compression):
    frames, info = read(write_tiff(tmp_path / "m.tif", counts().astype(dtype), compression=compression))
    assert np.array_equal(frames, counts())
    assert info.dtype == np.dtype(dtype)


@pytest.mark.parametrize("compression", [None, "packbits", "deflate"])
def test_1_bit_counts_become_0_and_1(tmp_path, compression):
    electrons = counts() > 3
    frames, info = read(write_tiff(tmp_path / "m.tif", electrons, compression=compression))
    assert info.dtype == np.uint8
    assert np.array_equal(frames, electrons)


@pytest.mark.parametrize("settings", [{"truncate": True}, {"imagej": True, "truncate": True}], ids=str)
def test_a_stack_described_by_its_only_page_is_read_as_it_lies(tmp_path, settings):
    path = write_tiff(tmp_path / "m.tif", counts(), **settings)
    with tifffile.TiffFile(path) as tif:
        assert len(tif.pages) == 1
    assert np.array_equal(read(path)[0], counts())


def test_a_reduced_image_between_the_pages_is_no_frame(tmp_path):
    with tifffile.TiffWriter(tmp_path / "m.tif") as tif:
        for frame in counts():
            tif.write(frame, metadata=None)
            tif.write(frame[::2, ::2], subfiletype=1, metadata=None)
    assert np.array_equal(read(tmp_path / "m.tif")[0], counts())


@pytest.mark.parametrize(
    ("settings", "angstrom"),
    [
        ({"resolution": (1e8, 1e8), "resolutionunit": "CENTIMETER"}, 1.0),  # SerialEM
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),  # a printer's
        ({"resolution": (1e8, 1e8), "resolutionunit": "NONE"}, None),
    ],
)
def test_a_resolution_is_a_pixel_size_only_if_a_microscope_can_have_it(tmp_path, settings, angstrom):
    assert read(write_tiff(tmp_path / "m.tif", counts(), **settings))[1].pixel_size == angstrom


@pytest.mark.parametrize(
    "write", [write_tiff, write_imagej, lambda path, frames: write_tiff(path, frames, ome=True)]
)
def test_the_whole_pages_of_a_cut_file_are_kept_when_asked(tmp_path, write):
    path = write(tmp_path / "m.tif", counts())
    with tifffile.TiffFile(path) as tif:
        start = tif.pages[0].dataoffsets[0]
    path.write_bytes(path.read_bytes()[: start + 2 * 12 * 17 * 2 + 100])
    with pytest.raises(InputError, match=r"page \d (of \d )?cut"):
        open_movie(path)
    frames, info = read(path, allow_truncated=True)
    assert np.array_equal(frames, counts()[: len(frames)])
    assert "cut" in info.warnings[0]


def test_white_for_zero_is_said_and_not_applied(tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", counts(), photometric="miniswhite")
    frames, info = read(tmp_path / "m.tif")
    assert np.array_equal(frames, counts())
    assert "white for 0" in info.warnings[0]


def test_strips_that_were_never_written_are_0(tmp_path):
    path = write_tiff(tmp_path / "m.tif", counts(), compression="deflate")
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[2].tags["StripByteCounts"].overwrite((0,))
    expected = counts()
    expected[2] = 0
    assert np.array_equal(read(path)[0], expected)
