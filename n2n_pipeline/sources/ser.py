"""FEI/Thermo Fisher TIA series (``.ser``), with the microscope's state from the ``.emi`` file beside it.

A header names a table of offsets; each image has its own calibration in front of its pixels. Rows are stored
from the bottom up.

References
----------
C. B. Boothroyd's description of the format, https://personal.ntu.edu.sg/cbb/info/TIAformat/.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.sources.movie import Counts, MovieInfo
from n2n_pipeline.sources.raw import InputFile, RawFrames, accept_cut, check_range, check_real, explaining
from n2n_pipeline.sources.units import known, to_angstrom, warn_if_oblong

_MAGIC = b"II\x97\x01"
_IMAGES = 0x4122
_DTYPES = {1: "u1", 2: "<u2", 3: "<u4", 4: "i1", 5: "<i2", 6: "<i4", 7: "<f4", 8: "<f8", 9: "<c8", 10: "<c16"}
_HEADER = struct.Struct(
    "<4sH4I"
)  # magic, version, kind of elements, kind of tags, elements in all, elements valid
_LONG_OFFSETS = 0x220  # from this version on
_ELEMENT = np.dtype(
    [
        ("x_origin", "<f8"), ("x_size", "<f8"), ("x_index", "<i4"),
        ("y_origin", "<f8"), ("y_size", "<f8"), ("y_index", "<i4"),
        ("dtype", "<u2"), ("width", "<i4"), ("height", "<i4"),
    ]
)  # fmt: skip
_MAX_EMI = 1 << 24  # bytes of an .emi file that are searched


class SerMovie:
    """A TIA series of images, read frame by frame.

    Parameters
    ----------
    path : pathlib.Path
        The ``.ser`` file, or an ``.emi`` file that has one beside it.
    options : IngestConfig
        ``allow_truncated`` keeps the whole frames of a cut file.

    Raises
    ------
    InputError
        If the file is cut, holds spectra, or images that differ.
    """

    def __init__(self, path: Path, options: IngestConfig) -> None:
        self.path = path
        self._file = InputFile(_find_series(path))
        try:
            with explaining(path, "TIA"):
                self._open(options)
        except InputError:
            self.close()
            raise

    def read_frames(self, start: int, stop: int) -> Counts:
        """Read frames ``start`` to ``stop - 1`` as a fresh ``(t, y, x)`` array."""
        check_range(start, stop, self.info.shape[0])
        return np.ascontiguousarray(self._frames.read(start, stop)[:, ::-1])

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _open(self, options: IngestConfig) -> None:
        offsets = _read_offsets(self._file)
        first = _read_element(self._file, offsets[0])
        height, width = int(first["height"]), int(first["width"])
        if min(height, width) < 1:
            raise InputError(self.path, f"bad shape {(len(offsets), height, width)}")
        dtype = _pixel_type(self.path, int(first["dtype"]))
        n_whole = _count_whole(self._file, offsets, first, height * width * dtype.itemsize)
        x_size, y_size = to_angstrom(first["x_size"], "m"), to_angstrom(first["y_size"], "m")
        warnings = warn_if_oblong(x_size, y_size)
        if n_whole < len(offsets):
            warnings += (accept_cut(self.path, n_whole, len(offsets), options.allow_truncated),)
        pixels = [offset + _ELEMENT.itemsize for offset in offsets[:n_whole]]
        self._frames = RawFrames(self._file, pixels, (height, width), dtype)
        self.info = MovieInfo(
            (n_whole, height, width),
            dtype.newbyteorder("="),
            "ser",
            pixel_size=x_size,
            warnings=warnings,
            **_read_emi(self._file.path),
        )


def _find_series(path: Path) -> Path:
    """Return the ``.ser`` file that belongs to an ``.emi`` file, or the path itself."""
    if path.suffix.lower() != ".emi":
        return path
    found = sorted(file for file in path.parent.glob("*.ser") if _emi_path(file) == path)
    if not found:
        what = f"holds no images itself, and there is no {path.stem}_1.ser beside it"
        raise InputError(path, what, code=ExitCode.NO_INPUT)
    if len(found) > 1:
        raise InputError(path, f"{len(found)} series beside it", f"name one of {', '.join(f.name for f in found)}")
    return found[0]


def _emi_path(series: Path) -> Path:
    """``scan_1.ser`` and ``scan_2.ser`` belong to ``scan.emi``."""
    return series.with_name(f"{series.stem.rpartition('_')[0]}.emi")


def _read_offsets(file: InputFile) -> list[int]:
    """Read where each valid image starts."""
    raw = file.read(0, _HEADER.size + 8)
    if len(raw) < _HEADER.size + 8:
        raise InputError(file.path, f"TIA header cut: {len(raw)} of {_HEADER.size + 8} bytes")
    magic, version, kind, _, _, n_valid = _HEADER.unpack_from(raw)
    if magic != _MAGIC:
        raise InputError(file.path, "not a TIA series")
    if kind != _IMAGES:
        raise InputError(file.path, "spectral data; expected a movie of images")
    if n_valid == 0:
        raise InputError(file.path, "no frames")
    word = 8 if version >= _LONG_OFFSETS else 4
    table = int.from_bytes(raw[_HEADER.size :][:word], "little")
    if table + n_valid * word > file.size:
        raise InputError(file.path, f"table of {n_valid} frames at byte {table} does not fit in file")
    offsets: list[int] = np.frombuffer(file.read(table, n_valid * word), f"<u{word}").tolist()
    return offsets


def _read_element(file: InputFile, offset: int) -> Any:
    """Read the calibration, type and size in front of an image."""
    raw = file.read(offset, _ELEMENT.itemsize)
    if len(raw) < _ELEMENT.itemsize:
        raise InputError(file.path, f"cut: a frame starts at byte {offset}, the file ends at {file.size}")
    return np.frombuffer(raw, _ELEMENT)[0]


def _pixel_type(path: Path, code: int) -> np.dtype[Any]:
    if code not in _DTYPES:
        raise InputError(path, f"TIA data type {code} not supported")
    dtype = np.dtype(_DTYPES[code])
    check_real(path, dtype)
    return dtype


def _count_whole(file: InputFile, offsets: list[int], first: Any, frame_bytes: int) -> int:
    """Count the leading frames that the file holds whole; refuse frames that differ from the first."""
    for t, offset in enumerate(offsets):
        if offset + _ELEMENT.itemsize + frame_bytes > file.size:
            return t
        element = _read_element(file, offset)
        if any(element[name] != first[name] for name in ("dtype", "height", "width")):
            size = f"{element['height']}x{element['width']}"
            raise InputError(file.path, f"frame {t} is {size}, frame 0 is {first['height']}x{first['width']}")
    return len(offsets)


def _read_emi(series: Path) -> dict[str, Any]:
    """Read voltage and camera from the XML inside the ``.emi`` file, if there is one."""
    try:
        file = InputFile(_emi_path(series))
    except InputError:
        return {}
    try:
        text = file.read(max(0, file.size - _MAX_EMI), _MAX_EMI)
    finally:
        file.close()
    voltage = re.search(rb"<AcceleratingVoltage>([0-9.eE+]{1,20})</", text)
    camera = re.search(rb"<CameraNamePath>([^<]{1,80})</", text)
    return {
        "voltage": _number(voltage[1]) if voltage else None,
        "camera": camera[1].decode("latin-1").strip() if camera else None,
        "software": "TIA",
    }


def _number(text: bytes) -> float | None:
    try:
        return known(float(text), 1e-3)  # V
    except ValueError:
        return None
