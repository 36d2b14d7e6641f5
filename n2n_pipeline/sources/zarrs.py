"""Zarr movies that others made: a plain array, or the full-size level of an OME-Zarr image, of version 2 or 3.

Metadata is held against bounds before an array is opened. A chunk that is missing reads as the fill value without
a word, so missing ones are counted and said.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr

from n2n_pipeline.config import IngestConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.sources.formats import ZARR_METADATA
from n2n_pipeline.sources.movie import Counts, MovieInfo
from n2n_pipeline.sources.raw import InputFile, check_range, check_real, explaining, format_bytes, to_native
from n2n_pipeline.sources.units import known, to_angstrom, to_seconds, warn_if_oblong

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}(/[A-Za-z0-9._-]{1,128}){0,7}")
_MAX_JSON = 1 << 20  # bytes of metadata of one node
_MAX_CHUNK_BYTES = 1 << 31
_MAX_LISTED = 8


class _Image(NamedTuple):
    """Where a group keeps its image, and what it tells of the axes."""

    path: str
    axes: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    scale: tuple[float, ...] = ()


class ZarrMovie:
    """A Zarr array of images, read frame by frame; ``array`` is what is stored, whatever its axes.

    Parameters
    ----------
    path : pathlib.Path
        A group or an array.
    options : IngestConfig
        ``dataset`` names the array within the group.

    Raises
    ------
    InputError
        If there is no array, several, or one that is no movie.
    """

    def __init__(self, path: Path, options: IngestConfig) -> None:
        self.path = path
        with explaining(path, "Zarr"):
            self._open(options)

    def read_frames(self, start: int, stop: int) -> Counts:
        """Read frames ``start`` to ``stop - 1`` as a fresh ``(t, y, x)`` array."""
        check_range(start, stop, self.info.shape[0])
        with explaining(self.path, "Zarr"):
            block = np.asarray(self.array[self._index(start, stop)])
            frames = block.reshape(stop - start, *self.info.shape[1:])
            return to_native(np.array(frames, order="C"))

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _open(self, options: IngestConfig) -> None:
        _check_metadata(self.path, self.path)
        node = zarr.open(self.path, mode="r")
        image = _Image("")
        if isinstance(node, zarr.Group):
            image = _find_image(self.path, node, options.dataset)
            _check_metadata(self.path, self.path / image.path)
            node = node[image.path]
        if not isinstance(node, zarr.Array):
            raise InputError(self.path, f"{image.path} is no array")
        dtype = np.dtype(node.dtype)
        check_real(self.path, dtype)
        _check_chunks(self.path, node)
        self.array, self._axes = node, _movie_axes(self.path, node.shape, image.axes)
        n_frames, height, width = (1, *(node.shape[axis] for axis in self._axes))[-3:]
        if min(n_frames, height, width) < 1:
            raise InputError(self.path, "no frames" if n_frames == 0 else f"bad shape {node.shape}")
        facts = _read_facts(image, self._axes)
        facts["warnings"] += _warn_if_sparse(node)
        self.info = MovieInfo((n_frames, height, width), dtype.newbyteorder("="), "zarr", **facts)

    def _index(self, start: int, stop: int) -> tuple[slice, ...]:
        """Select frames of a movie; an image has no axis for them."""
        index = [slice(None)] * self.array.ndim
        if len(self._axes) == 3:
            index[self._axes[0]] = slice(start, stop)
        return tuple(index)


def _check_metadata(path: Path, node: Path) -> None:
    """Refuse metadata that is missing or too long to be meant."""
    for name in ZARR_METADATA:
        if (node / name).is_file():
            file = InputFile(node / name)
            file.close()
            if file.size > _MAX_JSON:
                raise InputError(path, f"{name} of {format_bytes(file.size)}")
            return
    raise InputError(path, "no image array found (no zarr.json, no .zarray)")


def _find_image(path: Path, group: zarr.Group, wanted: str | None) -> _Image:
    """Find the array to read: the one named, OME's full-size level, or the only one."""
    attributes: Any = group.attrs.asdict()
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if wanted is None and multiscales:
        image = _parse_multiscale(multiscales[0])
    else:
        names = [wanted.strip("/")] if wanted is not None else _list_arrays(group)
        if len(names) != 1:
            what = "no image array found" if not names else f"{len(names)} arrays"
            todo = f"choose with --dataset: {', '.join(names[:_MAX_LISTED])}" if names else None
            raise InputError(path, what, todo)
        image = _Image(names[0])
    if not _NAME.fullmatch(image.path) or ".." in image.path.split("/"):
        raise InputError(path, f"its metadata leads out of the store ({image.path})", code=ExitCode.REFUSED)
    if image.path not in group:
        raise InputError(path, f"no array {image.path}")
    return image


