"""Denoised values as they are stored: checked, then rounded to the type of the output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from n2n_pipeline.errors import InputError
from n2n_pipeline.layout import round_mantissa

Floats = npt.NDArray[np.float32]


def as_stored(image: Floats, dtype: np.dtype[Any], output: Path) -> npt.NDArray[Any]:
    """Round pixels to what is stored: floats to 10 bits of mantissa, or to the nearest whole number of the type.

    Raises
    ------
    InputError
        Naming the output, if a pixel is not a number, or too large for a type of floats.
    """
    if not np.isfinite(image).all():
        raise InputError(output, "the network returned NaN or Inf", "train the model again with a lower train.lr")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.clip(np.rint(image), limits.min, limits.max).astype(dtype)
    largest = float(np.abs(image).max())
    if largest > np.finfo(dtype).max:
        raise InputError(output, f"{largest:g} is too large for {dtype}", "use --set denoise.dtype=float32")
    return round_mantissa(image).astype(dtype)
