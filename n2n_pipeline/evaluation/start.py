"""What the weights that training began with bring, and what of it the movie made of them.

Weights that were trained on other movies are an opinion. Here the same samples are denoised with them, in the
movie's own units, and held against the result: how far training went from there, whether it went the right way,
and whether the two show different things anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from n2n_pipeline.checkpoint import load_model
from n2n_pipeline.diagnostics import Verdict
from n2n_pipeline.evaluation.measure import map_errors
from n2n_pipeline.evaluation.samples import Sample, Subject, denoise_halves
from n2n_pipeline.metrics.bootstrap import Interval
from n2n_pipeline.metrics.noise import bin_sums
from n2n_pipeline.metrics.unsupervised import unsupervised_mse
from n2n_pipeline.starting import begun_with

Floats = npt.NDArray[np.floating[Any]]

FEATURE_PX = 2.0
"""Standard deviation of the filter that finds what could be taken for an object."""
FIELD_PX = 32
BEYOND = 6.0
"""Times the result's own noise by which a field has to differ before it is worth a look."""


class Start(NamedTuple):
    """The result held against that of the weights before training."""

    moved: float
    """Root mean square of the difference, over the standard deviation of the result."""
    farthest: float
    """That of the field that differs most, filtered, over the noise of the result, filtered; of those fields where
    the raw data do not side with the result, if there are any that differ by more than `BEYOND`."""
    is_settled: bool
    """Whether there are none such."""
    frame: int
    y_px: int
    x_px: int
    """The middle of this field, in the movie."""
    gain: Interval | None
    """Mean squared error before training less that after, in squared units of the movie; None where it cannot be
    measured."""


def measure_start(subject: Subject, samples: Sequence[Sample]) -> Start | None:
    """Denoise the samples with the weights that training began with; None where these were not the package's."""
    weights = begun_with(subject.denoiser.card)
    if subject.denoiser.card.is_start or weights is None:
        return None
    network = load_model(weights, subject.denoiser.device.type).network
    before = replace(subject, denoiser=replace(subject.denoiser, network=network))
    previews = [denoise_halves(before, sample.place) for sample in samples]
    denoised = [sample.denoised for sample in samples]
    gain = None
    if all(sample.copies is not None for sample in samples):
        gain = unsupervised_mse(map_errors(samples, previews) - map_errors(samples, denoised))
    results, begun = (np.stack([np.mean(pair, axis=0) for pair in pairs]) for pairs in (denoised, previews))
    noise = np.stack([(even - odd) / 2 for even, odd in denoised])
    side = _field_px(results)
    ratio = np.sqrt(bin_sums(_filter(results - begun) ** 2, side) / side**2 / np.mean(_filter(noise) ** 2))
    open_fields = (ratio > BEYOND) & (_sides_with_result(samples, previews) <= 0)
    is_settled = not open_fields.any()
    ratio = ratio if is_settled else np.where(open_fields, ratio, 0)
    sample, row, col = (int(index) for index in np.unravel_index(int(ratio.argmax()), ratio.shape))
    place = samples[sample].place
    return Start(
        moved=float(np.sqrt(np.mean((results - begun) ** 2)) / max(float(results.std()), 1e-30)),
        farthest=float(ratio.max()),
        is_settled=is_settled,
        frame=place.t,
        y_px=place.rows.start + row * side + side // 2,
        x_px=place.cols.start + col * side + side // 2,
        gain=gain,
    )


def _filter(images: Floats) -> Floats:
    return np.asarray(ndimage.gaussian_filter(images, (0, FEATURE_PX, FEATURE_PX), mode="mirror"))


def _sides_with_result(samples: Sequence[Sample], previews: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Return how much of the difference from the preview the raw half that neither saw holds, at least.

    Of each field, ``(n, row, column)``: the slope of that half less the preview on the result less the preview, 1
    where the result is right and 0 where the preview is, less two standard errors.
    """
    pairs = list(zip(samples, previews, strict=True))
    sums = np.stack([_terms(*pair, 0) + _terms(*pair, 1) for pair in pairs])
    product, square, rest, count = np.moveaxis(bin_sums(sums, _field_px(sums)), 1, 0)
    square = np.maximum(square, np.finfo(float).tiny)
    return np.asarray(product / square - 2 * np.sqrt(rest / np.maximum(count, 1) / square))


def _terms(sample: Sample, preview: tuple[Floats, Floats], half: int) -> Floats:
    """Return ``(4, y, x)``: product and square of the slope's sums, what the result leaves over, and 1; or 0."""
    moved, unseen = sample.denoised[half] - preview[half], sample.raw[1 - half]
    terms = moved * (unseen - preview[half]), moved**2, (unseen - sample.denoised[half]) ** 2, np.ones(moved.shape)
    return np.stack(terms).astype(np.float64) * (sample.counts[1 - half] > 0)


def _field_px(images: Floats) -> int:
    """Return the side of a field that the images hold."""
    height, width = images.shape[-2:]
    return int(min(FIELD_PX, height, width))


def judge_start(start: Start | None, is_preview: bool) -> Verdict | None:
    """Ask whether the result rests on this movie, not on what others look like; None if others played no part."""
    if is_preview:
        text = (
            "This is a preview: the network was never trained on this movie, and shows what other movies let it "
            "expect. Train (n2n-pipeline train) before you measure or conclude anything."
        )
        return Verdict("start", "look", text)
    if start is None:
        return None
    went = f"Training moved the result by {start.moved:.0%} of its contrast from that of the starting weights"
    if start.gain is not None and start.gain.high < 0:
        text = (
            f"{went}, and its error is larger than before. Train longer, or with --init none, and compare with "
            "the window average."
        )
        return Verdict("start", "look", text)
    if not start.is_settled:
        text = (
            f"{went}, most around y {start.y_px}, x {start.x_px} of frame {start.frame}, by "
            f"{start.farthest:.1f} times the result's noise, and the raw data do not side with the result. Look "
            "there in the window average: what only one of the two shows may come from other movies. Longer "
            "training, or --init none, settles it."
        )
        return Verdict("start", "look", text)
    better = " and lowered its error" if start.gain is not None and start.gain.low > 0 else ""
    text = (
        f"{went}{better}; no field differs by more than {BEYOND:g} times the result's noise (at most "
        f"{start.farthest:.1f}) unless raw data that neither saw side with the result."
    )
    return Verdict("start", "pass", text)
