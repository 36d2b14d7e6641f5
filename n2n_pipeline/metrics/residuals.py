"""What the network leaves over: the other raw half less the denoised one, which should be noise alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft

from n2n_pipeline.metrics.bootstrap import BLOCK_PX, Interval, block_sums, bootstrap

Floats = npt.NDArray[np.floating[Any]]


def autocorrelation(images: Floats, max_lag: int = 8) -> Floats:
    """Correlate images with themselves shifted by whole pixels.

    Parameters
    ----------
    images : numpy.ndarray
        ``(y, x)`` or ``(n, y, x)``; each image's mean is removed.
    max_lag : int
        Largest shift in pixels along each axis.

    Returns
    -------
    numpy.ndarray
        ``(2 max_lag + 1, 2 max_lag + 1)``, 1 in the middle; the mean over images.

    References
    ----------
    Wiener-Khinchin, with zero padding so that opposite edges do not meet; each lag is divided by its overlap.
    """
    height, width = images.shape[-2:]
    padded = (height + max_lag, width + max_lag)
    power = np.zeros((padded[0], padded[1] // 2 + 1))
    for image in images.reshape(-1, height, width):
        power += np.abs(fft.rfft2(image - image.mean(dtype=np.float64), s=padded)) ** 2
    lags = np.arange(-max_lag, max_lag + 1)
    covariance = fft.irfft2(power, s=padded)[np.ix_(lags, lags)]
    overlap = np.outer(height - np.abs(lags), width - np.abs(lags))
    covariance /= overlap
    return np.asarray(covariance / covariance[max_lag, max_lag])


def radial_profile(correlation: Floats) -> Floats:
    """Average an autocorrelation over directions.

    Parameters
    ----------
    correlation : numpy.ndarray
        ``(2 L + 1, 2 L + 1)`` of :func:`autocorrelation`.

    Returns
    -------
    numpy.ndarray
        ``(L + 1,)`` for lags 0 to L in pixels.
    """
    reach = correlation.shape[0] // 2
    lags = np.arange(-reach, reach + 1)
    lag = np.rint(np.hypot(lags[:, None], lags[None])).astype(np.intp).ravel()
    total, count = np.bincount(lag, correlation.ravel()), np.bincount(lag)
    return np.asarray(total[: reach + 1] / count[: reach + 1])


def structure_left(residual: Floats, noise: Floats, max_lag: int = 4) -> float:
    """Compare the residual's autocorrelation with that of blank noise from the same camera.

    A camera's point spread correlates neighbours in the noise too, so it is the excess that tells.

    Parameters
    ----------
    residual : numpy.ndarray
        ``(n, y, x)``.
    noise : numpy.ndarray
        ``(n, y, x)`` differences of frames, that hold no signal.
    max_lag : int
        Largest shift in pixels.

    Returns
    -------
    float
        Mean excess over all shifts but none; 0 for a residual that is noise.
    """
    excess = autocorrelation(residual, max_lag) - autocorrelation(noise, max_lag)
    return float(excess.sum() / (excess.size - 1))


def _moments(first: Floats, second: Floats, block: int) -> Floats:
    """``(n_blocks, 6)`` sums of 1, p, q, p², q² and pq; the overall means are taken off first, for precision."""
    counts = np.isfinite(first) & np.isfinite(second)
    p = np.where(counts, first - np.nanmean(first, dtype=np.float64), 0)
    q = np.where(counts, second - np.nanmean(second, dtype=np.float64), 0)
    return block_sums(np.stack([counts, p, q, p * p, q * q, p * q]), block)


def _covariances(sums: Floats) -> tuple[Floats, Floats, Floats]:
    """Variance of p, variance of q and covariance, from sums of :func:`_moments`."""
    n, p, q, pp, qq, pq = np.moveaxis(sums, -1, 0)
    return pp / n - (p / n) ** 2, qq / n - (q / n) ** 2, pq / n - p * q / n**2


def leakage(denoised: Floats, residual: Floats, block: int = BLOCK_PX) -> Interval:
    """Correlate the residual with the denoised image: structure that leaked out of it shows here.

    Parameters
    ----------
    denoised : numpy.ndarray
        ``(n, y, x)`` ``f(A)``.
    residual : numpy.ndarray
        ``(n, y, x)`` ``B - f(A)``.
    block : int
        Side in pixels of the blocks that are resampled.

    Returns
    -------
    Interval
        Correlation in [-1, 1]; 0 when no structure leaked.
    """

    def correlation(sums: Floats) -> Floats:
        var_d, var_r, both = _covariances(sums)
        return np.asarray(both / np.sqrt(np.maximum(var_d * var_r, np.finfo(float).tiny)))

    return bootstrap(_moments(denoised, residual, block), correlation)


class Calibration(NamedTuple):
    """The line ``B ≈ slope f(A) + intercept``."""

    slope: Interval
    """1 when contrast is right; below 1 the network exaggerates it, above 1 it flattens it."""
    intercept: float
    """In the images' unit; 0 when brightness is right."""


def calibration(denoised: Floats, other: Floats, block: int = BLOCK_PX) -> Calibration:
    """Regress the raw half that the network did not see on the denoised half.

    Parameters
    ----------
    denoised, other : numpy.ndarray
        ``(n, y, x)`` ``f(A)`` and B.
    block : int
        Side in pixels of the blocks that are resampled.

    Returns
    -------
    Calibration
        Slope with its bootstrap interval, and intercept.
    """

    def slope(sums: Floats) -> Floats:
        var_d, _, both = _covariances(sums)
        return np.asarray(both / np.maximum(var_d, np.finfo(float).tiny))

    interval = bootstrap(_moments(denoised, other, block), slope)
    mean, other_mean = np.nanmean(denoised, dtype=np.float64), np.nanmean(other, dtype=np.float64)
    return Calibration(interval, float(other_mean - interval.value * mean))


def normalised_variance(residual: Floats, variance: Floats) -> float:
    """Variance of the residual in units of the noise that a camera model predicts.

    Parameters
    ----------
    residual : numpy.ndarray
        ``(n, y, x)`` ``B - f(A)``.
    variance : numpy.ndarray
        ``(n, y, x)`` predicted noise variance of B: ``(g f(A) + σ²) / frames averaged``.

    Returns
    -------
    float
        1 when the residual is noise alone; more by what of the signal was missed.
    """
    z = residual / np.sqrt(np.maximum(variance, np.finfo(np.float32).tiny))
    return float(np.nanvar(z, dtype=np.float64))
