"""A gray PNG image as a movie of one frame."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np

from n2n_pipeline import buffers
from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.sources.movie import Counts, MovieInfo
from n2n_pipeline.sources.raw import InputFile, check_range, explaining, format_bytes

_HEADER = struct.Struct(">8x4x4sIIBB")  # chunk name, width, height, bits, colour
_SAMPLES = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_GRAY = 0
_MAX_RATIO = 1100  # deflate cannot do better than 1032


class PngImage:
    """A PNG file, decoded when it is read.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    options : IngestConfig
        Nothing in it concerns this format.

    Raises
    ------
    InputError
        If it is cut, coloured, or claims what it cannot hold.
    """

    def __init__(self, path: Path, options: IngestConfig) -> None:
        self.path = path
        self._file = InputFile(path)
        try:
            with explaining(path, "PNG"):
                self._open()
        except InputError:
            self.close()
            raise

    def read_frames(self, start: int, stop: int) -> Counts:
        """Read frames ``start`` to ``stop - 1``, of which there is one, as a fresh ``(t, y, x)`` array."""
        check_range(start, stop, 1)
        frames = buffers.frames.empty((stop - start, *self.info.shape[1:]), self.info.dtype)
        with explaining(self.path, "PNG"):
            raw = self._file.read(0, self._file.size)
            _check_sums(self.path, raw)
            for frame in frames:
                frame[...] = imagecodecs.png_decode(raw)
        frames //= self._brightest_per_count
        return frames

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _open(self) -> None:
        name, width, height, bits, colour = _HEADER.unpack(self._file.read(0, _HEADER.size).ljust(_HEADER.size))
        if name != b"IHDR" or colour not in _SAMPLES or bits not in (1, 2, 4, 8, 16):
            raise InputError(self.path, "not a PNG file, or one with a damaged header")
        if colour != _GRAY:
            raise InputError(self.path, f"{_SAMPLES[colour]} samples per pixel; expected gray")
        if min(width, height) < 1:
            raise InputError(self.path, f"bad shape {(height, width)}")
        claimed = width * height * bits // 8
        if claimed > _MAX_RATIO * self._file.size:
            size = format_bytes(self._file.size)
            raise InputError(self.path, f"claims {format_bytes(claimed)} in a {size} file")
        self._brightest_per_count = max(1, 255 // (2**bits - 1))  # the decoder stretches 1, 2 and 4 bits to 8
        self.info = MovieInfo((1, height, width), np.dtype(np.uint16 if bits == 16 else np.uint8), "images")


def _check_sums(path: Path, raw: bytes) -> None:
    """Hold each chunk against its checksum, which the decoder does not look at."""
    start = 8
    while start < len(raw):
        length, name = struct.unpack_from(">I4s", raw, start)
        end = start + 8 + length
        if raw[end : end + 4] != zlib.crc32(raw[start + 4 : end]).to_bytes(4, "big"):
            raise InputError(path, f"damaged in chunk {name.decode('latin-1')} at byte {start}")
        if name == b"IEND":
            return
        start = end + 4
    raise InputError(path, f"cut at byte {len(raw)}")
