from __future__ import annotations

import h5py
import numpy as np
import pytest
from camera_files import PIXEL_SIZE, counts, write_berkeley, write_velox

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.sources import open_movie


def read(path, **options):
    source = open_movie(path, IngestConfig(**options))
    frames = source.read_frames(0, source.info.shape[0])
    source.close()
    return frames, source.info


def write(path, **datasets):
    with h5py.File(path, "w") as hdf:
        for name, data in datasets.items():
            hdf[name] = data
    return path


def test_velox_tells_of_microscope_and_camera(tmp_path):
    info = read(write_velox(tmp_path / "m.emd", counts()))[1]
    assert (info.voltage, info.camera, info.software) == (300.0, "BM-Ceta", "Velox")


def test_the_only_dataset_of_a_plain_file_is_the_movie(tmp_path):
    assert np.array_equal(read(write(tmp_path / "m.h5", anything=counts(), scale=np.arange(9)))[0], counts())


def test_of_several_datasets_the_user_names_one(tmp_path):
    path = write(tmp_path / "m.h5", **{"a/movie": counts(), "b": counts()[0]})
    with pytest.raises(InputError, match="2 datasets; choose with --dataset: /a/movie, /b"):
        open_movie(path)
    assert np.array_equal(read(path, dataset="/a/movie")[0], counts())
    with pytest.raises(InputError, match="no dataset /c; there are /a/movie, /b"):
        open_movie(path, IngestConfig(dataset="c"))


@pytest.mark.parametrize(
    "storage", [{}, {"chunks": (2, 5, 7)}, {"chunks": (1, 12, 17), "compression": "gzip"}], ids=str
)
@pytest.mark.parametrize("dtype", ["<u2", ">u2", ">f4"])
def test_every_storage_and_byte_order_is_read(tmp_path, storage, dtype):
    with h5py.File(tmp_path / "m.h5", "w") as hdf:
        hdf.create_dataset("movie", data=counts().astype(dtype), **storage)
    frames, info = read(tmp_path / "m.h5")
    assert np.array_equal(frames, counts())
    assert frames.dtype == info.dtype == np.dtype(dtype).newbyteorder("=")


def test_berkeley_axes_are_put_in_order_by_their_names(tmp_path):
    path = write_berkeley(tmp_path / "m.emd", counts())
    with h5py.File(path, "r+") as hdf:
        group = hdf["data/movie"]
        del group["data"]
        group["data"] = np.ascontiguousarray(counts().T)
        group.move("dim1", "time")
        group.move("dim3", "dim1")
        group.move("time", "dim3")
    frames, info = read(path)
    assert np.array_equal(frames, counts())
    assert info.frame_time == 0.5


def name_axes_at_length(path):
    """Write the names of the axes as RosettaSciIO does: text of variable length, in a heap of its own."""
    with h5py.File(path, "r+") as hdf:
        for number, name in enumerate("tyx", 1):
            hdf[f"data/movie/dim{number}"].attrs.update(name=name, units="s" if name == "t" else "nm")
    return path


def test_text_of_variable_length_is_read(tmp_path):
    info = read(name_axes_at_length(write_berkeley(tmp_path / "m.emd", counts())))[1]
    assert info.pixel_size == pytest.approx(PIXEL_SIZE)
    assert info.frame_time == 0.5


def test_a_heap_that_sends_the_library_into_a_loop_is_left_alone_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr("n2n_pipeline.sources.hdf5.MAX_SECONDS", 2.0)
    path = name_axes_at_length(write_berkeley(tmp_path / "m.emd", counts()))
    raw = bytearray(path.read_bytes())
    heap = raw.index(b"GCOL")
    raw[heap + 16 : heap + 32] = bytes(16)  # an object without number or size
    path.write_bytes(raw)
    with pytest.raises(InputError, match="the attributes of /data/movie/dim1 are damaged"):
        open_movie(path)


def write_secret(folder):
    secret = folder / "secret"
    secret.write_bytes(bytes(range(256)) * 10)
    return secret


def link_outside(path, secret):
    write(secret.with_suffix(".h5"), inner=counts())
    with h5py.File(path, "w") as hdf:
        hdf["movie"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/inner")


def store_outside(path, secret):
    with h5py.File(path, "w") as hdf:
        hdf.create_dataset("movie", (5, 4, 4), np.uint8, external=[(str(secret), 0, 80)])


def map_outside(path, secret):
    write(secret.with_suffix(".h5"), inner=counts())
    layout = h5py.VirtualLayout((5, 12, 17), np.uint16)
    layout[:] = h5py.VirtualSource(str(secret.with_suffix(".h5")), "inner", (5, 12, 17))
    with h5py.File(path, "w") as hdf:
        hdf.create_virtual_dataset("movie", layout)


@pytest.mark.parametrize("attack", [link_outside, store_outside, map_outside])
def test_no_other_file_is_handed_out_as_pixels(tmp_path, attack):
    attack(tmp_path / "m.h5", write_secret(tmp_path))
    with pytest.raises(InputError, match=r"(an)?other file") as caught:
        open_movie(tmp_path / "m.h5")
    assert caught.value.code == ExitCode.REFUSED


def test_soft_links_in_a_circle_are_not_followed(tmp_path):
    path = write(tmp_path / "m.h5", movie=counts())
    with h5py.File(path, "r+") as hdf:
        hdf["loop"] = h5py.SoftLink("/loop")
        hdf["up"] = h5py.SoftLink("/")
    assert np.array_equal(read(path)[0], counts())


def test_groups_that_hold_each_other_come_to_an_end(tmp_path):
    path = write(tmp_path / "m.h5", movie=counts())
    with h5py.File(path, "r+") as hdf:
        hdf["group/self"] = hdf["/"]
    with pytest.raises(InputError, match="nested deeper than 8"):
        open_movie(path)


def test_a_small_file_that_claims_terabytes_is_refused(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as hdf:
        hdf.create_dataset("movie", (1000, 100_000, 10_000), np.uint32, chunks=(1, 1000, 1000))
    with pytest.raises(InputError, match=r"/movie claims 4\.0 TB in a"):
        open_movie(tmp_path / "m.h5")


def test_a_compression_that_is_not_installed_is_named(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as hdf:
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((1, 12, 17))
        settings.set_filter(50_000, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((5, 12, 17))
        h5py.h5d.create(hdf.id, b"movie", h5py.h5t.NATIVE_UINT16, space, settings)
    with pytest.raises(InputError, match=r"compression 50000 .* needs hdf5plugin") as caught:
        open_movie(tmp_path / "m.h5")
    assert caught.value.code == ExitCode.UNAVAILABLE


def test_a_file_that_its_writer_left_open_is_named(tmp_path):
    path = tmp_path / "m.h5"
    with h5py.File(path, "w", libver="latest") as hdf:
        hdf["movie"] = counts()
    raw = bytearray(path.read_bytes())
    raw[11] |= 1  # the flag that writers clear when they close
    path.write_bytes(raw)
    with pytest.raises(InputError, match="not closed by its writer"):
        open_movie(path)
