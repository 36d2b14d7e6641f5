"""MRC movies (``.mrc``, ``.mrcs``): a 1024-byte header, an optional extended one, then frames back to back.

Modes 0, 1, 2, 6, 12 and 101 of the MRC2014 standard and IMOD, in either byte order. The header is checked against
the file's size before anything is allocated. ``mrcfile`` knows the layout of the headers; frames are read here,
since a memory map cannot hold 4-bit pixels and charges its pages to whoever reads a movie once.

References
----------
Cheng et al. (2015), J. Struct. Biol. 192, 146-150, and https://www.ccpem.ac.uk/mrc_format/mrc2014.php;
IMOD's additions: https://bio3d.colorado.edu/imod/doc/mrc_format.txt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mrcfile import dtypes as mrc_dtypes

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.sources.movie import Counts, MovieInfo
from n2n_pipeline.sources.raw import (
    InputFile,
    RawFrames,
    accept_cut,
    check_range,
    count_frames,
    explaining,
    format_bytes,
)
from n2n_pipeline.sources.units import known, warn_if_oblong

HEADER_BYTES = 1024
_DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2", 101: "u1"}
_COMPLEX_MODES = (3, 4)
_FOUR_BIT = 101
_BYTE_ORDERS = {b"\x44\x44": "<", b"\x44\x41": "<", b"\x11\x11": ">"}
_IMOD_STAMP = int.from_bytes(b"IMOD", "little")
_SIGNED_FLAG = 1
_ABSURD = 1000  # promised over real bytes: a damaged header rather than a cut file

_Header = Any
"""One record of ``mrcfile.dtypes.HEADER_DTYPE``, in the file's byte order."""


class _Layout(NamedTuple):
    """Where the frames lie in the file, and how many there are."""

    shape: tuple[int, int, int]
    offset: int
    row_bytes: int

    @property
    def frame_bytes(self) -> int:
        return self.row_bytes * self.shape[1]

    @property
    def offsets(self) -> range:
        return range(self.offset, self.end, self.frame_bytes)

    @property
    def end(self) -> int:
        return self.offset + self.frame_bytes * self.shape[0]


class MrcMovie:
    """An MRC file, read frame by frame.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    options : IngestConfig
        ``unsigned`` reads bytes as 0..255; ``allow_truncated`` keeps the whole frames of a cut file.

    Raises
    ------
    InputError
        If the header is cut, contradicts the file's size, or names a mode that is not real counts.
    """

    def __init__(self, path: Path, options: IngestConfig) -> None:
        self.path = path
        self._file = InputFile(path)
        try:
            with explaining(path, "MRC"):
                self._open(options)
        except InputError:
            self.close()
            raise

    def read_frames(self, start: int, stop: int) -> Counts:
        """Read frames ``start`` to ``stop - 1`` as a fresh ``(t, y, x)`` array."""
        check_range(start, stop, self.info.shape[0])
        frames = self._frames.read(start, stop)
        return _unpack_nibbles(frames, self.info.shape[2]) if self._four_bit else frames

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _open(self, options: IngestConfig) -> None:
        header, order, warnings = _read_header(self._file)
        promised = _plan(self.path, self._file.size, header)
        layout, doubts = _keep_whole_frames(self.path, self._file.size, promised, options.allow_truncated)
        warnings += doubts
        mode = int(header["mode"])
        dtype = np.dtype(order + _DTYPES[mode])
        columns = layout.row_bytes // dtype.itemsize
        frames = RawFrames(self._file, layout.offsets, (layout.shape[1], columns), dtype)
        if mode == 0:
            dtype, doubts = _byte_type(header, order, frames.read(0, 1), options.unsigned)
            warnings += doubts
        facts: dict[str, Any] = {"pixel_size": _pixel_size(header), "software": _first_label(header)}
        facts |= _extended_facts(self._file, header, layout.shape[0])
        warnings += warn_if_oblong(facts["pixel_size"], _pixel_size(header, "y"))
        self._four_bit = mode == _FOUR_BIT
        self._frames = frames._replace(dtype=dtype)
        self.info = MovieInfo(layout.shape, dtype.newbyteorder("="), "mrc", warnings=tuple(warnings), **facts)


