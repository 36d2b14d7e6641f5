"""Fourier ring correlation: what two independent images of one scene share, ring by ring in Fourier space.

Two raw halves may be compared with each other, and a denoised half with the *other* raw half. Two denoised
halves may not: they share the network, so whatever it invents correlates perfectly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft

Floats = npt.NDArray[np.floating[Any]]


class Rings(NamedTuple):
    """A correlation for each ring, from frequency 0 to Nyquist."""

    frequency: Floats
    """``(n_rings,)`` 1/Å (cycles per pixel over Å per pixel)."""
    correlation: Floats
    """``(n_rings,)`` in [-1, 1]; not a number where a ring holds no power."""
    coefficients: Floats
    """``(n_rings,)`` independent complex coefficients in each ring."""


class RingPower(NamedTuple):
    """Sums over each ring: ``(n_rings,)`` each."""

    cross: Floats
    """Real part of the cross spectrum."""
    first: Floats
    second: Floats
    coefficients: Floats
    """Independent complex coefficients."""


def _ring_of(shape: tuple[int, int]) -> tuple[npt.NDArray[np.intp], Floats]:
    """Ring of each coefficient of a real transform, and how many of the full one it stands for."""
    height, width = shape
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    times = np.full(radius.shape, 2.0)
    times[:, 0] = 1
    if width % 2 == 0:
        times[:, -1] = 1
    return np.rint(radius * min(shape)).astype(np.intp), times


def _taper(shape: tuple[int, int]) -> Floats:
    return np.outer(np.hanning(shape[0] + 2)[1:-1], np.hanning(shape[1] + 2)[1:-1])


def independent_fraction(shape: tuple[int, int]) -> float:
    """Return the fraction of neighbouring Fourier coefficients on a line that the taper leaves independent.

    Parameters
    ----------
    shape : tuple of int
        ``(y, x)``.

    Returns
    -------
    float
        About 0.51; its square for a band that is much wider than a pixel.

    References
    ----------
    Welch (1967), IEEE Trans. Audio Electroacoust. 15, 70-73: variance of spectra under a data window.
    """
    taper = _taper(shape)
    return float(np.sum(taper**2) / np.sqrt(taper.size * np.sum(taper**4)))


def ring_power(first: Floats, second: Floats) -> RingPower:
    """Sum cross spectrum and power over rings one pixel wide, and over the images of a stack.

    The mean is removed and a Hann window applied. It ties each coefficient to its neighbours: along a ring about
    half of them stay independent (the window's equivalent number on one axis).

    Parameters
    ----------
    first, second : numpy.ndarray
        ``(y, x)`` or ``(n, y, x)``, of one shape.

    Returns
    -------
    RingPower
        Rings 0 to Nyquist of the shorter side.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"images must be of one shape, not {first.shape} and {second.shape}")
    shape = first.shape[-2:]
    taper = _taper(shape)
    independent = independent_fraction(shape) / 2  # one half is the other's conjugate
    ring, times = _ring_of(shape)
    n_rings = min(shape) // 2 + 1
    sums = np.zeros((4, n_rings))
    for one, two in zip(first.reshape(-1, *shape), second.reshape(-1, *shape), strict=True):
        p, q = (fft.rfft2((image - image.mean(dtype=np.float64)) * taper) for image in (one, two))
        parts = (np.real(p * np.conj(q)), np.abs(p) ** 2, np.abs(q) ** 2, np.full(p.shape, independent))
        for total, part in zip(sums, parts, strict=True):
            total += np.bincount(ring.ravel(), (times * part).ravel())[:n_rings]
    return RingPower(*sums)


def fourier_ring_correlation(even: Floats, odd: Floats, pixel_size: float = 1.0) -> Rings:
    """Correlate two images of one field of view, ring by ring in Fourier space.

    Parameters
    ----------
    even, odd : numpy.ndarray
        ``(y, x)`` images whose noise is independent, or ``(n, y, x)`` stacks of them that are summed over.
    pixel_size : float
        Å per pixel; 1 gives cycles per pixel.

    Returns
    -------
    Rings
        Rings are one pixel wide (of the shorter side).

    Raises
    ------
    ValueError
        If the images are not of one shape.

    References
    ----------
    Saxton & Baumeister (1982), J. Microsc. 127, 127-138.
    """
    power = ring_power(even, odd)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = power.cross / np.sqrt(power.first * power.second)
    frequency = np.arange(len(correlation)) / min(even.shape[-2:]) / pixel_size
    return Rings(frequency, correlation, power.coefficients)


