"""The report's plots: each is left out, not drawn empty, where a run has not come so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from n2n_pipeline.checkpoint import load_model
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.evaluation.report.figures import Picture, plot_picture
from n2n_pipeline.evaluation.report.gather import Run
from n2n_pipeline.evaluation.report.scenes import (
    Image,
    Region,
    Scene,
    central_region,
    main_store,
    read_raw,
    saw_all_windows,
    spread_frames,
    used_window,
)
from n2n_pipeline.inference.inputs import inputs_for
from n2n_pipeline.inference.plan import Choice
from n2n_pipeline.inference.window_map import map_frames
from n2n_pipeline.metrics.frc import ring_power
from n2n_pipeline.plots import (
    Frame,
    Line,
    frequency_plot,
    histogram_plot,
    line_plot,
    map_plot,
    path_plot,
    sweep_plot,
)

SPECTRUM_FRAMES = 8


def draw_plots(run: Run, scene: Scene, t: int, region: Region) -> list[Picture]:
    """Draw every plot that the run has the numbers for, in the order of the pipeline."""
    drawn = (
        plot_window(run),
        plot_window_map(run, t, region),
        plot_drift(run),
        plot_training(run.training),
        plot_correlation(run.metrics, main_store(run).info.pixel_size),
        plot_spectrum(run),
        plot_histogram(scene),
    )
    return [picture for picture in drawn if picture is not None]


def plot_window(run: Run) -> Picture | None:
    """Plot the error of each averaging window on frames that were left out."""
    if not run.window.get("scores"):
        return None
    used = used_window(run)
    png = sweep_plot(run.window, used)
    mark = (
        "the network saw all windows at once, and the grey line marks the best single one"
        if saw_all_windows(run)
        else f"the grey line marks the window in use, {used}"
    )
    caption = (
        "How well averages over so many frames predict a frame that they do not hold: too few leave noise, "
        f"too many blur what moves. The lowest point wins; {mark}. "
        "The map shows where another window is surely better than that: shorter ones where something moves."
    )
    return plot_picture(png, "Error against averaging window", "Choice of window", caption)


def plot_window_map(run: Run, t: int, region: Region) -> Picture | None:
    """Show how many frames a network of all windows averaged at each pixel of a frame."""
    if run.movie is None or run.model is None or run.denoised is None or not saw_all_windows(run):
        return None
    if run.denoised.info.shape != run.movie.info.shape:  # a part, whose frame t is another one of the movie
        return None
    denoiser = load_model(run.model)
    if not denoiser.card.ladder:
        return None
    made = run.denoised.provenance.get("choice")
    noise = Choice.model_validate(made).noise if made else None
    inputs = replace(inputs_for(CorrectedMovie(run.movie), denoiser.card), noise=noise)
    frames = map_frames(denoiser, inputs, t, region)
    caption = (
        f"How many frames the network averaged at each pixel of frame {t}: as many of equal weight let through as "
        f"much noise. It saw windows of {', '.join(map(str, denoiser.card.ladder))} frames at once; it averages "
        "fewer where something moves or changes."
    )
    return plot_picture(map_plot(frames, "frames averaged"), "Map of frames averaged", "Windows it chose", caption)


def plot_drift(run: Run) -> Picture | None:
    """Plot where the field of view went."""
    if run.movie is None or run.movie.shifts is None:
        return None
    shifts = run.movie.shifts.dy_dx
    longest = np.hypot(*(shifts - shifts[0]).T).max()
    caption = (
        f"Shift of each frame from frame 0, in pixels; at most {longest:.1f} px. Frames are averaged at "
        "whole pixels; the rest is made up for in what is denoised."
    )
    return plot_picture(path_plot(shifts), "Path of the drift", "Drift", caption)


def plot_training(columns: Mapping[str, list[float]]) -> Picture | None:
    """Plot losses over the steps."""
    names = {"training_loss": "training", "validation_loss": "held out"}
    steps = np.array(columns.get("step", ()))
    curves = {label: np.array(columns[name]) for name, label in names.items() if name in columns}
    lines = [
        Line(steps[known], curve[known], label)
        for label, curve in curves.items()
        if (known := np.isfinite(curve)).sum() > 1
    ]
    if not lines:
        return None
    png = line_plot(lines, Frame("step", "Noise2Noise loss", y_scale="log"))
    caption = (
        "The loss holds the noise of the target, so it levels off well above 0. "
        "Held out above training and rising would mean that the network learns the noise by heart."
    )
    return plot_picture(png, "Loss against training step", "Training", caption)


def plot_correlation(metrics: Mapping[str, Any], pixel_size: float | None) -> Picture | None:
    """Plot the Fourier ring correlation of the raw halves, and that of the denoised half with the true signal."""
    frc = metrics.get("frc")
    if not isinstance(frc, Mapping):
        return None
    x = curve(frc.get("frequency_per_angstrom" if pixel_size else "frequency_per_px"))
    lines = []
    if "r_denoised" in frc:
        denoised, error = curve(frc["r_denoised"]), curve(frc.get("r_denoised_error"))
        interval = (denoised - error, denoised + error) if error.size else (None, None)
        lines.append(Line(x, denoised, "R of the denoised half", *interval))
    names = {"r_raw": "R of the raw half", "frc_raw": "FRC of the raw halves", "half_bit": "½-bit threshold"}
    lines += [Line(x, curve(frc[name]), label) for name, label in names.items() if name in frc]
    caption = (
        "R is how well an image correlates with the true signal, ring by ring, from what two independent halves "
        "share. It can be told only where the raw halves stand out of the noise; the band is one standard error."
    )
    png = frequency_plot(lines, "correlation", pixel_size)
    return plot_picture(png, "Correlation against spatial frequency", "Detail", caption)


def curve(values: Any) -> npt.NDArray[np.float64]:
    """Read a list of numbers as a curve; null is a gap."""
    return np.array([np.nan if value is None else value for value in values or ()], dtype=np.float64)


def plot_spectrum(run: Run) -> Picture | None:
    """Plot what the network took away, by spatial frequency, beside what it was given."""
    if run.movie is None or run.denoised is None:
        return None
    shape = run.denoised.info.shape
    region, movie = central_region(shape), CorrectedMovie(run.movie)
    raw, denoised = [], []
    for t in spread_frames(shape[0], SPECTRUM_FRAMES):
        raw.append(read_raw(run, movie, t, region))
        denoised.append(run.denoised.read(slice(t, t + 1), *region)[0])
    taken, noisy, kept = np.stack(raw) - np.stack(denoised), np.stack(raw), np.stack(denoised)
    pixel_size = run.denoised.info.pixel_size
    lines = [
        _power_line(noisy, "raw", pixel_size),
        _power_line(kept, "denoised", pixel_size),
        _power_line(taken, "residual, raw less denoised", pixel_size),
    ]
    unit = "1/Å" if pixel_size else "cycles per pixel"
    png = line_plot(lines, Frame(f"spatial frequency ({unit})", "power", y_scale="log"))
    caption = (
        "The residual should be noise alone: as strong as the raw frames wherever they hold nothing but noise, "
        "and without the bumps of the denoised curve."
    )
    return plot_picture(png, "Power spectra of raw, denoised and residual", "Residual", caption)


def _power_line(images: Image, label: str, pixel_size: float | None) -> Line:
    rings = ring_power(images, images)
    with np.errstate(invalid="ignore", divide="ignore"):
        power = rings.first / rings.coefficients
    frequency = np.arange(len(power)) / min(images.shape[-2:]) / (pixel_size or 1.0)
    return Line(frequency[1:], power[1:], label)


def plot_histogram(scene: Scene) -> Picture | None:
    """Plot the intensities of the field shown, at every stage."""
    named = (("window average", scene.average), ("denoised", scene.denoised), ("truth", scene.truth))
    images = [(label, image) for label, image in named if image is not None]
    if scene.raw is not None and not images:
        images = [("raw", scene.raw)]
    png = histogram_plot(images, "value, in units of the movie")
    caption = (
        "Of the field shown on top. The denoised one should be narrower than the average, about the same values."
    )
    return plot_picture(png, "Histograms of intensity", "Intensities", caption)
