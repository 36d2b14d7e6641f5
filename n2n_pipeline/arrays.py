"""A store's arrays, opened for reading; Zarr is loaded when the first is, which writing a movie never needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from n2n_pipeline.errors import InputError

if TYPE_CHECKING:
    import zarr


def open_array(path: Path, name: str) -> zarr.Array[Any]:
    """Open one of a store's arrays, whether the store is complete or not."""
    import zarr

    array = zarr.open_group(path, mode="r")[name]
    if not isinstance(array, zarr.Array):
        raise InputError(path, f"{name} is not an array")
    return array
