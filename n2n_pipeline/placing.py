"""Denoised frames moved to where the scene is in each, by fractions of a pixel.

Frames are laid over each other by whole pixels: between pixels there are no counts, and interpolated ones share
their noise. So an average shows the scene where what was rounded off the drift of its frames puts it on the mean,
which is up to a pixel from where a frame of its own has it. What comes out of the network is smooth, and is moved
there without loss.

References
----------
Duchon (1979), Lanczos filtering in one and two dimensions, J. Appl. Meteorol. 18, 1016-1022.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from n2n_pipeline.config import Frame
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.shifted import whole_shifts

Floats = npt.NDArray[np.float32]
Offsets = npt.NDArray[np.float64]

LOBES = 3
REACH_PX = LOBES + 1
"""Beyond a region, what has to be there for its pixels to be moved by up to one."""
BAND_ROWS = 32  # at a time, so that what is in between stays in cache


def rounded_off(movie: CorrectedMovie) -> Offsets:
    """Return ``(t, 2)`` drift in px (y, x) less `whole_shifts`; zeros for a movie that was never aligned."""
    shifts = movie.store.shifts
    whole = whole_shifts(movie)
    return np.zeros(whole.shape) if shifts is None else np.asarray(shifts.dy_dx - whole, np.float64)


def offset_of(movie: CorrectedMovie, t: int, members: Sequence[int], frame_of_reference: Frame) -> Offsets:
    """Return how far an average has to be moved to lie where output frame ``t`` has it.

    Parameters
    ----------
    movie : CorrectedMovie
        The movie.
    t : int
        The output frame.
    members : sequence of int
        Frames that were averaged.
    frame_of_reference : str
        ``camera`` or ``stable``; the latter has all frames where whole pixels put them.

    Returns
    -------
    numpy.ndarray
        ``(2,)`` px (y, x), each between -1 and 1.
    """
    left = rounded_off(movie)
    own = left[t] if frame_of_reference == "camera" else np.zeros(2)
    return np.asarray(own - left[list(members)].mean(axis=0))


def move(image: Floats, by: Offsets) -> Floats:
    """Move an image by up to a pixel, mirrored at its ends.

    Parameters
    ----------
    image : numpy.ndarray
        ``(y, x)``, smooth: with little above a third of a cycle per pixel.
    by : numpy.ndarray
        ``(2,)`` px (y, x): what was at a position is found so far on.

    Examples
    --------
    >>> ramp = np.arange(12, dtype=np.float32) * np.ones((9, 1), np.float32)
    >>> bool(np.allclose(move(ramp, np.array([0.0, 0.25]))[4, 4:8], [3.75, 4.75, 5.75, 6.75], atol=0.01))
    True
    """
    if not np.any(by):
        return image
    down, across = (_weights(float(one)) for one in by)
    height, width = image.shape
    padded = np.pad(image, REACH_PX, mode="reflect")
    moved = np.empty_like(image)
    for y in range(0, height, BAND_ROWS):
        rows = min(BAND_ROWS, height - y)
        band = _weigh([padded[y + k : y + k + rows] for k in range(len(down))], down)
        moved[y : y + rows] = _weigh([band[:, k : k + width] for k in range(len(across))], across)
    return moved


def _weights(by: float) -> Floats:
    """Return Lanczos's weights of the pixels from `REACH_PX` before a position to as many after it."""
    distance = np.arange(-REACH_PX, REACH_PX + 1) + by
    weights = np.where(np.abs(distance) < LOBES, np.sinc(distance) * np.sinc(distance / LOBES), 0.0)
    return np.asarray(weights / weights.sum(), np.float32)


def _weigh(parts: Sequence[Floats], weights: Floats) -> Floats:
    total = np.zeros(parts[0].shape, np.float32)
    for part, weight in zip(parts, weights, strict=True):
        if weight:
            total += weight * part
    return total
