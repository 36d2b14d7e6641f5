from __future__ import annotations

import json

import numpy as np
import pytest
import zarr
from camera_files import PIXEL_SIZE, counts

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.sources import open_movie


def read(path, **options):
    source = open_movie(path, IngestConfig(**options))
    return source.read_frames(0, source.info.shape[0]), source.info


def write_ome(path, array, names, zarr_format):
    """Write an OME-Zarr image of version 0.4 (Zarr 2) or 0.5 (Zarr 3)."""
    units = {"t": "millisecond", "y": "nanometer", "x": "nanometer"}
    scale = [{"t": 500.0}.get(name, PIXEL_SIZE / 10) for name in names]
    axes = [{"name": name, **({"unit": units[name]} if name in units else {})} for name in names]
    datasets = [{"path": "full", "coordinateTransformations": [{"type": "scale", "scale": scale}]}]
    multiscales = [{"axes": axes, "datasets": datasets}]
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    group.create_array("full", data=array)
    attributes = {"multiscales": multiscales}
    group.attrs.update({"ome": {"version": "0.5", **attributes}} if zarr_format == 3 else attributes)
    return path


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("names", ["tyx", "tcyx", "tczyx"])
def test_the_full_size_level_of_an_ome_image_is_the_movie(tmp_path, zarr_format, names):
    array = counts().reshape(5, *[1] * (len(names) - 3), 12, 17)
    frames, info = read(write_ome(tmp_path / "m.zarr", array, names, zarr_format))
    assert np.array_equal(frames, counts())
    assert info.pixel_size == pytest.approx(PIXEL_SIZE)
    assert info.frame_time == pytest.approx(0.5)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_of_plain_arrays_0_or_the_only_one_is_the_movie(tmp_path, zarr_format):
    group = zarr.open_group(tmp_path / "m.zarr", mode="w", zarr_format=zarr_format)
    group.create_array("movie", data=counts())
    assert np.array_equal(read(tmp_path / "m.zarr")[0], counts())
    group.create_array("mask", data=counts()[0])
    with pytest.raises(InputError, match="2 arrays; choose with --dataset: mask, movie"):
        open_movie(tmp_path / "m.zarr")
    assert np.array_equal(read(tmp_path / "m.zarr", dataset="movie")[0], counts())
    group.create_array("0", data=counts(1))
    assert np.array_equal(read(tmp_path / "m.zarr")[0], counts(1))


def test_big_endian_and_sharded_arrays_are_read(tmp_path):
    array = zarr.create_array(
        tmp_path / "m.zarr", shape=(5, 12, 17), chunks=(1, 4, 17), shards=(2, 12, 17), dtype="u2"
    )
    array[:] = counts()
    assert np.array_equal(read(tmp_path / "m.zarr")[0], counts())
    zarr.save_array(str(tmp_path / "b.zarr"), counts().astype(">u2"), zarr_format=2)
    frames, info = read(tmp_path / "b.zarr")
    assert np.array_equal(frames, counts())
    assert info.dtype.isnative


def test_missing_chunks_are_counted(tmp_path):
    array = zarr.create_array(tmp_path / "m.zarr", shape=(5, 12, 17), chunks=(1, 12, 17), dtype="u2")
    array[:3] = counts()[:3]
    assert read(tmp_path / "m.zarr")[1].warnings[0] == "2 of 5 chunks are missing and read as 0"


@pytest.mark.parametrize("where", ["../outside", "/etc", "a/../../b", "", "a\\b", "x" * 200])
def test_metadata_cannot_lead_out_of_the_store(tmp_path, where):
    path = write_ome(tmp_path / "m.zarr", counts(), "tyx", 3)
    tree = json.loads((path / "zarr.json").read_text())
    tree["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = where
    (path / "zarr.json").write_text(json.dumps(tree))
    zarr.save_array(str(tmp_path / "outside"), counts())
    with pytest.raises(InputError, match="leads out of the store") as caught:
        open_movie(path)
    assert caught.value.code == ExitCode.REFUSED
