"""Denoised values as they are stored: checked, then rounded to the type of the output."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from n2n_pipeline.errors import InputError
from n2n_pipeline.layout import round_mantissa

Floats = npt.NDArray[np.float32]

PIXELS_AT_ONCE = 2**18  # so that what is in between stays in cache


def as_stored(image: Floats, dtype: np.dtype[Any], output: Path) -> npt.NDArray[Any]:
    """Round ``(t, y, x)`` pixels to what is stored: 10 bits of mantissa, or whole numbers of the type.

    Where the type stays, it is done in place.

    Raises
    ------
    InputError
        Naming the output, if a pixel is not a number, or too large for a type of floats.
    """
    stored = image if dtype == image.dtype else np.empty(image.shape, dtype)
    rows = max(1, PIXELS_AT_ONCE // image.shape[-1])
    for t, y in itertools.product(range(len(image)), range(0, image.shape[1], rows)):
        stored[t, y : y + rows] = _round(image[t, y : y + rows], dtype, output)
    return stored


def _round(pixels: Floats, dtype: np.dtype[Any], output: Path) -> npt.NDArray[Any]:
    largest = float(np.abs(pixels).max())
    if not np.isfinite(largest):
        raise InputError(output, "the network returned NaN or Inf", "train the model again with a lower train.lr")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.clip(np.rint(pixels), limits.min, limits.max).astype(dtype)
    if largest > np.finfo(dtype).max:
        raise InputError(output, f"{largest:g} is too large for {dtype}", "use --set denoise.dtype=float32")
    return round_mantissa(pixels).astype(dtype, copy=False)
