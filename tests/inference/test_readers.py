"""Stores opened by readers that others wrote: the right pixels at the right scale, at every level."""

import importlib

import numpy as np
import pytest
import zarr

from n2n_pipeline.checkpoint import save_model
from n2n_pipeline.config import DenoiseConfig
from n2n_pipeline.inference.denoise import denoise_store
from n2n_pipeline.sources.movie import MovieInfo
from n2n_pipeline.store import write_movie

PIXEL_SIZE = 1.5  # Å
FRAME_TIME = 0.25  # s


@pytest.fixture(scope="module", params=["movie", "denoised movie", "denoised montage"])
def store(request, tmp_path_factory, make_denoiser):
    """A store, and its levels as they lie on disk."""
    folder, is_montage = tmp_path_factory.mktemp("readers"), request.param == "denoised montage"
    shape = (1, 90, 140) if is_montage else (6, 40, 50)
    counts = np.random.default_rng(0).poisson(9, shape).astype(np.uint8)
    info = MovieInfo(shape, counts.dtype, "mrc", pixel_size=PIXEL_SIZE, frame_time=FRAME_TIME)
    path = write_movie(folder / "movie.zarr", counts, info).path
    if request.param != "movie":
        denoiser = make_denoiser()
        save_model(folder / "model", denoiser.network, denoiser.card)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("n2n_pipeline.pyramid.LARGE_PX", 40)  # a montage of 140 px gets two levels
            denoise_store(path, folder / "model", folder / "denoised.zarr", DenoiseConfig(augment="off"))
        path = folder / "denoised.zarr"
    group = zarr.open_group(path, mode="r")
    levels = [np.asarray(group[name]) for name in sorted(group.array_keys()) if name.isdigit()]
    assert len(levels) == (3 if is_montage else 1)
    return path, levels


def scales(levels):
    return [[FRAME_TIME, PIXEL_SIZE * 2**level, PIXEL_SIZE * 2**level] for level in range(len(levels))]


def shifts(levels):
    """Where the middle of each level's first pixel lies: a pixel of level 1 shows two by two of level 0."""
    return [[0.0, *2 * [PIXEL_SIZE * (2**level - 1) / 2]] for level in range(len(levels))]


def load(module):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        pytest.skip(f"{module} cannot be imported: {error}")


@pytest.mark.filterwarnings("ignore")  # theirs
def test_ome_zarr_py_reads_every_level_at_its_scale(store):
    path, levels = store
    location = load("ome_zarr.io").parse_url(path)
    (node,) = load("ome_zarr.reader").Reader(location)()
    for read, level in zip(node.data, levels, strict=True):
        np.testing.assert_array_equal(np.asarray(read), level)
    assert [axis["name"] for axis in node.metadata["axes"]] == ["t", "y", "x"]
    found = node.metadata["coordinateTransformations"]
    assert [one[0]["scale"] for one in found] == scales(levels)
    assert [one[1]["translation"] for one in found[1:]] == shifts(levels)[1:]


@pytest.mark.filterwarnings("ignore")
def test_ngff_zarr_reads_every_level_at_its_scale(store):
    path, levels = store
    read = load("ngff_zarr").from_ngff_zarr(str(path))
    assert len(read.images) == len(levels)
    for image, level, scale, shift in zip(read.images, levels, scales(levels), shifts(levels), strict=True):
        np.testing.assert_array_equal(np.asarray(image.data), level)
        assert [image.scale[axis] for axis in "tyx"] == scale
        assert [image.translation[axis] for axis in "tyx"] == shift
        assert image.axes_units == {"t": "second", "y": "angstrom", "x": "angstrom"}


@pytest.mark.filterwarnings("ignore")
def test_napari_ome_zarr_hands_napari_every_level_at_its_scale(store):
    path, levels = store
    read = load("napari_ome_zarr._reader").napari_get_reader(str(path))
    assert read is not None
    ((data, properties, kind),) = read(str(path))
    assert kind == "image"
    given = data if isinstance(data, list) else [data]
    for one, level in zip(given, levels, strict=True):
        np.testing.assert_array_equal(np.asarray(one), level)
    assert list(properties["scale"]) == scales(levels)[0]
