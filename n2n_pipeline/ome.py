"""What a store's attributes say of its movie: OME-Zarr 0.5 image metadata, and our own.

An axis whose size per pixel is not known has scale 1 and no unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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
    axes = [_axis("t", "time", "second" if info.frame_time else None)]
    axes += [_axis(name, "space", "angstrom" if info.pixel_size else None) for name in "yx"]
    datasets = []
    for level in range(levels + 1):
        pixel, middle = size * 2**level, size * (2**level - 1) / 2
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": [time, pixel, pixel]}]
        start = [float(size * origin + middle) for origin in origin_px]
        if any(start):
            transforms.append({"type": "translation", "translation": [0.0, *start]})
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    return {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": datasets}]}


def _axis(name: str, kind: str, unit: str | None) -> dict[str, str]:
    return {"name": name, "type": kind} | ({} if unit is None else {"unit": unit})


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