def _list_arrays(group: zarr.Group) -> list[str]:
    names = sorted(name for name, array in group.arrays() if array.ndim >= 2)
    return ["0"] if "0" in names else names


def _parse_multiscale(multiscale: dict[str, Any]) -> _Image:
    """Read axes and the scale of the first, full-size dataset."""
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in multiscale.get("axes", [])]
    dataset = multiscale["datasets"][0]
    transforms = dataset.get("coordinateTransformations", [])
    scale: list[float] = next(
        (transform["scale"] for transform in transforms if transform.get("type") == "scale"), []
    )
    names = tuple(str(axis.get("name", "")).lower() for axis in axes)
    return _Image(str(dataset["path"]), names, tuple(str(axis.get("unit", "")) for axis in axes), tuple(scale))


def _check_chunks(path: Path, array: zarr.Array[Any]) -> None:
    """Refuse chunks that no machine should be asked to decode at once."""
    itemsize = np.dtype(array.dtype).itemsize
    for chunks in (array.chunks, array.shards or ()):
        n_bytes = math.prod(chunks) * itemsize
        if n_bytes > _MAX_CHUNK_BYTES:
            raise InputError(path, f"chunks of {format_bytes(n_bytes)}")


def _movie_axes(path: Path, shape: tuple[int, ...], names: tuple[str, ...]) -> list[int]:
    """Return which stored axes are (t,) y and x; any other must have one element.

    Examples
    --------
    >>> _movie_axes(Path("a"), (9, 1, 64, 64), ("t", "c", "y", "x")), _movie_axes(Path("a"), (9, 64, 64), ())
    ([0, 2, 3], [0, 1, 2])
    """
    if len(names) != len(shape):
        names = ("t", "y", "x")[-len(shape) :]
    axes = [axis for axis, (name, size) in enumerate(zip(names, shape, strict=False)) if size > 1 or name in "tyx"]
    if len(shape) < 2 or len(axes) > 3 or [names[axis] for axis in axes[-2:]] != ["y", "x"]:
        raise InputError(path, f"{len(shape)}-D data {shape}, axes {' '.join(names)}; expected T,Y,X")
    return axes


def _warn_if_sparse(array: zarr.Array[Any]) -> tuple[str, ...]:
    n_missing = array.nchunks - array.nchunks_initialized
    if n_missing == 0:
        return ()
    return (f"{n_missing} of {array.nchunks} chunks are missing and read as {array.fill_value}",)


def _read_facts(image: _Image, axes: list[int]) -> dict[str, Any]:
    """Turn OME's scale along t, y and x into frame time and pixel size."""
    if not len(image.scale) == len(image.units) == len(image.axes) or max(axes) >= len(image.scale):
        return {"warnings": ()}
    steps = [(known(image.scale[axis]), image.units[axis]) for axis in axes]
    y_size, x_size = (to_angstrom(*step) for step in steps[-2:])
    return {
        "pixel_size": x_size,
        "frame_time": to_seconds(*steps[0]) if len(steps) == 3 else None,
        "warnings": warn_if_oblong(x_size, y_size),
    }
