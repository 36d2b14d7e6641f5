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

from n2n_pipeline.checkpoint import load_model, weights_digest
from n2n_pipeline.diagnostics import Verdict
from n2n_pipeline.evaluation.measure import map_errors
from n2n_pipeline.evaluation.samples import Sample, Subject, denoise_halves
from n2n_pipeline.metrics.bootstrap import Interval
from n2n_pipeline.metrics.unsupervised import unsupervised_mse
from n2n_pipeline.starting import starting_weights

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
    weights = starting_weights(subject.denoiser.card.network)
    if subject.denoiser.card.is_start or weights is None:
        return None
    if subject.denoiser.card.provenance.get("init") != weights_digest(weights):
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
    ratio = np.sqrt(_sum_fields(_filter(results - begun) ** 2, mean=True) / np.mean(_filter(noise) ** 2))
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
        y_px=place.rows.start + int(row) * FIELD_PX + FIELD_PX // 2,
        x_px=place.cols.start + int(col) * FIELD_PX + FIELD_PX // 2,
        gain=gain,
    )


def _filter(images: Floats) -> Floats:
    return np.asarray(ndimage.gaussian_filter(images, (0, FEATURE_PX, FEATURE_PX), mode="mirror"))


def _sides_with_result(samples: Sequence[Sample], previews: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Return how much of the difference from the preview the raw half that neither saw holds, at least.

    Of each field, ``(n, row, column)``: the slope of that half less the preview on the result less the preview, 1
    where the result is right and 0 where the preview is, less two standard errors.
    """
    products: list[Floats] = []
    squares: list[Floats] = []
    left: list[Floats] = []
    seen: list[Floats] = []
    for sample, preview in zip(samples, previews, strict=True):
        for half in (0, 1):
            moved = sample.denoised[half] - preview[half]
            weight = (sample.counts[1 - half] > 0).astype(np.float64)
            products.append(weight * moved * (sample.raw[1 - half] - preview[half]))
            squares.append(weight * moved**2)
            left.append(weight * (sample.raw[1 - half] - sample.denoised[half]) ** 2)
            seen.append(weight)
    product, square, rest, count = (_sum_fields(_both(part)) for part in (products, squares, left, seen))
    square = np.maximum(square, np.finfo(float).tiny)
    return np.asarray(product / square - 2 * np.sqrt(rest / np.maximum(count, 1) / square))


def _both(parts: Sequence[Floats]) -> Floats:
    """Add what belongs to the two halves of each sample."""
    return np.stack(
        [np.asarray(first + second, np.float64) for first, second in zip(parts[::2], parts[1::2], strict=True)]
    )


def _sum_fields(images: Floats, mean: bool = False) -> Floats:
    """Return the sum or mean ``(n, row, column)`` of each whole field of ``(n, y, x)``."""
    starts = [np.arange(0, max(side - FIELD_PX + 1, 1), FIELD_PX) for side in images.shape[1:]]
    ends = [np.minimum(part + FIELD_PX, side) for part, side in zip(starts, images.shape[1:], strict=True)]
    spans = [list(zip(*pair, strict=True)) for pair in zip(starts, ends, strict=True)]
    take = np.mean if mean else np.sum
    fields = [[take(images[:, t:b, a:z], axis=(1, 2)) for a, z in spans[1]] for t, b in spans[0]]
    return np.moveaxis(np.array(fields), 2, 0)


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
        f"{went}{better}; wherever the two differ by more than noise (by {start.farthest:.1f} times at most), raw "
        "data that neither saw side with the result."
    )
    return Verdict("start", "pass", text)


def write_start(start: Start | None) -> dict[str, Any] | None:
    """Write it as JSON values; errors are in squared units of the movie."""
    if start is None:
        return None
    gain = (
        {}
        if start.gain is None
        else {
            f"umse_gain{end}": float(f"{value:.6g}")
            for end, value in (("", start.gain.value), ("_low", start.gain.low), ("_high", start.gain.high))
        }
    )
    place = {"frame": start.frame, "y_px": start.y_px, "x_px": start.x_px}
    place["is_settled"] = start.is_settled
    return {"moved": float(f"{start.moved:.4g}"), "farthest": float(f"{start.farthest:.4g}"), **place, **gain}
