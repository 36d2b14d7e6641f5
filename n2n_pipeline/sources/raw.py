"""Bytes of a movie's file: opened safely, checked against what its header claims, read from any thread.

A file handle has no position here: every read names its offset, so threads never disturb one another, and the
interpreter lock is free while the disk works.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import psutil

from n2n_pipeline import buffers
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.sources.movie import Counts

_DEVICE_ERRORS = {"EIO", "ENXIO", "ESTALE", "ETIMEDOUT", "EREMOTEIO"}  # by name: not every system has them all
_AHEAD = 1 << 26  # bytes that the system is asked to fetch before they are read
_LARGE = 1 << 16  # bytes of a read that is of pixels, not of a header
_SHARE_OF_MEMORY = 1 / 8  # a file larger than this is not kept there after it was read
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a FIFO must not block us


def format_bytes(n: float) -> str:
    """Write a number of bytes as people read it, in powers of 1000.

    Examples
    --------
    >>> format_bytes(512), format_bytes(4300), format_bytes(99_328), format_bytes(4e15)
    ('512 B', '4.3 KB', '99 KB', '4.0 PB')
    """
    size, unit = float(n), "B"
    for larger in ("KB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    digits = 1 if unit != "B" and size < 10 else 0
    return f"{size:.{digits}f} {unit}"


@cache
def _memory_bytes() -> int:
    """Return the machine's memory; a folder may hold 100 000 files to be opened."""
    return int(psutil.virtual_memory().total)


class InputFile:
    """A regular file that is read at given offsets.

    Parameters
    ----------
    path : pathlib.Path
        A regular file, or a link to one; devices, pipes and sockets are refused.

    Raises
    ------
    InputError
        If there is no such file, it is empty, not a regular file, or may not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, _OPEN_FLAGS)
        except FileNotFoundError:
            raise InputError(path, "no such file", code=ExitCode.NO_INPUT) from None
        except OSError as error:
            raise InputError(path, f"cannot be opened: {error.strerror}", code=ExitCode.NO_INPUT) from error
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        self._lock = threading.Lock()
        self._read_to = self._asked_to = 0
        self._is_huge = self.size > _SHARE_OF_MEMORY * _memory_bytes()
        problem = "not a regular file" if not stat.S_ISREG(status.st_mode) else "empty file"
        if problem == "not a regular file" or self.size == 0:
            self.close()
            raise InputError(path, problem)

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Read up to `n_bytes` bytes at `offset`; fewer only where the file ends."""
        buffer = bytearray(max(0, min(n_bytes, self.size - offset)))
        n_read = self._fill(memoryview(buffer), offset)
        return bytes(buffer[:n_read])

    def read_into(self, array: npt.NDArray[np.generic], offset: int) -> None:
        """Fill a C-contiguous `array` with the bytes at `offset`.

        Raises
        ------
        InputError
            If the file ends before the array is full.
        """
        target = array.reshape(-1).view(np.uint8).data
        n_read = self._fill(target, offset)
        if n_read < len(target):
            raise InputError(self.path, f"cut at byte {offset + n_read}: the file shrank while it was read")

    def close(self) -> None:
        """Let go of the file; closing twice is fine."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _fill(self, target: memoryview, offset: int) -> int:
        """Fill as much of `target` as the file has; one call moves at most 2 GiB on Linux."""
        if len(target) >= _LARGE:
            self._fetch_ahead(offset, offset + len(target))
        done = 0
        while done < len(target):
            try:
                moved = self._read_some(target[done:], offset + done)
            except OSError as error:
                raise InputError(self.path, f"cannot be read: {error.strerror}", code=ExitCode.IO) from error
            if moved == 0:
                break
            done += moved
        if self._is_huge and done >= _LARGE:
            self._advise(offset, done, "POSIX_FADV_DONTNEED")  # else it drives out what others will read again
        return done

    def _fetch_ahead(self, start: int, end: int) -> None:
        """Ask for what follows a read that followed another: the disk then works while earlier frames are coded.

        The system's own guess fails where several threads read in turns.
        """
        with self._lock:
            follows = self._read_to > 0 and abs(start - self._read_to) <= _AHEAD
            self._read_to = end
            first = max(self._asked_to, end)
            if not follows or first > end + _AHEAD // 2:
                return
            self._asked_to = end + _AHEAD
        self._advise(first, end + _AHEAD - first, "POSIX_FADV_WILLNEED")

    def _advise(self, start: int, n_bytes: int, what: str) -> None:
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):  # advice that is not taken does no harm
                os.posix_fadvise(self._descriptor, start, n_bytes, getattr(os, what))

    def _read_some(self, target: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [target], offset)
        with self._lock:  # Windows has no positioned read
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            chunk = os.read(self._descriptor, min(len(target), 1 << 24))
        target[: len(chunk)] = chunk
        return len(chunk)


class RawFrames(NamedTuple):
    """Uncompressed frames in a file."""

    file: InputFile
    offsets: Sequence[int]
    """Byte at which each frame starts; a `range` where they lie at equal distances."""
    shape: tuple[int, int]
    """Height and width, ``(y, x)``."""
    dtype: np.dtype[np.generic]
    """Type on disk, in the file's byte order."""

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def read(self, start: int, stop: int) -> Counts:
        """Read frames into a fresh ``(t, y, x)`` array in native byte order."""
        frames = buffers.frames.empty((stop - start, *self.shape), self.dtype)
        for frame, offset in zip(frames, self.offsets[start:stop], strict=True):
            self.file.read_into(frame, offset)
        return to_native(frames)


