"""Every file that cannot be a movie ends in one line that says what was found, and the exit code of its kind."""

from __future__ import annotations

import os
import re
import socket
import struct

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from camera_files import (
    DmWriter,
    counts,
    draw_electrons,
    patch,
    patch_mrc,
    write_dm,
    write_eer,
    write_mrc,
    write_pngs,
    write_ser,
    write_tiff,
    write_velox,
)
from processes import Order, run

from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.sources import open_movie

FRAMES = counts(shape=(6, 64, 64)).astype(np.float32)  # 98304 B
SMALL = counts()


def cut(path, n_bytes):
    path.write_bytes(path.read_bytes()[:n_bytes])
    return path


def mrc(folder, **words):
    """An MRC movie whose header words are overwritten, as ``w4=99``."""
    path = write_mrc(folder / "x.mrc", FRAMES)
    for name, value in words.items():
        patch_mrc(path, word=int(name[1:]), value=value)
    return path


def text(path, words):
    path.write_text(words)
    return path


def hdf5(path, data, **settings):
    with h5py.File(path, "w") as hdf:
        hdf.create_dataset("data", data=data, **settings)
    return path


def tiff_tag(path, page, code, value):
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[page].tags[code].overwrite(value)
    return path


def pages(path, *images, **settings):
    with tifffile.TiffWriter(path) as tif:
        for image in images:
            tif.write(image, metadata=None, **settings)
    return path


def mutate(path, *changes):
    """Replace bytes wherever they occur."""
    raw = path.read_bytes()
    for old, new in changes:
        raw = raw.replace(old, new)
    path.write_bytes(raw)
    return path


def png_header(path, **fields):
    header = {"width": 17, "height": 12, "bits": 16, "colour": 0} | fields
    body = struct.pack(">IIBB", *header.values())
    path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + body + bytes(200))
    return path


def ser_word(path, offset, value):
    return patch(write_ser(path, SMALL), offset, struct.pack("<I", value))


def dm_image(path, frames, data_type, order=()):
    writer = DmWriter()
    return writer.write(path, writer.group("ImageList", writer.image(frames, 4, data_type)), *order)


def empty_group(path):
    zarr.open_group(path, mode="w")
    return path


def self_linked(path):
    """A TIFF file whose first page follows itself."""
    pages(path, SMALL[0])
    raw = bytearray(path.read_bytes())
    (n_tags,) = struct.unpack_from("<H", raw, 8)
    struct.pack_into("<I", raw, 10 + 12 * n_tags, 8)
    path.write_bytes(raw)
    return path


