"""The camera's noise, measured on the movie: gain, read noise, lag between frames, patterns that stay."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft

from n2n_pipeline.metrics.frc import fourier_ring_correlation, independent_fraction, ring_power

Floats = npt.NDArray[np.floating[Any]]


class PhotonTransfer(NamedTuple):
    """The line ``variance = gain · mean + read variance``, for one frame."""

    gain: float
    """Counts per electron; more where a camera does not count, and electrons leave unequal charges."""
    read_variance: float
    """Squared counts per frame; its root is the read noise. Below 0 where it is too small to tell."""
    gain_error: float
    """Standard error of the gain."""
    mean: Floats
    """``(bins,)`` mean counts of the bins the line was fitted to."""
    variance: Floats
    """``(bins,)`` their temporal variance."""


def clipped_deviation(values: Floats) -> float:
    """Return the standard deviation of values whose outliers are clipped to the central 99 %.

    0 only where all are equal. Unlike quantiles it does not jump from count to count, and unlike a median
    deviation it sees that a tenth of the field is far brighter than the rest.

    Examples
    --------
    >>> round(clipped_deviation(np.array([0.0, 2.0] * 500 + [1e6])), 2)
    1.0
    """
    if not len(values):
        return 0.0
    clipped = values.clip(*np.percentile(values, (0.5, 99.5)))
    return float(clipped.std(dtype=np.float64)) or float(values.std(dtype=np.float64))


def bin_sums(images: Floats, side: int) -> Floats:
    """Sum ``side × side`` pixels into one."""
    height, width = (length // side * side for length in images.shape[-2:])
    blocks = images[..., :height, :width].reshape(*images.shape[:-2], height // side, side, width // side, side)
    return np.asarray(blocks.sum(axis=(-3, -1), dtype=np.float64))


def _fit_line(x: Floats, y: Floats, error: Floats) -> tuple[float, float, float]:
    """Fit slope, intercept and slope's error; points beyond 1.345 errors weigh less (Huber 1964)."""
    weight = 1 / error**2
    for _ in range(20):
        mean_x, mean_y = np.average(x, weights=weight), np.average(y, weights=weight)
        spread = float(np.sum(weight * (x - mean_x) ** 2))
        slope = float(np.sum(weight * (x - mean_x) * (y - mean_y))) / max(spread, np.finfo(float).tiny)
        off = np.abs(y - mean_y - slope * (x - mean_x)) / error
        weight = np.minimum(1, 1.345 / np.maximum(off, 1e-9)) / error**2
    return slope, float(mean_y - slope * mean_x), spread**-0.5 if spread > 0 else float("inf")


