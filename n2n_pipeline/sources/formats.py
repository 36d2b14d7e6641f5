"""Which reader a file needs: told by its first bytes, and by its name only where those say nothing."""

from __future__ import annotations

import glob
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.sources.movie import MovieSource
from n2n_pipeline.sources.raw import InputFile

SUFFIXES = {
    "mrc": "mrc", "mrcs": "mrc", "tif": "tiff", "tiff": "tiff", "eer": "tiff", "dm3": "dm", "dm4": "dm",
    "emd": "emd", "h5": "emd", "hdf5": "emd", "ser": "ser", "png": "png",
}  # fmt: skip
"""Names that a folder of images is searched for, and the format of each."""

_OTHER_SUFFIXES = {"gain": "tiff", "map": "mrc", "st": "mrc", "emi": "ser"}
_MAGICS = (
    (208, b"MAP", "mrc"),
    (0, b"\x89HDF\r\n\x1a\n", "emd"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"II\x97\x01", "ser"),
    (0, b"JK\0\2", "ser"),
    (0, b"II", "tiff"),
    (0, b"MM", "tiff"),
    (0, b"\0\0\0\3", "dm"),
    (0, b"\0\0\0\4", "dm"),
)
"""Bytes and their place in a file that tell its format; the first that is found counts."""

_READERS = {
    "mrc": "MrcMovie", "emd": "EmdMovie", "png": "PngImage", "ser": "SerMovie", "tiff": "TiffMovie",
    "eer": "EerMovie", "dm": "DmMovie",
}  # fmt: skip
_HEAD_BYTES = 216
ZARR_METADATA = ("zarr.json", ".zarray", ".zgroup")

Reader = Callable[[Path, IngestConfig], MovieSource]


def open_file(path: Path, options: IngestConfig) -> MovieSource:
    """Open a movie that is one file.

    Raises
    ------
    InputError
        If there is no such file, or it holds no movie.
    """
    name = recognise(path)
    reader: Reader = getattr(import_module(f"n2n_pipeline.sources.{name}"), _READERS[name])
    return reader(path, options)


def recognise(path: Path) -> str:
    """Return the name of the module that reads a file; no library of another format is imported.

    Raises
    ------
    InputError
        If neither content nor name is known.
    """
    file = InputFile(path)
    try:
        head = file.read(0, _HEAD_BYTES)
        told = [name for start, magic, name in _MAGICS if head.startswith(magic, start)]
        if not told:
            return _by_name(path)
        return "eer" if told[0] == "tiff" and _holds_events(file) else told[0]
    finally:
        file.close()


def is_zarr(path: Path) -> bool:
    """Tell whether a folder is, or should be, a Zarr store."""
    return path.is_dir() and (path.suffix == ".zarr" or any((path / name).is_file() for name in ZARR_METADATA))


def has_pattern(path: Path) -> bool:
    """Tell whether a path that is no file or folder holds ``*``, ``?`` or ``[…]``."""
    return glob.has_magic(str(path)) and not path.exists()


def _by_name(path: Path) -> str:
    """Let the reader of the format that a name promises say what is wrong with the file."""
    suffix = path.suffix[1:].lower()
    name = SUFFIXES.get(suffix) or _OTHER_SUFFIXES.get(suffix)
    if name is None:
        raise InputError(path, f"no movie format known by these bytes (known are {', '.join(SUFFIXES)})")
    return name


def _holds_events(file: InputFile) -> bool:
    from n2n_pipeline.sources.tiff_pages import is_eer

    return is_eer(file)
