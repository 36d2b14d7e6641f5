"""Whether everything in a movie moves, and the noise of one in which it does not: looked up at a few places."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from n2n_pipeline.averages import read_sides
from n2n_pipeline.inference.inputs import Inputs
from n2n_pipeline.shifted import whole_shifts
from n2n_pipeline.sides import STILL_WINDOWS, Half, Noise, measure_noise

MOMENTS = 8
PLACES = 3
PLACE_PX = 256


def measure_changes(inputs: Inputs) -> Noise | None:
    """Measure the noise that sides of a ladder's levels are compared with.

    Parameters
    ----------
    inputs : Inputs
        A movie as a network sees it.

    Returns
    -------
    Noise or None
        None where the network sees no ladder, or everything moves.
    """
    if not inputs.ladder:
        return None
    n_frames = inputs.movie.store.info.shape[0]
    moments = sorted({(2 * i + 1) * n_frames // (2 * MOMENTS) for i in range(MOMENTS)})
    squares = dict.fromkeys(_cut(inputs.shape, i / (PLACES - 1)) for i in range(PLACES))
    shifts = whole_shifts(inputs.movie)
    return measure_noise([[_read(inputs, t, square, shifts[t]) for square in squares] for t in moments])


def _cut(shape: tuple[int, int], share: float) -> tuple[range, ...]:
    """Return the rows and columns of a square on the image's diagonal."""
    starts = [int(max(size - PLACE_PX, 0) * share) for size in shape]
    return tuple(range(start, min(start + PLACE_PX, size)) for start, size in zip(starts, shape, strict=True))


def _read(inputs: Inputs, t: int, square: tuple[range, ...], shift: npt.NDArray[np.int64]) -> tuple[Half, Half]:
    """Read a square of the image of frame ``t``."""
    canvas = [range(part.start - by, part.stop - by) for part, by in zip(square, shift.tolist(), strict=True)]
    return read_sides(inputs.movie, range(t, t + 1), canvas, STILL_WINDOWS, sided=len(STILL_WINDOWS) - 1)
