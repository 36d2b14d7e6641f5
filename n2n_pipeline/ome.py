"""What a store's attributes say of its movie: OME-Zarr 0.5 image metadata, and our own.

An axis whose size per pixel is not known has scale 1 and no unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from yaozarrs import v05

from n2n_pipeline.sources.movie import MovieInfo

_UNITS = {
    "pixel_size": "pixel_size_angstrom",
    "frame_time": "frame_time_second",
    "dose_per_frame": "dose_per_frame_electron_per_square_angstrom",
    "voltage": "voltage_kilovolt",
}


def image_metadata(
    info: MovieInfo, name: str, levels: int, origin_px: Sequence[float] = (0.0, 0.0)
) -> dict[str, Any]:
    """Build the attribute ``ome`` of a movie ``(t, y, x)`` and its halved copies.

    Parameters
    ----------
    info : MovieInfo
        Pixel size and frame time.
    name : str
        Shown by viewers.
    levels : int
        Arrays ``1``, ``2``, … besides ``0``, each of half as many pixels along y and x.
    origin_px : sequence of float
        Where the first pixel lies ``(y, x)`` in the first frame of the movie that it was made from.
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
        start = [size * origin + middle for origin in origin_px]
        if any(start):
            transforms.append(v05.TranslationTransformation(translation=[0.0, *start]))
        datasets.append(v05.Dataset(path=str(level), coordinateTransformations=transforms))
    image = v05.Image(multiscales=[v05.Multiscale(name=name, axes=axes, datasets=datasets)])
    return image.model_dump(mode="json", exclude_none=True, by_alias=True)


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
