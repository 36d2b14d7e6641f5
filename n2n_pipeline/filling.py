"""Pixels that no frame saw: what is put there, so that no stage meets a hole.

An unseen pixel takes the mean of the seen ones around it, near ones weighing more.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

FILL_SIGMA = 1.5  # px; unseen pixels take the weighted mean of the seen ones around them
FILL_REACH = 6  # px beyond which a neighbour's weight is nothing
FILL_WEIGHTS = np.exp(-0.5 * (np.arange(-FILL_REACH, FILL_REACH + 1) / FILL_SIGMA) ** 2)


def fill_unseen(total: npt.NDArray[np.floating], count: npt.NDArray[np.integer], typical: float) -> Floats:
    """Divide sums by counts; where nothing was counted, take the weighted mean of the neighbours.

    Parameters
    ----------
    total, count : numpy.ndarray
        ``(y, x)`` sum over the frames of a half, and how many frames had a valid pixel there.
    typical : float
        Value given to pixels with no valid neighbour within `FILL_REACH` px.

    Returns
    -------
    numpy.ndarray
        ``(y, x)`` averages, finite everywhere.
    """
    average = (total / np.maximum(count, 1)).astype(np.float32, copy=False)
    return fill_from_neighbours(average, count.astype(np.float32), typical)


def fill_from_neighbours(average: Floats, count: Floats, typical: float) -> Floats:
    """Fill averages ``(y, x)`` where ``count`` is 0, as `fill_unseen` does, in their own memory."""
    ys, xs = np.nonzero(count == 0)
    fill_places(average, count, (ys, xs), typical)
    return average


def fill_places(average: Floats, count: Floats, unseen: tuple[Ints, Ints], typical: float) -> None:
    """Fill averages ``(y, x)`` at the pixels ``unseen``, whose ``count`` is 0, from pixels whose count is not."""
    if len(unseen[0]):
        ys, xs = unseen
        average[ys, xs] = _weigh_neighbours(average, count, ys, xs, typical)


@numba.njit(nogil=True, cache=True)
def _weigh_neighbours(average: Floats, count: Floats, ys: Ints, xs: Ints, typical: float) -> Array:
    """Return, for each unseen pixel, the mean of the seen ones around it, near ones weighing more."""
    height, width = average.shape
    found = np.full(len(ys), typical)
    for i in range(len(ys)):
        total, weight = 0.0, 0.0
        for v in range(max(ys[i] - FILL_REACH, 0), min(ys[i] + FILL_REACH + 1, height)):
            for u in range(max(xs[i] - FILL_REACH, 0), min(xs[i] + FILL_REACH + 1, width)):
                if count[v, u] > 0:
                    share = FILL_WEIGHTS[v - ys[i] + FILL_REACH] * FILL_WEIGHTS[u - xs[i] + FILL_REACH]
                    total += share * average[v, u]
                    weight += share
        if weight > 0:
            found[i] = total / weight
    return found