MISSING, DATA = ExitCode.NO_INPUT, ExitCode.BAD_DATA
CASES = {
    "missing": (lambda d: d / "x.mrc", "no such file", MISSING),
    "empty folder": (lambda d: d, r"no movie found \(looked for mrc, mrcs, tif, .*\)", MISSING),
    "pattern without match": (lambda d: d / "*.tif", "no movie found", MISSING),
    "0 bytes": (lambda d: text(d / "x.mrc", ""), "empty file", DATA),
    "unknown format": (lambda d: text(d / "x.doc", "a letter"), "no movie format known by these bytes", DATA),
    # MRC
    "header cut": (lambda d: cut(mrc(d), 512), "MRC header cut: 512 of 1024 bytes", DATA),
    "data cut": (
        lambda d: cut(mrc(d), 1024 + 47616),
        r"header promises 6 frames \(98304 B\), file holds 2 whole frames \(47616 B\); --allow-truncated keeps 2",
        DATA,
    ),
    "one frame cut": (lambda d: cut(mrc(d), 9000), "file holds 0 whole frames .*; copy it again", DATA),
    "lying size": (
        lambda d: mrc(d, w1=100_000, w2=100_000, w3=100_000),
        "header promises 4.0 PB, file is 99 KB",
        DATA,
    ),
    "negative size": (lambda d: mrc(d, w1=-64), r"bad shape \(6, 64, -64\)", DATA),
    "zero size": (lambda d: mrc(d, w2=0), r"bad shape \(6, 0, 64\)", DATA),
    "no frames": (lambda d: mrc(d, w3=0), "no frames", DATA),
    "unknown mode": (lambda d: mrc(d, w4=99), r"MRC mode 99 not supported \(0, 1, 2, 6, 12, 101\)", DATA),
    "complex mode": (lambda d: mrc(d, w4=4), "complex data; expected real counts", DATA),
    "text as .mrc": (lambda d: text(d / "x.mrc", "hello " * 400), r"not an MRC file \(no MAP stamp\)", DATA),
    "huge extended header": (
        lambda d: mrc(d, w24=2_000_000_000),
        "extended header of 2.0 GB does not fit in file",
        DATA,
    ),
    "negative extended header": (lambda d: mrc(d, w24=-8), "extended header of -8 B does not fit in file", DATA),
    # TIFF
    "TIFF of 6 bytes": (lambda d: text(d / "x.tif", "II*\0\0\0"), r"not a TIFF \(6 bytes\)", DATA),
    "text as .tif": (lambda d: text(d / "x.tif", "hello " * 40), r"not a TIFF \(240 bytes\)", DATA),
    "TIFF cut": (
        lambda d: cut(write_tiff(d / "x.tif", FRAMES), 272 + 2 * 16384 + 99),
        "page [23] of 6 cut",
        DATA,
    ),
    "TIFF data cut": (
        lambda d: tiff_tag(pages(d / "x.tif", *FRAMES[:3]), 1, "StripOffsets", (49200,)),
        r"page 2 of 3 cut: \d+ of 16384 bytes; --allow-truncated keeps 1",
        DATA,
    ),
    "lying TIFF": (
        lambda d: mutate(
            pages(d / "x.tif", SMALL[0][:1], compression="deflate"),
            (struct.pack("<HHII", 256, 4, 1, 17), struct.pack("<HHII", 256, 4, 1, 10**6)),
            (struct.pack("<HHII", 257, 4, 1, 1), struct.pack("<HHII", 257, 4, 1, 10**6)),
        ),
        r"claims 2\.0 TB in a \d+ B file",
        DATA,
    ),
    "lying tile": (
        lambda d: tiff_tag(
            tiff_tag(pages(d / "x.tif", SMALL[0], tile=(16, 16), compression="deflate"), 0, "TileWidth", 60_000),
            0,
            "TileLength",
            60_000,
        ),
        r"claims 7\.2 GB in a",
        DATA,
    ),
    "pages that differ": (
        lambda d: pages(d / "x.tif", FRAMES[0], FRAMES[0][:32, :32]),
        "page 2 is 32x32, page 1 is 64x64",
        DATA,
    ),
    "types that differ": (
        lambda d: pages(d / "x.tif", SMALL[0], SMALL[0].astype(np.uint8)),
        "page 2 is 12x17 uint8, page 1 is 12x17 uint16",
        DATA,
    ),
    "RGB TIFF": (
        lambda d: pages(d / "x.tif", np.zeros((8, 9, 3), np.uint8), photometric="rgb"),
        "3 samples per pixel; expected gray",
        DATA,
    ),
    "palette TIFF": (
        lambda d: pages(
            d / "x.tif", np.zeros((8, 9), np.uint8), photometric="palette", colormap=np.zeros((3, 256), np.uint16)
        ),
        "palette colours; expected gray",
        DATA,
    ),
    "complex TIFF": (lambda d: pages(d / "x.tif", np.zeros((8, 9), np.complex64)), "complex data", DATA),
    "unknown codec": (
        lambda d: tiff_tag(write_tiff(d / "x.tif", SMALL), 0, 259, 34925 + 20_000),
        "compression 54925 needs imagecodecs",
        ExitCode.UNAVAILABLE,
    ),
    "hyperstack": (
        lambda d: write_tiff(d / "x.tif", SMALL.reshape(5, 1, 12, 17).repeat(2, 1), imagej=True),
        r"4-D data \(5, 2, 12, 17\); expected T,Y,X",
        DATA,
    ),
    "circle of pages": (lambda d: self_linked(d / "x.tif"), "page 1 points back to an earlier page", DATA),
    # EER
    "EER version": (
        lambda d: tiff_tag(write_eer(d / "x.eer", draw_electrons(3, (8, 8)), (8, 8)), 0, 259, 65009),
        "EER version 9 not known",
        DATA,
    ),
    # DigitalMicrograph
    "DM without image": (
        lambda d: DmWriter().write(d / "x.dm4", DmWriter().number("alone", 1)),
        "no image data found",
        DATA,
    ),
    "DM cut": (lambda d: cut(write_dm(d / "x.dm4", SMALL), 1500), "tag tree cut at byte 1500", DATA),
    "complex DM": (lambda d: dm_image(d / "x.dm4", SMALL, 3), "complex data; expected real counts", DATA),
    "colour DM": (lambda d: dm_image(d / "x.dm4", SMALL, 23), "4 samples per pixel; expected gray", DATA),
    "text as .dm4": (lambda d: text(d / "x.dm4", "hello"), "not a DigitalMicrograph file", DATA),
    "spectrum DM": (lambda d: dm_image(d / "x.dm4", SMALL[0, 0], 10), r"1-D data \(17,\); expected T,Y,X", DATA),
    "lying DM": (
        lambda d: mutate(
            write_dm(d / "x.dm4", SMALL, order=">"),
            (DmWriter(order=">").number("", 17), DmWriter(order=">").number("", 1700)),
        ),
        r"tags promise \(5, 12, 1700\) pixels \(204000 B\), data has 2040 B",
        DATA,
    ),
    # TIA
    "TIA header cut": (lambda d: cut(write_ser(d / "x_1.ser", SMALL), 20), "TIA header cut", DATA),
    "TIA spectra": (lambda d: ser_word(d / "x_1.ser", 6, 0x4120), "spectral data", DATA),
    "TIA without frames": (lambda d: ser_word(d / "x_1.ser", 18, 0), "no frames", DATA),
    "TIA lying table": (lambda d: ser_word(d / "x_1.ser", 18, 10**9), "does not fit in file", DATA),
    "emi without series": (
        lambda d: patch(text(d / "x.emi", "JK    "), 2, b"\0\2"),
        r"there is no x_1\.ser beside it",
        MISSING,
    ),
    # HDF5
    "HDF5 without image": (lambda d: hdf5(d / "x.h5", np.arange(9)), "no image data found", DATA),
    "HDF5 4-D": (
        lambda d: hdf5(d / "x.emd", np.zeros((2, 3, 4, 5))),
        r"4-D data \(2, 3, 4, 5\); expected T,Y,X",
        DATA,
    ),
    "HDF5 complex": (lambda d: hdf5(d / "x.h5", np.zeros((2, 3, 4), complex)), "complex data", DATA),
    "HDF5 objects": (
        lambda d: hdf5(d / "x.h5", np.full((2, 3, 4), "a", object), dtype=h5py.string_dtype()),
        "dtype object not supported",
        DATA,
    ),
    "HDF5 uint64": (lambda d: hdf5(d / "x.h5", np.zeros((2, 3, 4), "u8")), "dtype uint64 not supported", DATA),
    "HDF5 without frames": (lambda d: hdf5(d / "x.h5", np.zeros((0, 3, 4))), "no frames", DATA),
    "HDF5 cut": (lambda d: cut(write_velox(d / "x.emd", SMALL), 4000), "cut, or not closed by its writer", DATA),
    "text as .emd": (lambda d: text(d / "x.emd", "hello"), "damaged or not a readable HDF5 file", DATA),
    # PNG
    "RGB PNG": (lambda d: png_header(d / "x.png", colour=2), "3 samples per pixel; expected gray", DATA),
    "lying PNG": (
        lambda d: png_header(d / "x.png", width=10**6, height=10**6),
        r"claims 2\.0 TB in a 226 B file",
        DATA,
    ),
    "PNG without pixels": (lambda d: png_header(d / "x.png", width=0), r"bad shape \(12, 0\)", DATA),
    "text as .png": (lambda d: text(d / "x.png", "hello"), "not a PNG file", DATA),
    # Zarr
    "Zarr without metadata": (
        lambda d: [(d / "x.zarr").mkdir(), d / "x.zarr"][1],
        r"no image array found \(no zarr\.json, no \.zarray\)",
        DATA,
    ),
    "Zarr without array": (lambda d: empty_group(d / "x.zarr"), "no image array found", DATA),
}


