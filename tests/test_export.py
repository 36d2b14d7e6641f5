"""Exports open in other programs and hold the store's pixels."""

import re
import subprocess
import tracemalloc

import mrcfile
import numpy as np
import PIL.Image
import pytest
import tifffile

from n2n_pipeline.config import ExportConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.export import export_store, stacks
from n2n_pipeline.export.selection import iter_blocks, plan_selection, stored_pixels
from n2n_pipeline.sources.movie import MovieInfo
from n2n_pipeline.store import open_store, write_movie

SHAPE = (11, 45, 38)


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(5).normal(20, 4, SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory, frames):
    """A denoised movie beside the counts that it was made of, 1.5 Å per pixel and 40 ms per frame."""
    folder = tmp_path_factory.mktemp("run")
    info = MovieInfo(SHAPE, frames.dtype, "mrc", pixel_size=1.5, frame_time=0.04)
    counts = np.random.default_rng(6).poisson(20, SHAPE).astype(np.uint16)
    write_movie(folder / "movie.zarr", counts, info)
    write_movie(folder / "denoised.zarr", frames, info, provenance={"kind": "denoised", "movie": "../movie.zarr"})
    return folder / "denoised.zarr"


def test_an_mrc_file_is_a_valid_stack_with_the_pixels_and_pixel_size_of_the_store(store, frames, tmp_path):
    file = export_store(store, tmp_path / "x.mrc")
    assert mrcfile.validate(file, print_file=None)
    with mrcfile.open(file) as mrc:
        np.testing.assert_array_equal(mrc.data, frames)
        assert mrc.is_image_stack()
        assert mrc.header.mode == 2
        assert mrc.voxel_size.x == pytest.approx(1.5)
        assert mrc.header.rms == pytest.approx(frames.std(), rel=1e-4)


def test_half_precision_mrc_is_mode_12(store, frames, tmp_path):
    with mrcfile.open(export_store(store, tmp_path / "x.mrcs", ExportConfig(half=True))) as mrc:
        assert mrc.header.mode == 12
        np.testing.assert_array_equal(mrc.data, frames.astype(np.float16))


def test_half_precision_is_refused_for_values_that_it_cannot_hold(tmp_path):
    write_movie(tmp_path / "big.zarr", np.full((1, 8, 8), 1e6, np.float32))
    with pytest.raises(InputError, match="above 65504"):
        export_store(tmp_path / "big.zarr", tmp_path / "x.mrc", ExportConfig(half=True))
    assert [path.name for path in tmp_path.iterdir()] == ["big.zarr"]


def test_frames_region_and_bin_choose_and_average_pixels(store, frames, tmp_path):
    config = ExportConfig(frames=(3, 9), region=(2, 45, 1, 36), bin=4)
    file = export_store(store, tmp_path / "x.mrc", config)
    expected = frames[3:9, 2:42, 1:33].reshape(6, 10, 4, 8, 4).mean(axis=(2, 4))
    with mrcfile.open(file) as mrc:
        np.testing.assert_allclose(mrc.data, expected, rtol=1e-6)
        assert mrc.voxel_size.x == pytest.approx(6.0)


def test_a_tiff_is_read_by_imagej_with_its_pixel_size_and_frame_time(store, frames, tmp_path):
    with tifffile.TiffFile(export_store(store, tmp_path / "x.tif")) as tif:
        np.testing.assert_array_equal(tif.asarray(), frames)
        assert tif.series[0].axes == "TYX"
        assert tif.imagej_metadata["unit"] == "nm"
        assert tif.imagej_metadata["finterval"] == pytest.approx(0.04)
        pixels, nanometres = tif.pages[0].tags["XResolution"].value
        assert nanometres / pixels == pytest.approx(0.15)


def test_counts_stay_counts_in_a_tiff(store, tmp_path):
    movie = store.with_name("movie.zarr")
    np.testing.assert_array_equal(
        tifffile.imread(export_store(movie, tmp_path / "x.tiff")), open_store(movie).read(slice(None))
    )


def test_a_tiff_too_large_for_imagej_is_an_ome_bigtiff(store, frames, tmp_path, monkeypatch):
    monkeypatch.setattr(stacks, "IMAGEJ_BYTES", frames.nbytes - 1)
    with tifffile.TiffFile(export_store(store, tmp_path / "x.tif")) as tif:
        np.testing.assert_array_equal(tif.asarray(), frames)
        assert tif.is_bigtiff
        assert 'PhysicalSizeX="1.5" PhysicalSizeXUnit="Å"' in tif.ome_metadata
        assert 'TimeIncrement="0.04" TimeIncrementUnit="s"' in tif.ome_metadata


