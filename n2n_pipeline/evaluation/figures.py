"""Measure all that needs no truth, judge it, and write it down as JSON; a key carries its unit."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline.diagnostics import (
    Motion,
    Pattern,
    Verdict,
    judge_halves,
    judge_motion,
    judge_pattern,
    measure_independence,
    measure_motion,
    measure_pattern,
    read_camera_frames,
    worst,
)
from n2n_pipeline.evaluation.measure import (
    Camera,
    Errors,
    Residuals,
    Seams,
    measure_agreement,
    measure_camera,
    measure_detail,
    measure_errors,
    measure_residuals,
    measure_seams,
    noise_of_average,
    signal_limit,
)
from n2n_pipeline.evaluation.samples import Subject, plan_places, read_sample
from n2n_pipeline.evaluation.start import Start, judge_start, measure_start
from n2n_pipeline.evaluation.verdicts import (
    judge_agreement,
    judge_camera,
    judge_contrast,
    judge_detail,
    judge_error,
    judge_residual,
    judge_seams,
)
from n2n_pipeline.metrics.bootstrap import Interval
from n2n_pipeline.metrics.frc import TrueCorrelation
from n2n_pipeline.metrics.noise import Independence
from n2n_pipeline.progress import progress

Json = dict[str, Any]


class Figures(NamedTuple):
    """All measurements of one output."""

    errors: Errors | None
    detail: TrueCorrelation
    residuals: Residuals
    camera: Camera
    independence: Independence | None
    pattern: Pattern | None
    seams: Seams
    motion: Motion
    start: Start | None


def evaluate_without_truth(subject: Subject) -> Json:
    """Measure and judge an output on a sample of its frames.

    Parameters
    ----------
    subject : Subject
        Output, movie and network.

    Returns
    -------
    dict
        JSON values; what could not be measured is None.
    """
    if not subject.inputs.has_pairs:
        text = (
            "The movie is one frame, so no second measurement exists to hold the output against; compare by eye."
        )
        return write_verdicts([Verdict("error", "look", text)])
    places = plan_places(subject)
    with progress("evaluate", len(places) + 1, "samples") as step:
        samples = []
        for place in places:
            samples.append(read_sample(subject, place))
            step(1)
        middle = samples[len(samples) // 2]
        camera_frames = read_camera_frames(subject.movie, middle.place.t, middle.place.region)
        camera = measure_camera(subject, middle)
        detail = measure_detail(samples, subject.n_frames, min(subject.inputs.window, subject.n_frames))
        figures = Figures(
            errors=measure_errors(samples),
            detail=detail,
            residuals=measure_residuals(samples, camera.pixels),
            camera=camera,
            independence=measure_independence(camera_frames, signal_limit(detail)),
            pattern=measure_pattern(camera_frames, noise_of_average(samples)),
            seams=measure_seams(places, subject),
            motion=measure_motion(
                subject.movie, [(place.t, place.region) for place in places], subject.inputs.window
            ),
            start=measure_start(subject, samples),
        )
        agreement = measure_agreement(samples)
        step(1)
    pixel_size = subject.movie.store.info.pixel_size
    verdicts = [judge_agreement(agreement), *judge(figures, subject)]
    sampled = {"frames": [place.t for place in places], "region_px": list(middle.denoised[0].shape)}
    return {**write_verdicts(verdicts), **write_figures(figures, pixel_size), "sampled": sampled}


def judge(figures: Figures, subject: Subject) -> list[Verdict]:
    """Judge every figure, the most telling first."""
    info, references = subject.movie.store.info, subject.movie.store.references
    has_references = references.dark is not None or references.gain is not None
    start = judge_start(figures.start, subject.denoiser.card.is_start)
    return [
        judge_error(figures.errors, subject.denoiser.card.steps),
        *([start] if start else []),
        judge_detail(figures.detail, info.pixel_size),
        judge_contrast(figures.residuals),
        judge_residual(figures.residuals),
        judge_halves(figures.independence),
        judge_pattern(figures.pattern, has_references),
        judge_camera(figures.camera, figures.residuals),
        judge_seams(figures.seams),
        judge_motion(figures.motion),
    ]


def write_verdicts(verdicts: list[Verdict]) -> Json:
    """Write verdicts, and the most serious of them."""
    return {"verdict": worst(verdicts), "verdicts": [verdict._asdict() for verdict in verdicts]}


def write_figures(figures: Figures, pixel_size: float | None) -> Json:
    """Write figures as JSON values; ``pixel_size`` is in Å."""
    independence, pattern = figures.independence, figures.pattern
    return {
        **_write_errors(figures.errors),
        "frc": _write_detail(figures.detail, pixel_size),
        "residual": _write_residuals(figures.residuals),
        "camera": {
            "gain_counts_per_electron": _number(figures.camera.binned.gain),
            "gain_error": _number(figures.camera.binned.gain_error),
            "read_noise_counts": _number(max(figures.camera.binned.read_variance, 0.0) ** 0.5),
            "mean_counts": _numbers(figures.camera.binned.mean),
            "variance_counts2": _numbers(figures.camera.binned.variance),
        },
        "halves": None if independence is None else _rounded(independence._asdict()),
        "fixed_pattern": None
        if pattern is None
        else _rounded({**pattern.found._asdict(), "share": pattern.share}),
        "seams": [
            {"axis": seam.axis, "position_px": seam.position, "excess": _number(seam.excess)}
            for seam in figures.seams.lines
        ],
        "tile_border_excess": _number(figures.seams.tile_excess),
        "motion": _rounded(figures.motion._asdict()),
        "start": _write_start(figures.start),
    }


def _write_errors(errors: Errors | None) -> Json:
    """Squared errors are in squared units of the movie."""
    if errors is None:
        return {"upsnr_db": None, "umse": None}
    ratio = errors.gaussian.value / errors.output.value if errors.output.value > 0 else math.nan
    least_ratio = 1 / errors.largest_ratio if errors.largest_ratio > 0 else math.nan
    highest = errors.output.high
    return {
        **_interval("upsnr_db", errors.psnr_db),
        **_interval("umse", errors.output),
        "peak": _number(errors.peak),
        "usnr_db": _decibels(
            errors.signal_variance / errors.output.value if errors.output.value > 0 else math.nan
        ),
        "usnr_db_low": _decibels(errors.signal_variance / highest if highest > 0 else math.nan),
        "window_average": _interval("umse", errors.average),
        "best_gaussian": {
            "sigma_px": errors.gaussian_px,
            **_interval("umse", errors.gaussian),
            "gain_db": _decibels(ratio),
            "gain_db_low": _decibels(least_ratio),
        },
    }


def _write_start(start: Start | None) -> Json | None:
    """Squared errors are in squared units of the movie."""
    if start is None:
        return None
    gain = {} if start.gain is None else _interval("umse_gain", start.gain)
    place = {"frame": start.frame, "y_px": start.y_px, "x_px": start.x_px}
    return {
        "moved": _number(start.moved),
        "farthest": _number(start.farthest),
        "is_settled": start.is_settled,
        **place,
        **gain,
    }


def _write_detail(detail: TrueCorrelation, pixel_size: float | None) -> Json:
    """Write one value per ring."""
    frequency = None if pixel_size is None else _numbers(detail.frequency / pixel_size)
    return {
        "pixel_size_angstrom": pixel_size,
        "frequency_per_px": _numbers(detail.frequency),
        "frequency_per_angstrom": frequency,
        "frc_raw": _numbers(detail.halves),
        "half_bit": _numbers(detail.threshold),
        "r_denoised": _numbers(detail.denoised),
        "r_denoised_error": _numbers(detail.error),
        "r_raw": _numbers(detail.raw),
    }


def _write_residuals(residuals: Residuals) -> Json:
    return {
        **_interval("leakage", residuals.leakage),
        **_interval("calibration_slope", residuals.calibration.slope),
        "calibration_intercept": _number(residuals.calibration.intercept),
        "structure_left": _number(residuals.structure_left),
        "variance_ratio": _number(residuals.variance_ratio),
        "lag_px": list(range(len(residuals.autocorrelation))),
        "autocorrelation": _numbers(residuals.autocorrelation),
        "noise_autocorrelation": _numbers(residuals.noise_autocorrelation),
    }


def _interval(name: str, interval: Interval) -> Json:
    """Write a value and its 95 % interval."""
    ends = {f"{name}_low": _number(interval.low), f"{name}_high": _number(interval.high)}
    return {name: _number(interval.value), **ends}


def _decibels(ratio: float) -> float | None:
    return _number(10 * math.log10(ratio)) if ratio > 0 else None


def _number(value: float) -> float | None:
    """Six digits; JSON has neither NaN nor infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _numbers(values: npt.NDArray[np.floating[Any]]) -> list[float | None]:
    return [_number(float(value)) for value in values]


def _rounded(values: dict[str, float]) -> Json:
    return {name: _number(value) for name, value in values.items()}