def _read_header(file: InputFile) -> tuple[_Header, str, list[str]]:
    """Read the main header, its byte order (``<`` or ``>``) and what is odd about its stamps."""
    raw = file.read(0, HEADER_BYTES)
    warnings = []
    if raw[208:211] != b"MAP":
        raise InputError(file.path, "not an MRC file (no MAP stamp)")
    if len(raw) < HEADER_BYTES:
        raise InputError(file.path, f"MRC header cut: {len(raw)} of {HEADER_BYTES} bytes")
    if raw[211:212] != b" ":
        warnings.append(f"the format stamp is {raw[208:212]!r} where the standard has {b'MAP '!r}")
    order = _BYTE_ORDERS.get(raw[212:214])
    if order is None:
        order = _guess_order(raw)
        name = "little" if order == "<" else "big"
        warnings.append(f"the machine stamp {raw[212:216].hex(' ')} is unknown; read as {name}-endian by its mode")
    return np.frombuffer(raw, mrc_dtypes.HEADER_DTYPE.newbyteorder(order))[0], order, warnings


def _guess_order(raw: bytes) -> str:
    """Choose the byte order in which the mode is a small number."""
    return "<" if int.from_bytes(raw[12:16], "little") <= int.from_bytes(raw[12:16], "big") else ">"