def photon_transfer(frames: Floats, level: Floats, bins: int = 32, side: int = 1) -> PhotonTransfer:
    """Fit noise variance against mean over differences of neighbouring frames.

    Pixels are sorted into bins of equal number by a level that was made from *other* frames: sorting by the
    frames' own mean would put chance highs together and bias the gain.

    Parameters
    ----------
    frames : numpy.ndarray
        ``(t, y, x)`` corrected counts of a scene at rest; taken in pairs, an odd last one is left out. Pixels that
        are NaN in one of them are left out as well.
    level : numpy.ndarray
        ``(y, x)`` expected counts, independent of ``frames``: a denoised half.
    bins : int
        How many.
    side : int
        Sum so many by so many pixels first: charge shared by neighbours lowers the gain of single pixels.

    Returns
    -------
    PhotonTransfer
        Per pixel and frame, whatever ``side`` is.

    Raises
    ------
    ValueError
        If hardly a pixel is valid in all frames.

    References
    ----------
    Janesick (2007), Photon Transfer, SPIE Press, ch. 5.
    """
    pairs = len(frames) // 2
    binned = bin_sums(frames[: 2 * pairs], side) / side**2
    mean_of = np.mean((binned[0::2] + binned[1::2]) / 2, axis=0).ravel()
    square_of = np.mean((binned[0::2] - binned[1::2]) ** 2 / 2, axis=0).ravel() * side**2
    order = np.argsort(bin_sums(level, side), axis=None)
    order = order[np.isfinite(mean_of[order])]
    if order.size < 2:
        raise ValueError(f"{order.size} pixels are valid in all frames, need at least 2")
    parts = np.array_split(order, min(bins, max(2, order.size // 16)))
    mean = np.array([mean_of[part].mean() for part in parts])
    variance = np.array([square_of[part].mean() for part in parts])
    error = np.array([square_of[part].std() / np.sqrt(len(part)) for part in parts])
    gain, offset, gain_error = _fit_line(mean, variance, np.maximum(error, 1e-6 * variance.max() + 1e-30))
    return PhotonTransfer(gain, offset, gain_error, mean, variance)


def high_pass(frames: Floats, cutoff: float) -> Floats:
    """Keep what is finer than a frequency, where a scene has no signal left and only noise remains.

    Parameters
    ----------
    frames : numpy.ndarray
        ``(t, y, x)``.
    cutoff : float
        Cycles per pixel.

    Returns
    -------
    numpy.ndarray
        float32, of the same shape.
    """
    height, width = frames.shape[-2:]
    keep = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) >= cutoff
    return np.asarray(fft.irfft2(fft.rfft2(frames) * keep, s=(height, width)), dtype=np.float32)


class Independence(NamedTuple):
    """Whether the noise of one frame tells anything of the next."""

    lag_two: float
    """``corr(x_t - x_{t+2}, x_{t+1} - x_{t+3})``; 0 for independent noise."""
    lag_one: float
    """``corr(x_{t+1} - x_t, x_{t+2} - x_{t+1})``; -1/2 for independent noise."""
    z: float
    """``lag_two √n``: how far beyond chance."""


def frame_independence(frames: Floats, cutoff: float = 0.0) -> Independence:
    """Correlate differences of frames that share no frame.

    Detector lag, dark or gain errors that wander, and motion all push both numbers up.

    Parameters
    ----------
    frames : numpy.ndarray
        ``(t, y, x)`` with t ≥ 4, consecutive.
    cutoff : float
        Cycles per pixel; only what is finer is looked at.

    Returns
    -------
    Independence
        Over all groups of four frames, disjoint so that ``n`` counts independent samples.

    Raises
    ------
    ValueError
        If there are fewer than four frames.
    """
    if len(frames) < 4:
        raise ValueError(f"{len(frames)} frames, need at least 4")
    groups = len(frames) // 4
    x = high_pass(frames[: 4 * groups], cutoff).reshape(groups, 4, -1).astype(np.float64)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    samples = groups * x.shape[-1] * float(np.mean(frequency >= cutoff))

    def correlate(p: Floats, q: Floats) -> float:
        p, q = p - p.mean(axis=-1, keepdims=True), q - q.mean(axis=-1, keepdims=True)
        power = np.vdot(p, p) * np.vdot(q, q)
        return float(np.vdot(p, q) / np.sqrt(power)) if power > 0 else 0.0

    lag_two = correlate(x[:, 0] - x[:, 2], x[:, 1] - x[:, 3])
    lag_one = correlate(x[:, 1] - x[:, 0], x[:, 2] - x[:, 1])
    return Independence(lag_two, lag_one, lag_two * samples**0.5)


class FixedPattern(NamedTuple):
    """What both halves share at the finest frequencies, where no object reaches."""

    plateau: float
    """FRC there; 0 without a pattern."""
    z: float
    """How far beyond chance."""
    amplitude: float
    """Root mean square of the pattern, in the images' unit, taken as white."""


def fixed_pattern(even: Floats, odd: Floats, cutoff: float = 0.4) -> FixedPattern:
    """Measure the plateau of the FRC near Nyquist: dark, gain or hot-pixel errors common to both halves.

    Parameters
    ----------
    even, odd : numpy.ndarray
        ``(y, x)`` or ``(n, y, x)`` raw halves in the camera's frame of reference.
    cutoff : float
        Cycles per pixel above which the object has no detail.

    Returns
    -------
    FixedPattern
        Noise2Noise keeps such a pattern, since it is the same in both halves.

    References
    ----------
    Saxton & Baumeister (1982), J. Microsc. 127, 127-138.
    """
    rings, power = fourier_ring_correlation(even, odd), ring_power(even, odd)
    top = rings.frequency >= cutoff
    cross, count = float(power.cross[top].sum()), float(power.coefficients[top].sum())
    both = float(np.sqrt(power.first[top].sum() * power.second[top].sum()))
    plateau = cross / both if both > 0 else 0.0
    variance = np.sqrt(np.var(even, dtype=np.float64) * np.var(odd, dtype=np.float64))
    share = both / max(float(np.sqrt(power.first.sum() * power.second.sum())), np.finfo(float).tiny)
    fraction = float(power.coefficients[top].sum() / power.coefficients.sum())
    amplitude = np.sqrt(max(plateau, 0.0) * variance * share / fraction)
    samples = 2 * count * independent_fraction(even.shape[-2:])  # rings are not independent of the next
    return FixedPattern(plateau, float(plateau * np.sqrt(samples)), float(amplitude))
