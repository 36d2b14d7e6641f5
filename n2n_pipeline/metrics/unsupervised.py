"""The error of a denoised image, estimated without a truth from noisy copies that the network did not see.

The noisy copies are averages over disjoint sets of frames of one window, so their noise is independent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline.metrics.bootstrap import BLOCK_PX, Interval, block_sums, bootstrap

Floats = npt.NDArray[np.floating[Any]]


class Copies(NamedTuple):
    """Three ``(n, y, x)`` noisy copies, averages of as many frames each, none of them seen by the network."""

    a: Floats
    b: Floats
    c: Floats


def unsupervised_error(denoised: Floats, copies: Copies) -> Floats:
    """Estimate the squared error pixel by pixel: far too noisy alone, unbiased in its mean.

    Each copy takes the part of ``a`` in turn, which lowers the estimate's noise and keeps it unbiased.

    Parameters
    ----------
    denoised : numpy.ndarray
        ``(n, y, x)`` ``f(y)``, made from frames that are in none of the copies.
    copies : Copies
        Of the same shape and unit.

    Returns
    -------
    numpy.ndarray
        ``(n, y, x)`` ``(a - f(y))² - (b - c)² / 2``, averaged over the three roles; squared units of the images.

    References
    ----------
    Marcos-Morales et al. (2023), Evaluating Unsupervised Denoising Requires Unsupervised Metrics, ICML;
    arXiv:2210.05553, eq. 5.
    """
    a, b, c = copies
    turns = ((a, b, c), (b, c, a), (c, a, b))
    total = sum((one - denoised) ** 2 - (two - three) ** 2 / 2 for one, two, three in turns)
    return np.asarray(total / 3)


def error_of_mean(errors: tuple[Floats, Floats], denoised: tuple[Floats, Floats]) -> Floats:
    """Estimate the squared error of ``(f(A) + f(B)) / 2`` from the errors of its halves.

    No frame is left to hold against the mean of both halves, but for any truth s
    ``|(p + q)/2 - s|² = |p - s|²/2 + |q - s|²/2 - |p - q|²/4``.

    Parameters
    ----------
    errors : tuple of numpy.ndarray
        Squared error of each half, of :func:`unsupervised_error`.
    denoised : tuple of numpy.ndarray
        ``f(A)`` and ``f(B)``, of the same shape.

    Returns
    -------
    numpy.ndarray
        In squared units of the images, of the same shape.
    """
    return np.asarray((errors[0] + errors[1]) / 2 - (denoised[0] - denoised[1]) ** 2 / 4)


def unsupervised_mse(error: Floats, block: int = BLOCK_PX) -> Interval:
    """Average the error, with its bootstrap interval.

    Parameters
    ----------
    error : numpy.ndarray
        ``(n, y, x)`` of :func:`unsupervised_error` or :func:`error_of_mean`; NaN where a pixel does not count.
    block : int
        Side in pixels of the blocks that are resampled.

    Returns
    -------
    Interval
        In squared units of the images; it can be zero or below where the noise outweighs the error.
    """
    counts = np.isfinite(error)
    sums = block_sums(np.stack([np.where(counts, error, 0), counts]), block)
    return bootstrap(sums, lambda s: s[..., 0] / s[..., 1])


def unsupervised_psnr(mse: Interval, peak: float) -> Interval:
    """Express an error in dB below a fixed signal peak; the logarithm is taken once, of the mean.

    Parameters
    ----------
    mse : Interval
        Of :func:`unsupervised_mse`.
    peak : float
        Range of the signal, in the images' unit.

    Returns
    -------
    Interval
        dB. Infinite where the error is zero or below; low is the pessimistic end.
    """

    def decibels(error: float) -> float:
        return float(10 * np.log10(peak**2 / error)) if error > 0 else float("inf")

    return Interval(decibels(mse.value), decibels(mse.high), decibels(mse.low))
