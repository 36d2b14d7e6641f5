"""The same counts in the file of every camera: small writers for formats that nobody else writes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import imagecodecs
import mrcfile
import numpy as np
import tifffile
import zarr

Array = np.ndarray
PIXEL_SIZE = 1.25  # Å, in every file that can tell


def counts(seed: int = 0, shape: tuple[int, int, int] = (5, 12, 17)) -> Array:
    return np.random.default_rng(seed).poisson(3.0, shape).astype(np.uint16)


def write_mrc(path: Path, frames: Array) -> Path:
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(frames)
        mrc.set_image_stack()
        mrc.voxel_size = PIXEL_SIZE
    return path


def patch(path: Path, offset: int, raw: bytes) -> Path:
    """Overwrite a few bytes of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(raw)
    return path


def patch_mrc(path: Path, *, word: int, value: int | float, order: str = "<") -> Path:
    """Overwrite the header's 4-byte word of that number, counted from 1 as the standard does."""
    code = "f" if isinstance(value, float) else "i"
    return patch(path, 4 * (word - 1), struct.pack(order + code, value))


def write_tiff(path: Path, frames: Array, **settings: object) -> Path:
    tifffile.imwrite(path, frames, photometric="minisblack", **settings)
    return path


def write_imagej(path: Path, frames: Array) -> Path:
    metadata = {"unit": "nm", "finterval": 0.5, "axes": "TYX"}
    per_nm = 10 / PIXEL_SIZE
    return write_tiff(path, frames, imagej=True, resolution=(per_nm, per_nm), metadata=metadata)


