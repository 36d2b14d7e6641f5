"""Gatan DigitalMicrograph images and stacks (``.dm3``, ``.dm4``): the image that is no thumbnail.

Read here and not with ncempy, which takes a second to import, refuses Macintosh files and cannot say where a file
was cut.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.sources.dm_tags import TagArray, Tags, read_tags, read_text
from n2n_pipeline.sources.movie import Counts, MovieInfo
from n2n_pipeline.sources.raw import InputFile, RawFrames, check_range, check_real, explaining
from n2n_pipeline.sources.units import known, to_angstrom, to_seconds, warn_if_oblong

_DTYPES = {
    1: "i2", 2: "f4", 3: "c8", 5: "c8", 6: "u1", 7: "i4", 8: "V4", 9: "i1", 10: "u2", 11: "u4", 12: "f8",
    13: "c16", 14: "u1", 23: "V4", 39: "i8", 40: "u8",
}  # fmt: skip


class DmMovie:
    """A DM3 or DM4 file, read frame by frame.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    options : IngestConfig
        Nothing in it concerns this format.

    Raises
    ------
    InputError
        If the tag tree is cut, holds no image, or one that is not a movie of real counts.
    """

    def __init__(self, path: Path, options: IngestConfig) -> None:
        self.path = path
        self._file = InputFile(path)
        try:
            with explaining(path, "DigitalMicrograph"):
                self._open()
        except InputError:
            self.close()
            raise

    def read_frames(self, start: int, stop: int) -> Counts:
        """Read frames ``start`` to ``stop - 1`` as a fresh ``(t, y, x)`` array."""
        check_range(start, stop, self.info.shape[0])
        return self._frames.read(start, stop)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _open(self) -> None:
        tags = read_tags(self._file)
        image = _find_image(self.path, tags)
        data: TagArray = tags[f"{image}/ImageData/Data"]
        dtype = _pixel_type(self.path, tags, image)
        if not data.dtype.isnative:
            dtype = dtype.newbyteorder()
        shape = _movie_shape(self.path, tags, image)
        n_bytes = shape[0] * shape[1] * shape[2] * dtype.itemsize
        if n_bytes > data.n_bytes:
            raise InputError(self.path, f"tags promise {shape} pixels ({n_bytes} B), data has {data.n_bytes} B")
        offsets = range(data.offset, data.offset + n_bytes, n_bytes // shape[0])
        self._frames = RawFrames(self._file, offsets, shape[1:], dtype)
        facts = _read_facts(self._file, tags, image)
        self.info = MovieInfo(shape, dtype.newbyteorder("="), "dm", **facts)


def _find_image(path: Path, tags: Tags) -> str:
    """Return the path of the group of the largest image that is no thumbnail."""
    thumbnails = {
        f"ImageList/{value}"
        for key, value in tags.items()
        if key.startswith("Thumbnails/") and key.endswith("/ImageIndex")
    }
    images = {
        key.removesuffix("/ImageData/Data"): value.n_bytes
        for key, value in tags.items()
        if key.startswith("ImageList/") and key.endswith("/ImageData/Data") and isinstance(value, TagArray)
    }
    candidates = {image: n_bytes for image, n_bytes in images.items() if image not in thumbnails}
    if not candidates:
        raise InputError(path, "no image data found")
    return max(candidates, key=candidates.__getitem__)


def _pixel_type(path: Path, tags: Tags, image: str) -> np.dtype[Any]:
    code = tags.get(f"{image}/ImageData/DataType")
    if code not in _DTYPES:
        raise InputError(path, f"DigitalMicrograph data type {code} not supported")
    dtype = np.dtype(_DTYPES[code])
    if dtype.kind == "V":
        raise InputError(path, "4 samples per pixel; expected gray")
    check_real(path, dtype)
    return dtype


def _movie_shape(path: Path, tags: Tags, image: str) -> tuple[int, int, int]:
    """Return ``(t, y, x)``; refuse spectra and whatever has more axes."""
    sizes = [tags.get(f"{image}/ImageData/Dimensions/{axis}") for axis in range(5)]
    shape = tuple(int(size) for size in reversed(sizes) if size is not None)
    signal = str(tags.get(f"{image}/ImageTags/Meta Data/Format", ""))
    if "spectrum" in signal.lower():
        raise InputError(path, f"spectral data ({signal}); expected a movie of images")
    if len(shape) == 3 and min(shape) > 0:
        return shape[0], shape[1], shape[2]
    if len(shape) == 2 and min(shape) > 0:
        return 1, shape[0], shape[1]
    raise InputError(path, f"{len(shape)}-D data {shape}; expected T,Y,X")


def _read_facts(file: InputFile, tags: Tags, image: str) -> dict[str, Any]:
    """Return the fields of `MovieInfo` that the tags tell."""

    def calibration(axis: int) -> tuple[Any, str]:
        group = f"{image}/ImageData/Calibrations/Dimension/{axis}"
        return tags.get(f"{group}/Scale"), read_text(file, tags.get(f"{group}/Units"))

    def text(key: str) -> str | None:
        return read_text(file, tags.get(f"{image}/ImageTags/{key}")) or None

    x_size, y_size = to_angstrom(*calibration(0)), to_angstrom(*calibration(1))
    return {
        "pixel_size": x_size,
        "frame_time": to_seconds(*calibration(2)),
        "voltage": known(tags.get(f"{image}/ImageTags/Microscope Info/Voltage"), 1e-3),
        "camera": text("Acquisition/Device/Name"),
        "software": text("GMS Version/Created"),
        "warnings": warn_if_oblong(x_size, y_size),
    }
