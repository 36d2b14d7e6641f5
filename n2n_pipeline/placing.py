"""Denoised frames moved to where the scene is in each, by fractions of a pixel.

Frames are laid over each other by whole pixels: between pixels there are no counts, and interpolated ones share
their noise. So an average shows the scene where what was rounded off the drift of its frames puts it on the mean,
which is up to a pixel from where a frame of its own has it. What comes out of the network is smooth, and is moved
there without loss.

References
----------
Laakso, Välimäki, Karjalainen & Laine (1996), Splitting the unit delay, IEEE Signal Process. Mag. 13(1), 30-60:
polynomials through the nearest pixels (Lagrange) are the flattest there are for what is smooth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from n2n_pipeline.config import Frame
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.shifted import whole_shifts

Floats = npt.NDArray[np.float32]
Offsets = npt.NDArray[np.float64]

TAPS = 8
REACH_PX = TAPS // 2
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
        ``(y, x)``, smooth: of a quarter of a cycle per pixel at least 97 % is left.
    by : numpy.ndarray
        ``(2,)`` px (y, x): what was at a position is found so far on.

    Examples
    --------
    >>> ramp = np.arange(12, dtype=np.float32) * np.ones((9, 1), np.float32)
    >>> move(ramp, np.array([0.5, 0.25]))[4, 4:8].tolist()
    [3.75, 4.75, 5.75, 6.75]
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
    """Return the weights of the pixels from `REACH_PX` before a position to as many after it."""
    first = min(math.floor(-by), 0) + 1 - TAPS // 2
    nodes = np.arange(first, first + TAPS)
    weights = np.zeros(2 * REACH_PX + 1, np.float32)
    for node in nodes:
        others = nodes[nodes != node]
        weights[node + REACH_PX] = np.prod((-by - others) / (node - others))
    return weights


def _weigh(parts: Sequence[Floats], weights: Floats) -> Floats:
    total = np.zeros(parts[0].shape, np.float32)
    for part, weight in zip(parts, weights, strict=True):
        if weight:
            total += weight * part
    return total