def write_ome(path: Path, frames: Array) -> Path:
    size = {"PhysicalSizeX": PIXEL_SIZE / 10, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": PIXEL_SIZE / 10}
    size |= {"PhysicalSizeYUnit": "nm", "TimeIncrement": 500.0, "TimeIncrementUnit": "ms"}
    return write_tiff(path, frames, ome=True, compression="zstd", tile=(16, 16), metadata={"axes": "TYX", **size})


def encode_electrons(electrons: Array, shape: tuple[int, int], skip_bits: int = 7) -> bytes:
    """Code electrons ``(n, 4)`` of (y, x, quarter y, quarter x) as EER does: gaps, each with a place behind it."""
    longest = (1 << skip_bits) - 1
    y, x, quarter_y, quarter_x = electrons.T.astype(np.int64)
    places = np.append(y * shape[1] + x, shape[0] * shape[1])
    gaps = np.diff(places, prepend=-1) - 1
    last = np.cumsum(gaps // longest + 1) - 1  # a long gap takes several words
    words = np.full(last[-1] + 1, longest)
    words[last] = gaps % longest
    words[last[:-1]] |= ((quarter_x ^ 2) | (quarter_y ^ 2) << 2) << skip_bits
    sizes = np.full(len(words), skip_bits)
    sizes[last[:-1]] += 4
    numbers = np.arange(skip_bits + 4)
    bits = (words[:, None] >> numbers & 1).astype(np.uint8)[numbers < sizes[:, None]]
    return np.packbits(bits, bitorder="little").tobytes() + bytes(bits.size % 8 == 0)


def draw_electrons(n_frames: int, shape: tuple[int, int], seed: int = 0) -> list[Array]:
    """Draw sparse electrons, at most one in a pixel of a camera frame."""
    random = np.random.default_rng(seed)
    frames = []
    for _ in range(n_frames):
        y, x = np.nonzero(random.random(shape) < 0.05)
        frames.append(np.stack([y, x, *random.integers(0, 4, (2, y.size))], axis=1))
    return frames


def count_electrons(frames: list[Array], shape: tuple[int, int], superres: int) -> Array:
    """Count electrons on a grid of `superres` sub-pixels per pixel: ``(t, y, x)``."""
    total = np.zeros((len(frames), shape[0] * superres, shape[1] * superres), np.int64)
    for frame, (y, x, quarter_y, quarter_x) in zip(total, (electrons.T for electrons in frames), strict=True):
        np.add.at(frame, (y * superres + quarter_y * superres // 4, x * superres + quarter_x * superres // 4), 1)
    return total


def write_eer(path: Path, frames: list[Array], shape: tuple[int, int], version: int = 1) -> Path:
    """Write camera frames of electrons, with the metadata of a Falcon camera."""
    items = {
        "numberOfFrames": ("", len(frames)),
        "exposureTime": (' unit="s"', 2.0),
        "totalDose": (' unit="e/pixel"', 0.05 * len(frames)),
        "sensorPixelSize.width": (' unit="m"', PIXEL_SIZE * 1e-10),
        "commercialName": ("", "Falcon 4i"),
    }
    xml = "".join(f'<item name="{name}"{unit}>{value}</item>' for name, (unit, value) in items.items())
    raw = f"<metadata>{xml}</metadata>".encode()
    unique = {id(electrons): electrons for electrons in frames}
    strips = {key: encode_electrons(electrons, shape, 7 if version else 8) for key, electrons in unique.items()}
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for t, strip in enumerate(strips[id(electrons)] for electrons in frames):
            tags = [(65001, 7, len(raw), raw, True)] if t == 0 else []
            tif.write(
                iter([strip]),
                shape=shape,
                dtype=bool,
                compression="deflate",
                rowsperstrip=shape[0],
                photometric="minisblack",
                metadata=None,
                extratags=tags,
            )
    with tifffile.TiffFile(path, mode="r+") as tif:
        for page in tif.pages:
            page.aspage().tags[259].overwrite(65000 + version)
    return path


class DmWriter:
    """Tags of DigitalMicrograph, version 3 or 4, in either byte order of the values."""

    def __init__(self, version: int = 4, order: str = "<") -> None:
        self.version, self.order = version, order

    def word(self, value: int) -> bytes:
        return struct.pack(">I" if self.version == 3 else ">Q", value)

    def entry(self, kind: int, name: str, body: bytes) -> bytes:
        length = self.word(len(body)) if self.version == 4 else b""
        return struct.pack(">BH", kind, len(name)) + name.encode("latin-1") + length + body

    def group(self, name: str, *entries: bytes) -> bytes:
        return self.entry(20, name, b"\1\0" + self.word(len(entries)) + b"".join(entries))

    def value(self, name: str, info: list[int], data: bytes) -> bytes:
        header = b"%%%%" + self.word(len(info)) + b"".join(map(self.word, info))
        return self.entry(21, name, header + data)

    def number(self, name: str, value: float, code: int = 3) -> bytes:
        return self.value(name, [code], struct.pack(self.order + {3: "i", 6: "f", 7: "d"}[code], value))

    def text(self, name: str, text: str) -> bytes:
        raw = text.encode("utf-16-le" if self.order == "<" else "utf-16-be")
        return self.value(name, [20, 4, len(text)], raw)

    def array(self, name: str, array: Array, code: int) -> bytes:
        return self.value(
            name, [20, code, array.size], array.astype(array.dtype.newbyteorder(self.order)).tobytes()
        )

    def image(self, frames: Array, code: int, data_type: int) -> bytes:
        """One entry of the ImageList, calibrated, of a voltage."""
        sizes = [self.number("", size) for size in reversed(frames.shape)]
        steps = [(PIXEL_SIZE / 10, "nm"), (PIXEL_SIZE / 10, "nm"), (0.5, "s")][: frames.ndim]
        axes = [self.group("", self.number("Scale", step, 6), self.text("Units", unit)) for step, unit in steps]
        return self.group(
            "",
            self.group(
                "ImageData",
                self.group("Calibrations", self.group("Dimension", *axes)),
                self.array("Data", frames, code),
                self.number("DataType", data_type),
                self.group("Dimensions", *sizes),
            ),
            self.group("ImageTags", self.group("Microscope Info", self.number("Voltage", 3e5, 7))),
        )

    def write(self, path: Path, *roots: bytes) -> Path:
        body = b"\1\0" + self.word(len(roots)) + b"".join(roots)
        little = int(self.order == "<")
        path.write_bytes(struct.pack(">I", self.version) + self.word(len(body)) + struct.pack(">I", little) + body)
        return path


def write_dm(path: Path, frames: Array, version: int = 4, order: str = "<") -> Path:
    """Write frames behind a thumbnail, as GMS does."""
    writer = DmWriter(version, order)
    thumbnail = writer.image(np.zeros((4, 4), np.int32), 3, 23)
    images = writer.group("ImageList", thumbnail, writer.image(frames, 4, 10))
    return writer.write(path, images, writer.group("Thumbnails", writer.group("", writer.number("ImageIndex", 0))))


def write_ser(path: Path, frames: Array, version: int = 0x220) -> Path:
    n_frames, height, width = frames.shape
    word = "Q" if version >= 0x220 else "I"
    size = struct.calcsize(f"<4sH4I{word}I")
    elements, offsets = b"", []
    for frame in frames:
        offsets.append(size + len(elements))
        step = PIXEL_SIZE * 1e-10
        elements += struct.pack("<ddiddiHii", 0, step, 0, 0, step, 0, 2, width, height) + frame[::-1].tobytes()
    header = b"II\x97\x01", version, 0x4122, 0x4152, n_frames, n_frames, size + len(elements), 0
    table = struct.pack(f"<{n_frames}{word}", *offsets)
    path.write_bytes(struct.pack(f"<4sH4I{word}I", *header) + elements + table)
    return path


def write_velox(path: Path, frames: Array) -> Path:
    metadata = {
        "BinaryResult": {
            "PixelSize": {"width": str(PIXEL_SIZE * 1e-10), "height": str(PIXEL_SIZE * 1e-10)},
            "PixelUnitX": "m",
            "PixelUnitY": "m",
            "DetectorIndex": "0",
            "Detector": "BM-Ceta",
        },
        "Detectors": {"Detector-0": {"ExposureTime": "0.5"}},
        "Optics": {"AccelerationVoltage": "300000"},
    }
    raw = np.frombuffer(json.dumps(metadata).encode().ljust(1000, b"\0"), np.uint8)
    with h5py.File(path, "w") as hdf:
        group = hdf.create_group("Data/Image/26f6")
        stored = np.ascontiguousarray(np.moveaxis(frames, 0, 2))
        group.create_dataset("Data", data=stored, chunks=(*frames.shape[1:], 1), compression="gzip")
        group["Metadata"] = np.repeat(raw[:, None], frames.shape[0], axis=1)
    return path


def write_berkeley(path: Path, frames: Array) -> Path:
    with h5py.File(path, "w") as hdf:
        group = hdf.create_group("data/movie")
        group.attrs["emd_group_type"] = 1
        group["data"] = frames
        steps = [("time", "[s]", 0.5), ("y", "[n_m]", PIXEL_SIZE / 10), ("x", "[n_m]", PIXEL_SIZE / 10)]
        for number, ((name, unit, step), size) in enumerate(zip(steps, frames.shape, strict=True), 1):
            axis = group.create_dataset(f"dim{number}", data=step * np.arange(size))
            axis.attrs.update(name=np.bytes_(name), units=np.bytes_(unit))
    return path


def write_pngs(path: Path, frames: Array) -> Path:
    path.mkdir()
    for t, frame in enumerate(frames, 8):  # 8, 9, 10: natural order is not that of letters
        (path / f"frame_{t}.png").write_bytes(imagecodecs.png_encode(frame))
    return path


def write_zarr(path: Path, frames: Array, zarr_format: int = 3) -> Path:
    zarr.save_array(str(path), frames, zarr_format=zarr_format)
    return path


WRITERS: dict[str, Callable[[Path, Array], Path]] = {
    "movie.mrc": write_mrc,
    "movie.tif": write_tiff,
    "imagej.tif": write_imagej,
    "ome.tif": write_ome,
    "movie.dm3": lambda path, frames: write_dm(path, frames, version=3),
    "movie.dm4": write_dm,
    "movie.ser": write_ser,
    "velox.emd": write_velox,
    "berkeley.emd": write_berkeley,
    "pngs": write_pngs,
    "movie.zarr": write_zarr,
}
"""Writers of one movie, ``(t, y, x)`` uint16, by the name that the file gets."""
