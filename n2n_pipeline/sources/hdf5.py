"""HDF5 files that are not trusted: which datasets they hold, without leaving the file or believing its sizes.

External links, external storage and virtual datasets would hand out any file of the machine as pixels, so they are
refused by name before a dataset is opened. Soft links are not followed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.sources.raw import InputFile, format_bytes

_MAX_DEPTH = 8
_MAX_NODES = 10_000
_MAX_RATIO = 10_000  # claimed over real bytes
_MAX_CHUNK_BYTES = 1 << 30
MAX_SECONDS = 8.0
"""How long attributes may take to be read, before a file is called damaged."""

_READ_TEXTS = """
import sys, json, h5py
_, path, node, *names = sys.argv
attributes = h5py.File(path, "r", locking=False)[node].attrs
print(json.dumps({name: attributes.get(name) for name in names}, default=str))
"""
_OPEN_FLAGS = 0b101  # of superblocks 2 and 3: open for writing, or for SWMR


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises
    ------
    InputError
        If its writer never closed it.
    """
    file = InputFile(path)
    head = file.read(0, 12)
    file.close()
    not_closed = InputError(path, "file was not closed by its writer", "try h5clear -s on a copy")
    if len(head) == 12 and head[8] >= 2 and head[11] & _OPEN_FLAGS:
        raise not_closed
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "truncated file" in str(error):
            raise InputError(path, "cut, or not closed by its writer (HDF5 says truncated)") from error
        raise


def find_datasets(path: Path, root: h5py.Group) -> dict[str, h5py.Dataset]:
    """Return every dataset of a file by its path, without a leading slash.

    Raises
    ------
    InputError
        If a link leads out of the file, or there are too many or too deep groups.
    """
    datasets: dict[str, h5py.Dataset] = {}
    groups = [("", root)]
    n_nodes = 0
    while groups:
        name, group = groups.pop()
        for key in group:
            n_nodes += 1
            where = f"{name}/{key}".lstrip("/")
            if n_nodes > _MAX_NODES or where.count("/") > _MAX_DEPTH:
                raise InputError(path, f"more than {_MAX_NODES} objects, or nested deeper than {_MAX_DEPTH}")
            link = group.get(key, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                what = f"/{where} links into another file ({link.filename})"
                raise InputError(path, what, "copy the data into the file", code=ExitCode.REFUSED)
            node = group[key] if isinstance(link, h5py.HardLink) else None
            if isinstance(node, h5py.Dataset):
                datasets[where] = node
            elif isinstance(node, h5py.Group):
                groups.append((where, node))
    return datasets


def check_dataset(path: Path, dataset: h5py.Dataset) -> None:
    """Refuse a dataset that lies outside its file, needs a missing codec, or claims more than the file can hold.

    Raises
    ------
    InputError
        With the code for refused input where another file would be read.
    """
    _check_filters(path, dataset)
    if dataset.external or dataset.is_virtual:
        what = f"{dataset.name} keeps its data in other files"
        raise InputError(path, what, "copy the data into the file", code=ExitCode.REFUSED)
    size = path.stat().st_size
    n_bytes = math.prod(dataset.shape) * dataset.dtype.itemsize
    if n_bytes > _MAX_RATIO * size:
        raise InputError(path, f"{dataset.name} claims {format_bytes(n_bytes)} in a {format_bytes(size)} file")
    chunk_bytes = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if dataset.chunks and chunk_bytes > _MAX_CHUNK_BYTES:
        raise InputError(path, f"{dataset.name} has chunks of {format_bytes(chunk_bytes)}")


def _check_filters(path: Path, dataset: h5py.Dataset) -> None:
    """Refuse compressions that HDF5 does not know, even with `hdf5plugin` if that is installed."""
    with contextlib.suppress(ImportError):
        import_module("hdf5plugin")
    settings = dataset.id.get_create_plist()
    for number in range(settings.get_nfilters()):
        code, *_, name = settings.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            what = f"compression {code} ({name.decode('latin-1')}) needs hdf5plugin"
            raise InputError(path, what, "pip install hdf5plugin", ExitCode.UNAVAILABLE)


def read_attributes(path: Path, node: h5py.Dataset, names: Sequence[str]) -> list[str]:
    """Read attributes that hold text; those that are missing are empty.

    Text of variable length lies in a heap whose damage can send the HDF5 library into an endless loop, so it is
    read by a process of its own, which can be stopped.

    Raises
    ------
    InputError
        If it had to be stopped, or died.
    """
    present = [name for name in names if name in node.attrs]
    if not any(_has_variable_length(node, name) for name in present):
        texts = {name: _decode(node.attrs[name]) for name in present}
    else:
        texts = _read_apart(path, node.name, present)
    return [texts.get(name, "") for name in names]


def _has_variable_length(node: h5py.Dataset, name: str) -> bool:
    string = h5py.check_string_dtype(node.attrs.get_id(name).dtype)
    return string is not None and string.length is None


def _decode(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = value.flat[0] if value.size else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _read_apart(path: Path, node: str, names: Sequence[str]) -> dict[str, str]:
    command = [sys.executable, "-c", _READ_TEXTS, os.fspath(path), node, *names]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=MAX_SECONDS)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        raise InputError(path, f"the attributes of {node} are damaged") from error
    texts: dict[str, str] = json.loads(done.stdout)
    return texts
