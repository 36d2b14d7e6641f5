"""What the figures mean, in one sentence each for a microscopist: what was seen, and what to do.

``pass``: nothing to see to. ``look``: usable, but look at this first. ``fail``: do not trust the output.
"""

from __future__ import annotations

import numpy as np

from n2n_pipeline.diagnostics import Level, Verdict
from n2n_pipeline.evaluation.measure import Agreement, Camera, Errors, Residuals, Seams
from n2n_pipeline.metrics.frc import TrueCorrelation

# Where a check begins to say ``look``, and ``fail``.
WORSE = (1.0, 1.5)
"""Mean squared error over that of the best Gaussian filter."""
LITTLE_DB = 0.5
"""A gain under this is not worth a network's risk."""
CONTRAST = (0.15, 0.5)
"""Distance from 1 of the whole interval of the contrast."""
VAGUE = 0.4
"""An interval of the contrast so wide says little."""
STRUCTURE = 0.05
"""Correlation of the residual with the output, or with its own neighbours beyond the camera's."""
LEFT_OVER = (0.7, 1.5)
"""Least and largest variance of the residual over what the camera's noise predicts."""
SEAM_FAIL = 1.0
"""Excess of the jumps along a seam."""
DIFFERS = (0.05, 0.2)
"""Root mean square difference of stored and fresh output, over the output's standard deviation."""
OFFSET = (0.1, 0.5)
"""Difference of mean brightness, over the output's standard deviation."""


def judge_error(errors: Errors | None, steps: int) -> Verdict:
    """Compare the network with the best that plain averaging and smoothing do.

    Parameters
    ----------
    errors : Errors or None
        None where the movie has too few frames.
    steps : int
        Updates that the network was trained for, to name as a cause.
    """
    if errors is None:
        text = (
            "The movie has too few frames to measure the error without a truth; compare output and raw "
            "frames by eye."
        )
        return Verdict("error", "look", text)
    rival = f"a Gaussian filter of {errors.gaussian_px:g} px" if errors.gaussian_px else "the plain average"
    ratio = errors.output.value / max(errors.gaussian.value, errors.gaussian.high / 4, 1e-30)
    if errors.excess.low > 0 and ratio > WORSE[1]:
        text = (
            f"The network (trained for {steps} steps) is worse than {rival}: its mean squared error is "
            f"{ratio:.2g} times as large. Do not use this output; train longer, or on more of the movie."
        )
        return Verdict("error", "fail", text)
    if errors.excess.high >= 0 or ratio > WORSE[0]:
        text = (
            f"The network is no better than {rival} on the window average ({max(ratio, 0.0):.2f} times its "
            "error): this movie leaves little to gain, or the network needs more training. Compare both "
            "before drawing conclusions."
        )
        return Verdict("error", "look", text)
    gain_db = -10 * np.log10(max(errors.largest_ratio, 0.01))
    little = " This movie leaves little to gain: compare with the average too." if gain_db < LITTLE_DB else ""
    text = (
        f"The error of the output is at least {gain_db:.1f} dB below that of {rival}, the best that plain "
        "smoothing of the window average does, measured against frames that were kept out of the network's "
        f"input.{little}"
    )
    return Verdict("error", "pass", text)


def judge_detail(detail: TrueCorrelation, pixel_size: float | None) -> Verdict:
    """Ask whether the output keeps, at each frequency, what the raw half already showed."""
    told = np.isfinite(detail.denoised)
    if told.sum() < 3:
        text = (
            "The raw halves share nothing that stands out of the noise, so it cannot be told whether the "
            "output shows the object. Use a larger window, or do not rely on this output."
        )
        return Verdict("detail", "look", text)
    shortfall = (detail.raw - detail.denoised)[told]
    lost = shortfall > np.maximum(3 * detail.error[told], 0.05)
    finest = _length(float(detail.frequency[told].max()), pixel_size)
    mean = float(np.mean(detail.denoised[told]))
    if np.mean(shortfall) > 0.25 and lost.mean() > 0.5:
        text = (
            f"The output follows the object far less well than the raw average does (correlation {mean:.2f} "
            f"instead of {np.mean(detail.raw[told]):.2f}, down to {finest}). Do not use it; train longer."
        )
        return Verdict("detail", "fail", text)
    if lost.mean() > 0.1:
        where = detail.frequency[told][lost]
        band = f"{_length(float(where.min()), pixel_size)} and {_length(float(where.max()), pixel_size)}"
        text = (
            f"Between {band} the output follows the object less well than the raw average: detail is lost "
            "there. Train longer, and check small features against the window average."
        )
        return Verdict("detail", "look", text)
    text = (
        f"Down to {finest}, where the raw halves stop agreeing, the output follows the object at least as "
        f"well as the raw average (mean correlation with the true signal {mean:.2f})."
    )
    return Verdict("detail", "pass", text)