@pytest.mark.parametrize(("make", "line", "code"), CASES.values(), ids=CASES)
def test_what_cannot_be_a_movie_is_refused_in_one_line(tmp_path, make, line, code):
    (tmp_path / "here").mkdir()
    path = make(tmp_path / "here")
    before = sorted((tmp_path / "here").rglob("*"))
    end = run(Order(["ingest", path, tmp_path / "out.zarr"]), tmp_path)
    assert re.match(f"n2n-pipeline: error: {re.escape(str(path))}: .*{line}", end.errors)
    assert end.errors.count("\n") == 1
    assert (end.code, end.out) == (code, "")
    assert not (tmp_path / "out.zarr").exists()
    assert sorted((tmp_path / "here").rglob("*")) == before


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)  # a whole path may be longer than a socket address


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
@pytest.mark.parametrize("make", [make_fifo, make_socket, lambda path: path.symlink_to("/dev/zero")])
def test_only_regular_files_are_read_and_nothing_blocks(tmp_path, make, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x.mrc")
    with pytest.raises(InputError, match=r"not a regular file|cannot be opened"):
        open_movie(tmp_path / "x.mrc")


def test_a_name_that_would_move_the_cursor_is_escaped(tmp_path):
    path = text(tmp_path / "a\x1b[2Jb\nc.mrc", "")
    with pytest.raises(InputError, match=r"a\\x1b\[2Jb\\nc\.mrc: empty file"):
        open_movie(path)


def test_a_png_cut_in_its_pixels_is_refused_when_it_is_read(tmp_path):
    path = write_pngs(tmp_path / "f", SMALL[:1]) / "frame_8.png"
    cut(path, path.stat().st_size - 30)
    source = open_movie(path)
    with pytest.raises(InputError, match="damaged in chunk IDAT at byte"):
        source.read_frames(0, 1)
    source.close()
