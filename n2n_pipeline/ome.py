"""What a store's attributes say of its movie: OME-Zarr image metadata (written as 0.5, read as 0.4 too), and ours.

An axis whose size per pixel is not known has scale 1 and no unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from yaozarrs import v05

from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.sources.movie import MovieInfo

_ANGSTROM = {"angstrom": 1.0, "nanometer": 10.0, "micrometer": 1e4}
_SECOND = {"second": 1.0, "millisecond": 1e-3, "microsecond": 1e-6}


_UNITS = {
    "pixel_size": "pixel_size_angstrom",
    "frame_time": "frame_time_second",
    "dose_per_frame": "dose_per_frame_electron_per_square_angstrom",
    "voltage": "voltage_kilovolt",
}


class ImageMetadata(NamedTuple):
    """What an image's metadata tells of its array at full size."""

    name: str
    """Path of the array within the group."""
    pixel_size: float | None
    """Å per pixel."""
    frame_time: float | None
    """Seconds per frame."""


def image_metadata(info: MovieInfo, name: str, levels: int) -> dict[str, Any]:
    """Build the attribute ``ome`` of a movie ``(t, y, x)`` and its halved copies.

    Parameters
    ----------
    info : MovieInfo
        Pixel size and frame time.
    name : str
        Shown by viewers.
    levels : int
        Arrays ``1``, ``2``, … besides ``0``, each of half as many pixels along y and x.
    """
    time, size = info.frame_time or 1.0, info.pixel_size or 1.0
    axes: list[Any] = [
        v05.TimeAxis(name="t", unit="second" if info.frame_time else None),
        *(v05.SpaceAxis(name=axis, unit="angstrom" if info.pixel_size else None) for axis in "yx"),
    ]
    datasets = []
    for level in range(levels + 1):
        pixel, middle = size * 2**level, size * (2**level - 1) / 2
        transforms: list[Any] = [v05.ScaleTransformation(scale=[time, pixel, pixel])]
        if level:
            transforms.append(v05.TranslationTransformation(translation=[0.0, middle, middle]))
        datasets.append(v05.Dataset(path=str(level), coordinateTransformations=transforms))
    image = v05.Image(multiscales=[v05.Multiscale(name=name, axes=axes, datasets=datasets)])
    return image.model_dump(mode="json", exclude_none=True, by_alias=True)


def read_image_metadata(path: Path, attributes: Mapping[str, Any]) -> ImageMetadata:
    """Read a group's attributes; of a group without OME metadata, array ``0`` is taken.

    Raises
    ------
    InputError
        If the metadata leads out of the store [77].
    """
    images = attributes.get("ome", attributes).get("multiscales")
    if not images:
        return ImageMetadata("0", None, None)
    dataset = images[0]["datasets"][0]
    name = str(dataset["path"])
    if ".." in name.split("/") or name.startswith("/"):
        raise InputError(path, f"its metadata leads out of the store ({name})", code=ExitCode.REFUSED)
    scales = [t["scale"] for t in dataset.get("coordinateTransformations", []) if t.get("type") == "scale"]
    axes = {axis["name"]: (axis.get("unit"), number) for number, axis in enumerate(images[0].get("axes", []))}

    def in_unit(axis: str, factors: Mapping[str, float]) -> float | None:
        unit, number = axes.get(axis, (None, 0))
        return scales[0][number] * factors[unit] if scales and unit in factors else None

    return ImageMetadata(name, in_unit("x", _ANGSTROM), in_unit("t", _SECOND))


def describe(info: MovieInfo) -> dict[str, Any]:
    """Return what is known of a movie, but for shape and type, as JSON values whose names carry their units."""
    known = {key: getattr(info, field) for field, key in _UNITS.items()}
    text = {"format": info.format, "camera": info.camera, "software": info.software}
    return {
        **{key: value for key, value in (known | text).items() if value is not None},
        "warnings": list(info.warnings),
    }


def read_description(known: Mapping[str, Any], shape: tuple[int, int, int], dtype: np.dtype[Any]) -> MovieInfo:
    """Undo `describe`."""
    return MovieInfo(
        shape,
        dtype,
        known["format"],
        camera=known.get("camera"),
        software=known.get("software"),
        warnings=tuple(known["warnings"]),
        **{field: known.get(key) for field, key in _UNITS.items()},
    )