def _plan(path: Path, file_size: int, header: _Header) -> _Layout:
    """Check mode and sizes, and find where the promised frames lie."""
    shape = int(header["nz"]), int(header["ny"]), int(header["nx"])
    mode, extended_bytes = int(header["mode"]), int(header["nsymbt"])
    if mode in _COMPLEX_MODES:
        raise InputError(path, "complex data; expected real counts")
    if mode not in _DTYPES:
        supported = ", ".join(map(str, _DTYPES))
        raise InputError(path, f"MRC mode {mode} not supported ({supported})")
    if shape[0] == 0:
        raise InputError(path, "no frames")
    if min(shape) < 1:
        raise InputError(path, f"bad shape {shape}")
    if extended_bytes < 0 or HEADER_BYTES + extended_bytes > file_size:
        size = format_bytes(extended_bytes) if extended_bytes > 0 else f"{extended_bytes} B"
        raise InputError(path, f"extended header of {size} does not fit in file")
    row_bytes = -(-shape[2] // 2) if mode == _FOUR_BIT else shape[2] * np.dtype(_DTYPES[mode]).itemsize
    return _Layout(shape, HEADER_BYTES + extended_bytes, row_bytes)


def _keep_whole_frames(
    path: Path, file_size: int, promised: _Layout, allow_truncated: bool
) -> tuple[_Layout, list[str]]:
    """Return the layout of the frames that the file holds whole, and what is odd about the file's size."""
    n_bytes, held = promised.end - promised.offset, file_size - promised.offset
    if held >= n_bytes:
        return promised, [f"{held - n_bytes} bytes more than header promises"] if held > n_bytes else []
    n_whole, n_promised = held // promised.frame_bytes, promised.shape[0]
    if n_whole == 0 and n_bytes > _ABSURD * file_size:
        raise InputError(path, f"header promises {format_bytes(n_bytes)}, file is {format_bytes(file_size)}")
    what = (
        f"header promises {count_frames(n_promised)} ({n_bytes} B), "
        f"file holds {count_frames(n_whole, 'whole ')} ({held} B)"
    )
    warning = accept_cut(path, n_whole, n_promised, allow_truncated, what)
    return promised._replace(shape=(n_whole, *promised.shape[1:])), [warning]


def _byte_type(header: _Header, order: str, frame: Counts, unsigned: bool) -> tuple[np.dtype[Any], list[str]]:
    """Decide whether the bytes of mode 0 have a sign: told, flagged by IMOD, or by the standard.

    The standard says signed; IMOD before 4.2.23 and several cameras wrote 0..255.
    """
    stamp, flags = np.frombuffer(header["extra2"].tobytes(), order + "i4")[10:12]  # bytes 152 and 156
    has_flags = stamp == _IMOD_STAMP
    if unsigned or (has_flags and not flags & _SIGNED_FLAG):
        return np.dtype("u1"), []
    if header["dmax"] > 127 and header["dmin"] >= 0:
        return np.dtype("u1"), [
            f"bytes read as 0..255, against the standard, since the header's maximum is {float(header['dmax']):g}"
        ]
    if has_flags or frame.min() >= 0:
        return np.dtype("i1"), []
    return np.dtype("i1"), [f"bytes read as signed, lowest {frame.min()}: if they are 0..255, give --unsigned"]


def _pixel_size(header: _Header, axis: str = "x") -> float | None:
    """Å per pixel, or None where the cell or the grid is 0, negative or not a number."""
    length, grid = float(header["cella"][axis]), int(header[f"m{axis}"])
    return known(length / grid if grid > 0 else None)


def _first_label(header: _Header) -> str | None:
    """Return who wrote the file: the first label without the date that follows it."""
    text = bytes(header["label"][0]).decode("latin-1").strip("\0 ")
    return text.partition("  ")[0] or None


def _extended_facts(file: InputFile, header: _Header, n_frames: int) -> dict[str, Any]:
    """Read what a Thermo Fisher extended header (FEI1, FEI2) tells; zeros there mean unknown."""
    kind, n_bytes = bytes(header["exttyp"]), int(header["nsymbt"])
    if kind not in (b"FEI1", b"FEI2") or n_bytes < 768:
        return {}
    raw = file.read(HEADER_BYTES, n_bytes)
    dtype = _fei_dtype(kind, raw)
    block_bytes = int(np.frombuffer(raw, dtype["Metadata size"], 1)[0])
    if not dtype.itemsize <= block_bytes <= n_bytes:
        return {}
    block = np.frombuffer(raw, dtype, 1)[0]
    facts: dict[str, Any] = {
        "pixel_size": known(block["Pixel size X"], 1e10),  # m
        "voltage": known(block["HT"], 1e-3),  # V
        "camera": _text(block["Camera name"]),
        "software": _text(block["Application"]),
    }
    if n_bytes // block_bytes == n_frames:  # one block per frame: its dose and time are the frame's
        facts["dose_per_frame"] = known(block["Dose"], 1e-20)  # e/m²
        facts["frame_time"] = known(block["Integration time"], 1.0)
    return {key: value for key, value in facts.items() if value is not None}


def _fei_dtype(kind: bytes, raw: bytes) -> np.dtype[Any]:
    """Lay out one metadata block in the byte order in which its size is a small number."""
    little = int.from_bytes(raw[:4], "little") <= int.from_bytes(raw[:4], "big")
    dtype: np.dtype[Any] = mrc_dtypes.get_ext_header_dtype(kind, "<" if little else ">")
    return dtype


def _text(value: Any) -> str | None:
    return bytes(value).partition(b"\0")[0].decode("latin-1").strip() or None


def _unpack_nibbles(packed: Counts, columns: int) -> Counts:
    """Turn ``(t, y, bytes)`` into ``(t, y, x)`` 4-bit counts; the low nibble is the left pixel."""
    pairs = packed.astype("<u2")  # one byte becomes two, side by side
    np.bitwise_or(pairs, pairs << 4, out=pairs)
    np.bitwise_and(pairs, 0x0F0F, out=pairs)
    return np.ascontiguousarray(pairs.view(np.uint8)[..., :columns])
