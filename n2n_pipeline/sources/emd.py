"""EMD movies, Velox's and Berkeley's, and plain HDF5: one dataset of images in an HDF5 file.

Velox keeps ``(y, x, t)`` under ``/Data/Image/…/Data`` with a JSON text per frame; Berkeley marks its groups with
``emd_group_type`` and names the axes beside ``data``, in any order. In other files axes are ``t y x``, and the
user names the dataset if there are several.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.sources.hdf5 import check_dataset, find_datasets, open_hdf5, read_attributes
from n2n_pipeline.sources.movie import Counts, MovieInfo
from n2n_pipeline.sources.raw import InputFile, RawFrames, check_range, check_real, explaining, to_native
from n2n_pipeline.sources.units import known, to_angstrom, to_seconds, warn_if_oblong

_VELOX_IMAGE = re.compile(r"Data/Image/[^/]+/Data")
_MAX_LISTED = 8
_MAX_JSON = 1 << 20  # bytes of Velox metadata


class EmdMovie:
    """An image or stack in an HDF5 file, read frame by frame.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    options : IngestConfig
        ``dataset`` says which, when there are several.

    Raises
    ------
    InputError
        If the file holds no movie or several, was not closed, or points to other files.
    """

    def __init__(self, path: Path, options: IngestConfig) -> None:
        self.path = path
        self._raw: RawFrames | None = None
        with explaining(path, "HDF5"):
            self._hdf = open_hdf5(path)
        try:
            with explaining(path, "HDF5"):
                self._open(options)
        except InputError:
            self.close()
            raise

    def read_frames(self, start: int, stop: int) -> Counts:
        """Read frames ``start`` to ``stop - 1`` as a fresh ``(t, y, x)`` array."""
        check_range(start, stop, self.info.shape[0])
        if self._raw:
            return self._raw.read(start, stop)
        with explaining(self.path, "HDF5"):
            where = [slice(None)] * self._dataset.ndim
            if self._dataset.ndim == 3:
                where[self._order[0]] = slice(start, stop)
            frames = self._dataset[tuple(where)].transpose(self._order)
            return to_native(np.ascontiguousarray(frames.reshape(stop - start, *self.info.shape[1:])))

    def close(self) -> None:
        """Let go of the file."""
        self._hdf.close()
        if self._raw:
            self._raw.file.close()

    def _open(self, options: IngestConfig) -> None:
        name, self._dataset = _choose_dataset(self.path, self._hdf, options.dataset)
        check_dataset(self.path, self._dataset)
        check_real(self.path, self._dataset.dtype)
        is_velox = bool(_VELOX_IMAGE.fullmatch(name))
        axes = [_read_axis(self.path, self._dataset.parent, number + 1) for number in range(self._dataset.ndim)]
        self._order = (2, 0, 1) if is_velox and len(axes) == 3 else _order_axes([axis.name for axis in axes])
        shape = _movie_shape(self.path, self._dataset.shape, self._order)
        facts = _velox_facts(self._dataset) if is_velox else _axis_facts([axes[i] for i in self._order])
        self.info = MovieInfo(shape, self._dataset.dtype.newbyteorder("="), "emd", **facts)
        if list(self._order) == sorted(self._order):
            self._raw = _locate_frames(self.path, self._dataset, shape)


def _choose_dataset(path: Path, hdf: h5py.File, wanted: str | None) -> tuple[str, h5py.Dataset]:
    """Return the dataset that the user named, or the only one that can be a movie."""
    datasets = find_datasets(path, hdf)
    if wanted is not None:
        name = wanted.strip("/")
        if name not in datasets:
            raise InputError(path, f"no dataset /{name}", f"there are {_list_names(datasets)}")
        return name, datasets[name]
    candidates = [name for name in datasets if _VELOX_IMAGE.fullmatch(name)]
    candidates = candidates or [name for name in datasets if _is_berkeley(datasets[name])]
    candidates = candidates or [name for name, dataset in datasets.items() if dataset.ndim >= 2]
    if not candidates:
        raise InputError(path, "no image data found")
    if len(candidates) > 1:
        todo = f"choose with --dataset: {_list_names(candidates)}"
        raise InputError(path, f"{len(candidates)} datasets", todo)
    return candidates[0], datasets[candidates[0]]


def _is_berkeley(dataset: h5py.Dataset) -> bool:
    group = dataset.parent
    return bool(dataset.name == f"{group.name}/data" and group.attrs.get("emd_group_type", 0) == 1)


def _list_names(names: Any) -> str:
    listed = [f"/{name}" for name in sorted(names)]
    return ", ".join(listed[:_MAX_LISTED]) + (", …" if len(listed) > _MAX_LISTED else "")


def _movie_shape(path: Path, stored: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, int, int]:
    if len(stored) not in (2, 3):
        raise InputError(path, f"{len(stored)}-D data {stored}; expected T,Y,X")
    shape = (1, *(stored[axis] for axis in order))[-3:]
    if shape[0] == 0:
        raise InputError(path, "no frames")
    if min(shape) < 1:
        raise InputError(path, f"bad shape {shape}")
    return shape[0], shape[1], shape[2]


def _locate_frames(path: Path, dataset: h5py.Dataset, shape: tuple[int, int, int]) -> RawFrames | None:
    """Find frames that lie in the file uncompressed, so that threads can read them side by side."""
    offset = dataset.id.get_offset() if dataset.chunks is None else None
    if offset is None:
        return None
    frame_bytes = shape[1] * shape[2] * dataset.dtype.itemsize
    file = InputFile(path)
    end = offset + shape[0] * frame_bytes
    if end > file.size:
        file.close()
        raise InputError(path, f"{dataset.name} is cut: it should end at byte {end}")
    return RawFrames(file, range(offset, end, frame_bytes), shape[1:], dataset.dtype)


def _velox_facts(dataset: h5py.Dataset) -> dict[str, Any]:
    """Read the first frame's JSON; Velox writes every number in it as text."""
    try:
        text = dataset.parent["Metadata"][:_MAX_JSON, 0].tobytes()
        tree = json.loads(text.partition(b"\0")[0])
    except (KeyError, ValueError, IndexError, RecursionError):
        return {}

    def find(*keys: str) -> Any:
        node = tree
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        return node

    detector = f"Detector-{find('BinaryResult', 'DetectorIndex')}"
    size = {
        axis: to_angstrom(
            _number(find("BinaryResult", "PixelSize", side)), str(find("BinaryResult", f"PixelUnit{axis}"))
        )
        for axis, side in (("X", "width"), ("Y", "height"))
    }
    return {
        "pixel_size": size["X"],
        "frame_time": known(_number(find("Detectors", detector, "ExposureTime"))),
        "voltage": known(_number(find("Optics", "AccelerationVoltage")), 1e-3),  # V
        "camera": find("BinaryResult", "Detector") or None,
        "software": f"Velox {find('Instrument', 'ControlSoftwareVersion') or ''}".strip(),
        "warnings": warn_if_oblong(size["X"], size["Y"]),
    }


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