def _length(frequency: float, pixel_size: float | None) -> str:
    """Write a frequency in cycles per pixel as the length of one period."""
    if frequency <= 0:
        return "the whole field"
    return f"{pixel_size / frequency:.3g} Å" if pixel_size else f"{1 / frequency:.3g} px"


def judge_contrast(residuals: Residuals) -> Verdict:
    """Ask whether contrast is right: the raw half that the network did not see, over the output."""
    slope = residuals.calibration.slope
    outside = max(slope.low - 1, 1 - slope.high)  # how far the whole interval is from 1
    level: Level = "fail" if outside > CONTRAST[1] else "look"
    if outside > CONTRAST[0] and slope.value > 1:
        text = (
            f"The output is too flat: the object is {slope.value:.2f} times as strong in the raw data. Train "
            "longer, and measure intensities in the window average."
        )
        return Verdict("contrast", level, text)
    if outside > CONTRAST[0]:
        text = (
            f"The output is too strong: only {slope.value:.2f} of its contrast is in the raw half that the "
            "network was not given, so it copies noise or invents structure. Train longer, or on more data."
        )
        return Verdict("contrast", level, text)
    interval = f"{slope.value:.2f}, 95 % interval {slope.low:.2f} to {slope.high:.2f}"
    if slope.high - slope.low > VAGUE:
        return Verdict(
            "contrast", "pass", f"Contrast agrees with the raw data as far as noise lets tell ({interval})."
        )
    return Verdict("contrast", "pass", f"Contrast agrees with the raw data (raw over output {interval}).")


def judge_residual(residuals: Residuals) -> Verdict:
    """Ask whether structure of the object has leaked into what the network took away."""
    leak, left = residuals.leakage, residuals.structure_left
    if max(left, leak.low, -leak.high) > STRUCTURE:
        text = (
            "What the network took away holds structure of the object (correlation with the output "
            f"{leak.value:+.2f}; {left:.2f} between neighbouring pixels beyond the camera's). Look for its "
            "shapes there; train longer."
        )
        return Verdict("residual", "look", text)
    text = (
        "What the network took away looks like the camera's noise: its correlation with the output is "
        f"{leak.value:+.3f}, and that between neighbouring pixels is {left:+.3f} beyond the camera's."
    )
    return Verdict("residual", "pass", text)


def judge_camera(camera: Camera, residuals: Residuals) -> Verdict:
    """Ask whether the noise behaves as a camera's, and whether what is left over is noise of that strength."""
    binned, ratio = camera.binned, residuals.variance_ratio
    known = binned.gain > 2 * binned.gain_error
    if known and not LEFT_OVER[0] < ratio < LEFT_OVER[1]:
        cause = "signal was missed" if ratio > 1 else "the halves are not independent"
        text = (
            f"What the network leaves over varies {ratio:.2f} times as much as the camera's noise: {cause}. "
            "Look at the residual for shapes of the object."
        )
        return Verdict("camera", "look", text)
    if not known:
        text = "The scene has too little contrast to measure the camera's gain; nothing speaks against the output."
        return Verdict("camera", "pass", text)
    noise = np.sqrt(max(binned.read_variance, 0.0))
    text = (
        f"The noise is a camera's: {binned.gain:.3g} counts per electron, read noise {noise:.2g} counts; the "
        f"residual varies {ratio:.2f} times as much as that predicts."
    )
    return Verdict("camera", "pass", text)


def judge_seams(seams: Seams) -> Verdict:
    """Ask whether tiles show."""
    lines = seams.lines
    if not lines:
        return Verdict("seams", "pass", "No seams run through the output.")
    seam, line = lines[0], "row" if lines[0].axis == "y" else "column"
    more = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
    text = (
        f"A seam runs along {line} {seam.position}{more} (jumps {seam.excess:.0%} larger than beside it): "
        "denoise again with --set denoise.tile.halo_px=exact, or check the camera for a line there."
    )
    return Verdict("seams", "fail" if seam.excess > SEAM_FAIL else "look", text)


def judge_agreement(agreement: Agreement) -> Verdict:
    """Ask whether the stored output is what this network makes of this movie, at the movie's brightness."""
    if not agreement.finite:
        return Verdict("output", "fail", "The output holds pixels that are not numbers: denoise again.")
    if agreement.difference > DIFFERS[0]:
        text = (
            "The output is not what this model makes of this movie (it differs by "
            f"{agreement.difference:.0%} of its contrast): the movie, its shifts, the model or the output "
            "were changed since. Denoise again."
        )
        return Verdict("output", "fail" if agreement.difference > DIFFERS[1] else "look", text)
    if abs(agreement.mean_offset) > OFFSET[0]:
        text = (
            f"The output is {'brighter' if agreement.mean_offset > 0 else 'darker'} than the movie, by "
            f"{abs(agreement.mean_offset):.0%} of its contrast: train longer before measuring intensities."
        )
        return Verdict("output", "fail" if abs(agreement.mean_offset) > OFFSET[1] else "look", text)
    text = "The output is what this model makes of this movie, and has the movie's mean brightness."
    return Verdict("output", "pass", text)