def to_native(array: Counts) -> Counts:
    """Swap bytes in place where the array's order is not the machine's."""
    if array.dtype.isnative:
        return array
    return array.byteswap(inplace=True).view(array.dtype.newbyteorder("="))


def check_real(path: Path, dtype: np.dtype[np.generic]) -> None:
    """Refuse a pixel type that is not a real number of at most 32 bits or a double.

    Raises
    ------
    InputError
        For complex, structured, object, text and 64-bit integer data.
    """
    if dtype.kind == "c" or (dtype.fields and {"r", "i"} == set(dtype.fields)):
        raise InputError(path, "complex data; expected real counts")
    if dtype.kind not in "buif" or (dtype.kind in "ui" and dtype.itemsize > 4) or dtype.itemsize > 8:
        raise InputError(path, f"dtype {dtype} not supported")


def check_range(start: int, stop: int, n_frames: int) -> None:
    """Refuse a range of frames that the movie does not have: a caller's mistake, not the user's."""
    if not 0 <= start <= stop <= n_frames:
        raise ValueError(f"frames {start}:{stop} asked of a movie of {n_frames}")


def accept_cut(path: Path, n_whole: int, n_promised: int, allow_truncated: bool, what: str | None = None) -> str:
    """Return the warning that goes with the whole frames of a cut file, or refuse it.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    n_whole, n_promised : int
        Frames that it holds whole, and that it should.
    allow_truncated : bool
        Whether the user takes what there is.
    what : str, optional
        What was found, in the format's own terms.

    Raises
    ------
    InputError
        If the user does not, or nothing is whole.
    """
    if allow_truncated and n_whole:
        return f"the file was cut: {n_whole} of {n_promised} frames kept"
    what = what or f"frame {n_whole + 1} of {n_promised} cut; {count_frames(n_whole, 'whole ')}"
    raise InputError(path, what, f"--allow-truncated keeps {n_whole}" if n_whole else "copy it again")


def count_frames(n: int, adjective: str = "") -> str:
    """Write a number of frames.

    Examples
    --------
    >>> count_frames(1), count_frames(2, "whole ")
    ('1 frame', '2 whole frames')
    """
    return f"{n} {adjective}frame{'' if n == 1 else 's'}"


@contextlib.contextmanager
def explaining(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a format's library raises on a damaged file into one line for the user.

    Raises
    ------
    InputError
        In place of any other error; with the code for I/O errors where the device failed, not the file.
    """
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(path, f"this {kind} file asks for more memory than there is") from error
    except Exception as error:
        number = getattr(error, "errno", None)
        code = ExitCode.IO if errno.errorcode.get(number or 0) in _DEVICE_ERRORS else ExitCode.BAD_DATA
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise InputError(path, f"damaged or not a readable {kind} file ({reason})", code=code) from error
