"""How far a scene has moved between two images."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft

Floats = npt.NDArray[np.floating[Any]]


def displacement(first: Floats, second: Floats, finest: float = 0.08, largest_px: int = 16) -> tuple[float, float]:
    """Find the shift that lays one noisy image on another.

    Parameters
    ----------
    first, second : numpy.ndarray
        ``(y, x)`` of one scene.
    finest : float
        Cycles per pixel at which a Gaussian low-pass falls to 61 %.
    largest_px : int
        No shift beyond this is looked for.

    Returns
    -------
    tuple of float
        ``(dy, dx)`` px, to be added to a position in ``first`` to find it in ``second``; 0 without structure.

    References
    ----------
    Guizar-Sicairos, Thurman & Fienup (2008), Opt. Lett. 33, 156-158: the peak of the cross-correlation; between
    whole pixels a parabola is laid through it.
    """
    height, width = first.shape
    taper = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    p, q = (fft.rfft2((image - image.mean(dtype=np.float64)) * taper) for image in (first, second))
    square = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width)[None] ** 2
    correlation = fft.irfft2(np.conj(p) * q * np.exp(-square / (2 * finest**2)), s=first.shape)
    reach = min(largest_px, min(first.shape) // 2 - 2)
    lags = np.arange(-reach - 1, reach + 2)
    near = correlation[np.ix_(lags, lags)]
    if not near.any():
        return 0.0, 0.0
    y, x = (1 + int(i) for i in np.unravel_index(np.argmax(near[1:-1, 1:-1]), (2 * reach + 1, 2 * reach + 1)))
    dy = lags[y] + _vertex(near[y - 1, x], near[y, x], near[y + 1, x])
    dx = lags[x] + _vertex(near[y, x - 1], near[y, x], near[y, x + 1])
    return float(dy), float(dx)


def _vertex(before: float, peak: float, after: float) -> float:
    """Where, within half a pixel, the parabola through three samples is highest."""
    bend = before - 2 * peak + after
    return float(np.clip((before - after) / (2 * bend), -0.5, 0.5)) if bend < 0 else 0.0