class _Axis(NamedTuple):
    """One of Berkeley's ``dim1``, ``dim2``, …: its name, step and the step's unit."""

    name: str = ""
    step: float | None = None
    unit: str = ""


def _read_axis(path: Path, group: h5py.Group, number: int) -> _Axis:
    axis = group.get(f"dim{number}")
    if not isinstance(axis, h5py.Dataset) or axis.ndim != 1 or axis.size < 2 or axis.dtype.kind not in "iuf":
        return _Axis()
    first, second = axis[:2].astype(np.float64)
    name, unit = read_attributes(path, axis, ("name", "units"))
    return _Axis(name.strip().lower(), float(second - first), unit)


def _order_axes(names: list[str]) -> tuple[int, ...]:
    """Return which stored axis is t, y and x; as stored unless both y and x are named.

    Examples
    --------
    >>> _order_axes(["x", "y", "time"]), _order_axes(["", "", ""]), _order_axes(["y", "x"])
    ((2, 1, 0), (0, 1, 2), (0, 1))
    """
    axes = range(len(names))
    if names.count("x") == names.count("y") == 1:
        y, x = names.index("y"), names.index("x")
        return (*(axis for axis in axes if axis not in (y, x)), y, x)
    return tuple(axes)


def _axis_facts(axes: list[_Axis]) -> dict[str, Any]:
    """Turn the steps along t, y and x into frame time and pixel size."""
    *others, y, x = [_Axis(), _Axis(), *axes]
    x_size, y_size = to_angstrom(x.step, x.unit), to_angstrom(y.step, y.unit)
    return {
        "pixel_size": x_size,
        "frame_time": to_seconds(others[-1].step, others[-1].unit),
        "warnings": warn_if_oblong(x_size, y_size),
    }
