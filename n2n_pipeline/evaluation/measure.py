"""The figures of METRICS on samples of a denoised movie: each a few numbers, none of them made with a truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from n2n_pipeline.evaluation.samples import (
    REGION_PX,
    Place,
    Sample,
    Subject,
    read_frames,
)
from n2n_pipeline.geometry import plan_tiles
from n2n_pipeline.metrics.artefacts import Seam, find_seams, seam_metric
from n2n_pipeline.metrics.bootstrap import Interval
from n2n_pipeline.metrics.frc import TrueCorrelation, correlation_with_signal
from n2n_pipeline.metrics.noise import (
    PhotonTransfer,
    photon_transfer,
)
from n2n_pipeline.metrics.residuals import (
    Calibration,
    autocorrelation,
    calibration,
    leakage,
    normalised_variance,
    radial_profile,
    structure_left,
)
from n2n_pipeline.metrics.unsupervised import (
    error_of_mean,
    unsupervised_error,
    unsupervised_mse,
    unsupervised_psnr,
)

Floats = npt.NDArray[np.floating[Any]]

GAUSSIANS_PX = (0.0, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Standard deviations of the filters that the network has to better; 0 is the plain average of the window."""
CHARGE_BIN_PX = 4
SEAM_PIXELS = 2**25
DIMMEST = 0.25
"""Of the mean noise variance: no pixel is taken to be quieter, even where the network's output is below zero."""


class Errors(NamedTuple):
    """Mean squared errors in squared units of the movie, estimated without a truth."""

    output: Interval
    """uMSE of the output, the mean of both denoised halves."""
    average: Interval
    """That of the plain average of the window."""
    gaussian: Interval
    """That of the best Gaussian filter of the average."""
    gaussian_px: float
    """Its standard deviation."""
    excess: Interval
    """Output less best Gaussian; below 0 where the network is better."""
    peak: float
    """Range of the Gaussian-filtered average between percentiles 0.1 and 99.9, in units of the movie."""
    psnr_db: Interval
    """uPSNR of the output at that peak."""
    signal_variance: float
    """Covariance of the raw halves."""

    @property
    def largest_ratio(self) -> float:
        """Output's error over the best Gaussian's, at the unfavourable end of both intervals.

        Both errors hold the same chance part, which is large where the movie is faint; it cancels in their
        difference, so that this is known far better than either.
        """
        return 1 + self.excess.high / max(self.gaussian.high, 1e-30)


def _rows(samples: Sequence[Sample], pick: str, swap: bool = False) -> Floats:
    """Stack one member of the samples, ``(2 n, y, x)``: even halves, then odd ones, or the other way round."""
    order = (1, 0) if swap else (0, 1)
    return np.stack([getattr(sample, pick)[half] for half in order for sample in samples])


def measure_errors(samples: Sequence[Sample]) -> Errors | None:
    """Estimate the error of the output, and of what could have been had without a network.

    Returns
    -------
    Errors or None
        None where the movie has too few frames for independent copies.
    """
    if any(sample.copies is None for sample in samples):
        return None
    network = map_errors(samples, [sample.denoised for sample in samples])
    filtered = [[tuple(_blur(half, sigma) for half in sample.raw) for sample in samples] for sigma in GAUSSIANS_PX]
    rivals = [map_errors(samples, halves) for halves in filtered]
    best = int(np.argmin([np.nanmean(rival) for rival in rivals]))
    peak = float(np.ptp(np.percentile([np.mean(pair, axis=0) for pair in filtered[best]], [0.1, 99.9])))
    error = unsupervised_mse(network)
    return Errors(
        output=error,
        average=unsupervised_mse(rivals[0]),
        gaussian=unsupervised_mse(rivals[best]),
        gaussian_px=GAUSSIANS_PX[best],
        excess=unsupervised_mse(network - rivals[best]),
        peak=peak,
        psnr_db=unsupervised_psnr(error, peak),
        signal_variance=_signal_variance(samples),
    )


def map_errors(samples: Sequence[Sample], halves: Sequence[Sequence[Floats]]) -> Floats:
    """Estimate the squared error, pixel by pixel, of the mean of two halves that were denoised in any way.

    Parameters
    ----------
    samples : sequence of Sample
        What the halves were made of; each has independent copies.
    halves : sequence of pair of numpy.ndarray
        For each sample the denoised even and odd half.

    Returns
    -------
    numpy.ndarray
        ``(sample, y, x)``, in squared units of the movie.
    """
    maps = []
    for (even, odd), sample in zip(halves, samples, strict=True):
        if sample.copies is None:
            raise ValueError("a sample without copies has no error to estimate")
        errors = unsupervised_error(even, sample.copies[0]), unsupervised_error(odd, sample.copies[1])
        maps.append(error_of_mean(errors, (even, odd)))
    return np.stack(maps)


def _blur(image: Floats, sigma: float) -> Floats:
    return np.asarray(ndimage.gaussian_filter(image, sigma, mode="mirror") if sigma else image)


def _signal_variance(samples: Sequence[Sample]) -> float:
    return float(np.mean([np.cov(even.ravel(), odd.ravel())[0, 1] for even, odd in (s.raw for s in samples)]))


def measure_detail(samples: Sequence[Sample], n_frames: int, window: int) -> TrueCorrelation:
    """Correlate denoised halves with the raw halves that the network did not see.

    Parameters
    ----------
    samples : sequence of Sample
        Both halves of each play both parts.
    n_frames : int
        Frames of the movie.
    window : int
        Frames per window; windows of several samples may overlap.
    """
    independent = min(1.0, n_frames / (window * len(samples))) / 2
    denoised, raw = _rows(samples, "denoised"), _rows(samples, "raw")
    return correlation_with_signal(denoised, raw, _rows(samples, "raw", swap=True), independent)


