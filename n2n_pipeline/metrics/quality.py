"""How close frames are to a known truth; only a simulated movie has one.

Each frame is scored on its own: a border is left out, and brightness and contrast are fitted first, so that
neither a camera's gain nor the choice of counts or electrons changes a score.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity

Floats = npt.NDArray[np.floating[Any]]

BORDER_PX = 16


class Scores(NamedTuple):
    """Scores of a frame, or their mean over the frames of a movie."""

    snr_db: float
    """Variance of the truth over the mean squared error, in dB."""
    psnr_db: float
    """Squared range of the truth over the mean squared error, in dB."""
    ssim: float
    """Structural similarity, at most 1."""


def fit_to_truth(values: Floats, truth: Floats) -> Floats:
    """Scale and offset an image to meet the truth in the least-squares sense: ``truth ~ a values + b``.

    Parameters
    ----------
    values, truth : numpy.ndarray
        Of one shape; any units.

    Returns
    -------
    numpy.ndarray
        float64, in the truth's unit; the truth's mean where the image is constant.
    """
    centred = values - np.mean(values, dtype=np.float64)
    power = np.vdot(centred, centred)
    slope = np.vdot(centred, truth) / power if power > 0 else 0.0
    return np.asarray(slope * centred + np.mean(truth, dtype=np.float64))


def score_frame(values: Floats, truth: Floats, border: int = BORDER_PX) -> Scores:
    """Score one frame against its truth.

    Parameters
    ----------
    values, truth : numpy.ndarray
        ``(y, x)``, of one shape; any units.
    border : int
        Pixels left out along each edge.

    Returns
    -------
    Scores
        SNR and PSNR are infinite where the fit is perfect; SSIM is not a number where the truth is constant.

    Raises
    ------
    ValueError
        If the shapes differ or no pixel is left inside the border.

    References
    ----------
    SSIM is scikit-image's: Wang, Bovik, Sheikh & Simoncelli (2004), IEEE Trans. Image Process. 13, 600-612.
    """
    if values.shape != truth.shape or min(truth.shape) <= 2 * border:
        raise ValueError(
            f"frame {values.shape} and truth {truth.shape} must be of one shape, above {2 * border} px"
        )
    inside = (slice(border, truth.shape[0] - border), slice(border, truth.shape[1] - border))
    wanted = truth[inside].astype(np.float64)
    fitted = fit_to_truth(values[inside].astype(np.float64), wanted)
    peak = float(np.ptp(wanted))
    with np.errstate(divide="ignore", invalid="ignore"):
        mse = np.mean((wanted - fitted) ** 2)
        snr, psnr = 10 * np.log10([np.var(wanted) / mse, peak**2 / mse])
    ssim = structural_similarity(wanted, fitted, data_range=peak) if peak > 0 else np.nan  # type: ignore[no-untyped-call]
    return Scores(float(snr), float(psnr), float(ssim))


def score_movie(frames: Iterable[tuple[Floats, Floats]]) -> Scores:
    """Score a movie: the mean of its frames' scores.

    Parameters
    ----------
    frames : iterable of (numpy.ndarray, numpy.ndarray)
        Each frame ``(y, x)`` with its truth; taken one at a time.

    Returns
    -------
    Scores
        Means over the frames.
    """
    return Scores(*map(float, np.mean([score_frame(values, truth) for values, truth in frames], axis=0)))
