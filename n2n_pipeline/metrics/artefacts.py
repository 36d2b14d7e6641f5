"""Marks that processing leaves and an object does not: steps along the lines where tiles meet."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

_BESIDE = (-4, -3, -2, 2, 3, 4)
_SEGMENTS = 4
_EDGE_PX = 8  # where a network sees its own zero padding


class Seam(NamedTuple):
    """A line of the image across which neighbouring pixels differ more than beside it."""

    axis: str
    """``"y"``: a horizontal line between rows; ``"x"``: a vertical one between columns."""
    position: int
    """First row or column after the line."""
    excess: float
    """Mean jump across the line over that beside it, less 1."""


def _excess(jumps: Floats) -> Floats:
    """Compare each line's mean jump with those beside it; ``(lines, ...)``, 0 close to the edges."""
    excess = np.zeros_like(jumps)
    inner = np.arange(_EDGE_PX, len(jumps) - _EDGE_PX)
    beside = np.mean([jumps[inner + offset] for offset in _BESIDE], axis=0)
    excess[inner] = np.divide(jumps[inner] - beside, beside, out=np.zeros_like(beside), where=beside > 0)
    return excess


def seam_metric(images: Floats, axis: int, borders: Collection[int]) -> float:
    """Compare the mean step across known tile borders with the steps beside them.

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
        ``|mean|Δ| across - mean|Δ| beside| / mean|Δ| beside``; 0 without borders.
    """
    step = np.abs(np.diff(images, axis=axis)).mean(axis=(0, 3 - axis), dtype=np.float64)
    known = [border - 1 for border in borders if 0 < border <= len(step)]
    return float(abs(np.mean(_excess(step)[known]))) if known else 0.0


def _jumps(images: Floats, axis: int) -> Floats:
    """Mean jump across each line, in each of four parts of its length: ``(length - 1, 4)``.

    A jump is a step less the mean of the steps on either side, which takes the object's own slope away.
    """
    step = np.moveaxis(np.diff(images, axis=axis), axis, 0)
    jump = np.zeros(step.shape, np.float32)
    jump[1:-1] = np.abs(step[1:-1] - (step[:-2] + step[2:]) / 2)
    parts = np.array_split(jump.mean(axis=1, dtype=np.float64), _SEGMENTS, axis=-1)
    return np.stack([part.mean(axis=-1) for part in parts], axis=-1)


def find_seams(images: Floats, least: float = 0.25, sigmas: float = 8.0) -> list[Seam]:
    """Find lines that a jump follows from edge to edge, wherever they are.

    Parameters
    ----------
    images : numpy.ndarray
        ``(n, y, x)`` frames of one movie.
    least : float
        Smallest excess that counts.
    sigmas : float
        How many robust standard deviations of all lines' excess it must exceed as well.

    Returns
    -------
    list of Seam
        The strongest first. A straight edge of the object that is shorter than the image is not among them.
    """
    seams = []
    for axis, name in ((1, "y"), (2, "x")):
        jumps = _jumps(images, axis)
        excess, everywhere = _excess(jumps.mean(axis=1)), _excess(jumps).min(axis=1)
        spread = 1.4826 * float(np.median(np.abs(excess - np.median(excess))))
        found = (excess > max(least, sigmas * spread)) & (everywhere > least / 2)
        found[1:-1] &= (excess[1:-1] >= excess[:-2]) & (
            excess[1:-1] >= excess[2:]
        )  # its neighbours jump half as much
        seams += [Seam(name, int(line) + 1, float(excess[line])) for line in np.flatnonzero(found)]
    return sorted(seams, key=lambda seam: -seam.excess)