class Residuals(NamedTuple):
    """The other raw half less the denoised one."""

    leakage: Interval
    """Correlation with the denoised half."""
    calibration: Calibration
    structure_left: float
    """Mean excess of its autocorrelation, up to 4 px, over that of the noise."""
    autocorrelation: Floats
    """``(9,)`` for lags of 0 to 8 px."""
    noise_autocorrelation: Floats
    """The same of differences of the raw halves, which hold no signal."""
    variance_ratio: float
    """Variance over what the camera's noise predicts."""


def measure_residuals(samples: Sequence[Sample], camera: PhotonTransfer) -> Residuals:
    """Look for signal in what the network left over.

    Parameters
    ----------
    samples : sequence of Sample
        Both halves of each are held against the other.
    camera : PhotonTransfer
        Noise of single pixels.
    """
    denoised, other = _rows(samples, "denoised"), _rows(samples, "raw", swap=True)
    counts = _rows(samples, "counts", swap=True)
    residual = other - denoised
    noise = np.stack([sample.raw[0] - sample.raw[1] for sample in samples])
    whole = counts == counts.max()
    expected = (camera.gain * denoised + camera.read_variance) / counts.max()
    expected = np.maximum(expected, DIMMEST * np.mean(expected))
    return Residuals(
        leakage=leakage(np.where(whole, denoised, np.nan), residual),
        calibration=calibration(np.where(whole, denoised, np.nan), other),
        structure_left=structure_left(residual, noise),
        autocorrelation=radial_profile(autocorrelation(residual)),
        noise_autocorrelation=radial_profile(autocorrelation(noise)),
        variance_ratio=normalised_variance(np.where(whole, residual, np.nan), expected),
    )


class Camera(NamedTuple):
    """Noise model of the camera, from one window."""

    pixels: PhotonTransfer
    """Of single pixels."""
    binned: PhotonTransfer
    """Of 4 × 4 pixels, which charge shared between neighbours hardly touches: the gain to quote."""


def measure_camera(subject: Subject, sample: Sample) -> Camera:
    """Fit the noise of each half's frames against the other half, denoised."""
    even, odd = read_frames(subject, sample.place)
    if min(len(even), len(odd)) < 2:
        even, odd = np.concatenate([even, odd]), np.concatenate([odd, even])  # a window of two or three frames
    length = min(len(even), len(odd))
    frames = np.concatenate([odd[:length], even[:length]], axis=1)
    level = np.concatenate(sample.denoised)
    return Camera(photon_transfer(frames, level), photon_transfer(frames, level, side=CHARGE_BIN_PX))


def signal_limit(detail: TrueCorrelation) -> float:
    """Return the frequency, in cycles per pixel, up to which the raw halves share what stands out of the noise."""
    told = np.isfinite(detail.raw)
    return float(detail.frequency[told].max()) if told.any() else 0.0


def noise_of_average(samples: Sequence[Sample]) -> float:
    """Return the variance of the noise in a window's average, both halves together."""
    return float(np.mean([np.var(even - odd, dtype=np.float64) / 4 for even, odd in (s.raw for s in samples)]))


class Agreement(NamedTuple):
    """How the stored output compares with what the network gives now."""

    difference: float
    """Root mean square, over the standard deviation of the output."""
    finite: bool
    mean_offset: float
    """Mean of the output less that of the raw halves, over the standard deviation of the output."""


def measure_agreement(samples: Sequence[Sample]) -> Agreement:
    """Hold the stored output against a fresh one, and against the raw movie's brightness."""
    stored = np.stack([sample.stored for sample in samples]).astype(np.float64)
    fresh = np.stack([sample.placed for sample in samples])
    raw = np.stack([np.mean(sample.raw, axis=0) for sample in samples])
    finite = bool(np.isfinite(stored).all())
    spread = max(float(np.nanstd(stored)), float(np.finfo(np.float32).tiny))
    difference = float(np.sqrt(np.nanmean((stored - fresh) ** 2))) / spread
    return Agreement(difference, finite, float(np.nanmean(stored) - raw.mean()) / spread)


class Seams(NamedTuple):
    """Where the output jumps along a line from edge to edge."""

    lines: list[Seam]
    """The strongest first."""
    tile_excess: float
    """Relative excess of the steps across the borders of the tiles that were used; 0 where there was one tile."""


def measure_seams(places: Sequence[Place], subject: Subject) -> Seams:
    """Look for seams in whole stored frames: three small ones, one large one, or a strip of a montage."""
    _, height, width = subject.output.info.shape
    first, *origin = (part.start for part in subject.part)
    rows = slice(0, min(height, max(SEAM_PIXELS // width, REGION_PX)))
    chosen = places[:3] if 4 * height * width <= SEAM_PIXELS else places[:1]
    frames = [subject.output.read(slice(p.t - first, p.t - first + 1), rows)[0] for p in chosen]
    images = np.nan_to_num(np.stack(frames).astype(np.float32))
    plan = plan_tiles(subject.inputs.shape, subject.tiling, subject.part[1:])
    excess = [
        seam_metric(images, axis, [span.core.start - start for span in spans[1:]])
        for axis, spans, start in zip((1, 2), (plan.rows, plan.columns), origin, strict=True)
    ]
    return Seams(find_seams(images), max(excess))
