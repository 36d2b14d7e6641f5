"""EMD movies, Velox's and Berkeley's, and plain HDF5: one dataset of images in an HDF5 file.

Velox keeps ``(y, x, t)`` under ``/Data/Image/…/Data`` with a JSON text per frame; Berkeley marks its groups with
``emd_group_type`` and keeps the axes beside ``data``. In any other file the user names the dataset if there are
several.
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
from n2n_pipeline.sources.files import InputFile, RawFrames, check_range, check_real, explaining, to_native
from n2n_pipeline.sources.hdf5 import check_dataset, find_datasets, open_hdf5, read_text
from n2n_pipeline.sources.movie import Counts, MovieInfo
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
            if self._dataset.ndim == 2:
                frames = self._dataset[...][None][start:stop]
            elif self._is_velox:
                frames = np.ascontiguousarray(np.moveaxis(self._dataset[:, :, start:stop], 2, 0))
            else:
                frames = self._dataset[start:stop]
            return to_native(frames.astype(self._dataset.dtype, copy=False))

    def close(self) -> None:
        """Let go of the file."""
        self._hdf.close()
        if self._raw:
            self._raw.file.close()

    def _open(self, options: IngestConfig) -> None:
        name, self._dataset = _choose_dataset(self.path, self._hdf, options.dataset)
        check_dataset(self.path, self._dataset)
        self._is_velox = bool(_VELOX_IMAGE.fullmatch(name))
        dtype = self._dataset.dtype
        check_real(self.path, dtype)
        shape = _movie_shape(self.path, self._dataset.shape, self._is_velox)
        facts = _velox_facts(self._dataset) if self._is_velox else _berkeley_facts(self._dataset)
        self.info = MovieInfo(shape, dtype.newbyteorder("="), "emd", **facts)
        if self._dataset.ndim == 2 or not self._is_velox:
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
    return dataset.name == f"{group.name}/data" and group.attrs.get("emd_group_type", 0) == 1


def _list_names(names: Any) -> str:
    listed = [f"/{name}" for name in sorted(names)]
    return ", ".join(listed[:_MAX_LISTED]) + (", …" if len(listed) > _MAX_LISTED else "")


def _movie_shape(path: Path, shape: tuple[int, ...], is_velox: bool) -> tuple[int, int, int]:
    if len(shape) == 2:
        shape = (1, *shape)
    elif len(shape) == 3 and is_velox:
        shape = (shape[2], shape[0], shape[1])
    if len(shape) != 3:
        raise InputError(path, f"{len(shape)}-D data {shape}; expected T,Y,X")
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
    if offset + shape[0] * frame_bytes > file.size:
        file.close()
        raise InputError(path, f"{dataset.name} is cut: it should end at byte {offset + shape[0] * frame_bytes}")
    return RawFrames(file, offset, frame_bytes, shape[1:], dataset.dtype)


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


def _berkeley_facts(dataset: h5py.Dataset) -> dict[str, Any]:
    """Read pixel size and frame time off the axes ``dim1``, ``dim2``, … beside the data."""
    *others, y_step, x_step = [_axis_step(dataset.parent, axis + 1) for axis in range(dataset.ndim)]
    x_size, y_size = to_angstrom(*x_step), to_angstrom(*y_step)
    return {
        "pixel_size": x_size,
        "frame_time": to_seconds(*others[0]) if others else None,
        "warnings": warn_if_oblong(x_size, y_size),
    }


def _axis_step(group: h5py.Group, number: int) -> tuple[float | None, str]:
    axis = group.get(f"dim{number}")
    if not isinstance(axis, h5py.Dataset) or axis.ndim != 1 or axis.size < 2 or axis.dtype.kind not in "iuf":
        return None, ""
    first, second = axis[:2].astype(np.float64)
    return float(second - first), read_text(axis, "units")