def half_bit_threshold(coefficients: Floats | float) -> Floats:
    """Correlation above which a ring carries half a bit of information per coefficient.

    Parameters
    ----------
    coefficients : numpy.ndarray or float
        Independent complex coefficients in the ring.

    Returns
    -------
    numpy.ndarray
        ``T(n) = (0.2071 + 1.9102 / √n) / (1.2071 + 0.9102 / √n)``; 1 for an empty ring.

    References
    ----------
    van Heel & Schatz (2005), J. Struct. Biol. 151, 250-262, eq. 17.

    Examples
    --------
    >>> half_bit_threshold(float("inf")).round(4)
    np.float64(0.1716)
    """
    root = np.sqrt(np.maximum(coefficients, 1.0))
    return np.minimum((0.2071 + 1.9102 / root) / (1.2071 + 0.9102 / root), 1.0)


def standard_error(rings: Rings) -> Floats:
    """Give each ring's standard error, ``(1 - ρ²) / √(2n)`` for ``n`` independent complex coefficients.

    Parameters
    ----------
    rings : Rings
        Of :func:`fourier_ring_correlation`.

    Returns
    -------
    numpy.ndarray
        ``(n_rings,)``.
    """
    return np.asarray((1 - rings.correlation**2) / np.sqrt(2 * np.maximum(rings.coefficients, 0.5)))


class TrueCorrelation(NamedTuple):
    """Correlation with the true signal, ring by ring, ``(n_rings,)`` each; NaN where the halves do not tell."""

    frequency: Floats
    """Cycles per pixel."""
    denoised: Floats
    """R(r) of the denoised half."""
    error: Floats
    """Its standard error."""
    raw: Floats
    """That of the raw half, √FRC(A, B): what no filter of single rings betters."""
    halves: Floats
    """FRC(A, B) itself, for all rings."""
    threshold: Floats
    """Half-bit threshold, for all rings."""


def correlation_with_signal(
    denoised: Floats, even: Floats, odd: Floats, independent: float = 1.0
) -> TrueCorrelation:
    """Correlate a denoised even half with the true signal, which nobody has seen, through the raw odd half.

    ``FRC(f(A), B)`` falls short of the correlation with the signal by that of B with the signal, which is
    ``√FRC(A, B)``. So ``R(r) = FRC(f(A), B) / √FRC(A, B)``, where FRC(A, B) exceeds the half-bit threshold.

    Parameters
    ----------
    denoised : numpy.ndarray
        ``(y, x)`` or ``(n, y, x)`` ``f(A)``, made without B.
    even, odd : numpy.ndarray
        Raw halves A and B, of the same shape.
    independent : float
        Share of the stack that counts as independent: below 1 where its windows have frames in common.

    Returns
    -------
    TrueCorrelation
        Above 1 by no more than its error allows; in the mean it is unbiased.

    Raises
    ------
    ValueError
        If the images are not of one shape.

    References
    ----------
    Rosenthal & Henderson (2003), J. Mol. Biol. 333, 721-745: √ of a half-map FSC estimates the correlation with
    the truth (their C_ref, there of the full map).
    """
    halves, across = fourier_ring_correlation(even, odd), fourier_ring_correlation(denoised, odd)
    halves, across = (rings._replace(coefficients=independent * rings.coefficients) for rings in (halves, across))
    threshold = half_bit_threshold(halves.coefficients)
    told = halves.correlation > threshold
    told[0] = False  # the mean was removed: what the taper leaves there correlates by itself
    with np.errstate(invalid="ignore", divide="ignore"):
        raw = np.where(told, np.sqrt(np.where(told, halves.correlation, 0)), np.nan)
        ratio = across.correlation / raw
        error = np.hypot(standard_error(across) / raw, ratio * standard_error(halves) / (2 * halves.correlation))
    return TrueCorrelation(
        halves.frequency, ratio, np.where(told, error, np.nan), raw, halves.correlation, threshold
    )
