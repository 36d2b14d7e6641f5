"""Marks that processing leaves and an object does not: steps along the lines where tiles meet."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

_BESIDE = (-4, -3, -2, 2, 3, 4)


class Seam(NamedTuple):
    """A line of the image across which neighbouring pixels differ more than beside it."""

    axis: str
    """``"y"``: a horizontal line between rows; ``"x"``: a vertical one between columns."""
    position: int
    """First row or column after the line."""
    excess: float
    """``|mean|Δ| across - mean|Δ| beside| / mean|Δ| beside``."""


def line_excess(images: Floats, axis: int) -> Floats:
    """Compare the mean step across each line of the image with the steps beside it.

    Parameters
    ----------
    images : numpy.ndarray
        ``(n, y, x)``.
    axis : int
        1 for lines between rows, 2 for lines between columns.

    Returns
    -------
    numpy.ndarray
        ``(length - 1,)``: entry i is the line between i and i + 1. Signed; 0 within 4 px of the edges.
    """
    step = np.abs(np.diff(images, axis=axis)).mean(axis=(0, 3 - axis), dtype=np.float64)
    excess = np.zeros(len(step))
    inner = np.arange(4, len(step) - 4)
    beside = np.mean([step[inner + offset] for offset in _BESIDE], axis=0)
    excess[inner] = np.divide(step[inner] - beside, beside, out=np.zeros(len(inner)), where=beside > 0)
    return np.asarray(excess)


def seam_metric(images: Floats, axis: int, borders: Collection[int]) -> float:
    """Mean relative step across known tile borders.

    Parameters
    ----------
    images : numpy.ndarray
        ``(n, y, x)``.
    axis : int
        1 for borders between rows, 2 for borders between columns.
    borders : collection of int
        First row or column of each tile but the first.

    Returns
    -------
    float
        0 without seams or without borders.
    """
    excess = line_excess(images, axis)
    known = [border - 1 for border in borders if 0 < border <= len(excess)]
    return float(abs(np.mean(excess[known]))) if known else 0.0


def find_seams(images: Floats, least: float = 0.15, sigmas: float = 8.0) -> list[Seam]:
    """Find lines whose step stands out, wherever they are.

    Parameters
    ----------
    images : numpy.ndarray
        ``(n, y, x)`` frames of one movie: an object ends somewhere, a seam goes from edge to edge of all frames.
    least : float
        Smallest excess that counts.
    sigmas : float
        How many robust standard deviations of all lines it must exceed as well.

    Returns
    -------
    list of Seam
        The strongest first.
    """
    seams = []
    for axis, name in ((1, "y"), (2, "x")):
        excess = line_excess(images, axis)
        spread = 1.4826 * float(np.median(np.abs(excess - np.median(excess))))
        for line in np.flatnonzero(excess > max(least, sigmas * spread)):
            seams.append(Seam(name, int(line) + 1, float(excess[line])))
    return sorted(seams, key=lambda seam: -seam.excess)
