"""How sure a number is: resample blocks of the image, because neighbouring pixels are not independent.

A statistic is written as a function of sums (of products, of squares, of counts). The sums are kept for each
block, so that a bootstrap draw is one weighted sum of blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

BLOCK_PX = 64
"""Side of a block: below some 64² px the mean squares of single blocks are far from Gaussian."""


class Interval(NamedTuple):
    """A value and the central 95 % of its bootstrap distribution, in the value's unit."""

    value: float
    low: float
    high: float


def standard_error(values: Floats) -> Floats:
    """Return the standard error of the mean along the first axis; 0 of a single value."""
    return np.asarray(values.std(axis=0, ddof=min(1, len(values) - 1)) / np.sqrt(len(values)))


def block_sums(values: Floats, block: int = BLOCK_PX) -> Floats:
    """Sum each quantity over the blocks of the image plane, and over frames.

    One place of the image is one block in all frames, since windows overlap in time.

    Parameters
    ----------
    values : numpy.ndarray
        ``(k, n, y, x)``: ``k`` quantities of ``n`` frames.
    block : int
        Least side in pixels; less where the image would hold fewer than four blocks.

    Returns
    -------
    numpy.ndarray
        ``(n_blocks, k)`` float64.
    """
    plane = values.sum(axis=1, dtype=np.float64)
    height, width = plane.shape[-2:]
    rows = np.arange(max(min(2, height), height // block)) * height // max(min(2, height), height // block)
    cols = np.arange(max(min(2, width), width // block)) * width // max(min(2, width), width // block)
    sums = np.add.reduceat(np.add.reduceat(plane, rows, axis=-2), cols, axis=-1)
    return sums.reshape(len(plane), -1).T


def bootstrap(sums: Floats, statistic: Callable[[Floats], Floats], draws: int = 1000, seed: int = 0) -> Interval:
    """Draw blocks with replacement and give the statistic's central 95 %.

    Parameters
    ----------
    sums : numpy.ndarray
        ``(n_blocks, k)`` sums of each block, of :func:`block_sums`.
    statistic : callable
        From ``(..., k)`` sums to ``(...)`` values.
    draws : int
        Bootstrap samples.
    seed : int
        Start of the random draws; the same seed gives the same interval.

    Returns
    -------
    Interval
        In the statistic's unit.

    References
    ----------
    Efron & Tibshirani (1993), An Introduction to the Bootstrap, ch. 13.
    """
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=draws)
    low, high = np.nanpercentile(statistic(weights @ sums), [2.5, 97.5])
    return Interval(float(statistic(sums.sum(axis=0))), float(low), float(high))