def test_an_unknown_pixel_size_stays_unknown(tmp_path):
    write_movie(tmp_path / "x.zarr", np.ones((2, 8, 8), np.float32))
    with mrcfile.open(export_store(tmp_path / "x.zarr", tmp_path / "x.mrc")) as mrc:
        assert mrc.voxel_size.x == 0
    with tifffile.TiffFile(export_store(tmp_path / "x.zarr", tmp_path / "x.tif")) as tif:
        assert "unit" not in tif.imagej_metadata


def test_a_png_of_one_frame_is_that_frame_pixel_for_pixel(store, frames, tmp_path):
    file = export_store(store, tmp_path / "x.png", ExportConfig(frames=(4, 5), scale_bar=False))
    with PIL.Image.open(file) as image:
        assert image.size == (38, 45)
        grey = np.asarray(image).astype(float)
    assert (
        np.corrcoef(grey.ravel(), np.clip(frames[4], *np.percentile(frames[4], (0.5, 99.5))).ravel())[0, 1] > 0.999
    )


def test_a_scale_bar_is_drawn_unless_it_is_not_wanted(store, tmp_path):
    with_bar = export_store(store, tmp_path / "bar.png", ExportConfig(frames=(4, 5)))
    without = export_store(store, tmp_path / "none.png", ExportConfig(frames=(4, 5), scale_bar=False))
    assert with_bar.read_bytes() != without.read_bytes()


def test_a_png_of_several_frames_is_a_contact_sheet(store, tmp_path):
    with PIL.Image.open(export_store(store, tmp_path / "x.png")) as image:
        assert image.size[0] > 4 * 38
        assert image.size[1] > 3 * 45


def test_a_video_shows_raw_and_denoised_side_by_side(store, frames, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    file = export_store(store, tmp_path / "x.mp4", ExportConfig(fps=10))
    words = [ffmpeg, "-i", file, "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    decoded = subprocess.run(words, capture_output=True, check=True)
    times = 11  # the small movie is magnified
    height, width = 45 * times + 1, 2 * 38 * times + 4
    assert re.search(rf"Video: h264 .*yuv420p.*, {width}x{height},.* 10 fps", decoded.stderr.decode())
    shown = np.frombuffer(decoded.stdout, np.uint8).reshape(-1, height, width)
    assert len(shown) == 11
    right = shown[6, : 45 * times, -38 * times :].reshape(45, times, 38, times).mean(axis=(1, 3))
    inside = np.s_[8:-8, 2:-2]  # away from the title and the bar
    assert np.corrcoef(right[inside].ravel(), frames[6][inside].ravel())[0, 1] > 0.98


def test_a_store_is_read_a_buffer_at_a_time(store, frames):
    movie = open_store(store)
    selection = plan_selection(SHAPE, ExportConfig(bin=2))
    copy = np.full(selection.shape, np.nan)
    for t, y, values in iter_blocks(stored_pixels(movie), selection, buffer_bytes=20_000):
        assert values.nbytes * 4 <= 20_000
        copy[t : t + len(values), y : y + values.shape[1]] = values
    np.testing.assert_allclose(copy, frames[:, :44].reshape(11, 22, 2, 19, 2).mean(axis=(2, 4)), rtol=1e-6)


@pytest.mark.parametrize("name", ["x.mrc", "x.tif"])
def test_a_stack_is_written_in_less_memory_than_it_has_bytes(tmp_path, name):
    still = np.broadcast_to(np.float32(1), (64, 512, 512))  # 67 MB
    write_movie(tmp_path / "still.zarr", still)
    tracemalloc.start()
    export_store(tmp_path / "still.zarr", tmp_path / name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6


@pytest.mark.parametrize(
    ("name", "config", "line", "code"),
    [
        ("x.avi", ExportConfig(), "cannot export to '.avi'; use one of .mrc", ExitCode.USAGE),
        ("x.mrc", ExportConfig(frames=(4, 12)), "4:12 is not a part of frames 0:11", ExitCode.USAGE),
        ("x.mrc", ExportConfig(frames=(4, 4)), "4:4 is not a part of frames 0:11", ExitCode.USAGE),
        ("x.mrc", ExportConfig(region=(0, 9, 0, 39)), "0:9,0:39 is not a part of the 45x38", ExitCode.USAGE),
        ("x.mrc", ExportConfig(bin=40), "40 px is more than the 45x38 region has", ExitCode.USAGE),
        ("none/x.mrc", ExportConfig(), "there is no folder .*none", ExitCode.CANNOT_CREATE),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(store, tmp_path, name, config, line, code):
    with pytest.raises(InputError, match=line) as caught:
        export_store(store, tmp_path / name, config)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_leaves_the_old_file(store, tmp_path, monkeypatch):
    file = tmp_path / "x.mrc"
    file.write_text("old")
    monkeypatch.setattr(stacks, "_place", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        export_store(store, file)
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.mrc"]
