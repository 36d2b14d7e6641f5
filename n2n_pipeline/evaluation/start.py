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
    """That of the field that differs most, filtered, over the noise of the result, filtered."""
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
    ratio = _rms_of_fields(results - begun) / np.sqrt(np.mean(_filter(noise) ** 2))
    sample, row, col = (int(index) for index in np.unravel_index(int(ratio.argmax()), ratio.shape))
    place = samples[sample].place
    return Start(
        moved=float(np.sqrt(np.mean((results - begun) ** 2)) / max(float(results.std()), 1e-30)),
        farthest=float(ratio.max()),
        frame=place.t,
        y_px=place.rows.start + int(row) * FIELD_PX + FIELD_PX // 2,
        x_px=place.cols.start + int(col) * FIELD_PX + FIELD_PX // 2,
        gain=gain,
    )


def _filter(images: Floats) -> Floats:
    return np.asarray(ndimage.gaussian_filter(images, (0, FEATURE_PX, FEATURE_PX), mode="mirror"))


def _rms_of_fields(images: Floats) -> Floats:
    """Return the root mean square ``(n, row, column)`` of fields of filtered images."""
    squares = _filter(images) ** 2
    starts = [np.arange(0, max(side - FIELD_PX + 1, 1), FIELD_PX) for side in squares.shape[1:]]
    ends = [np.minimum(part + FIELD_PX, side) for part, side in zip(starts, squares.shape[1:], strict=True)]
    spans = [list(zip(*pair, strict=True)) for pair in zip(starts, ends, strict=True)]
    means = [[squares[:, t:b, a:z].mean(axis=(1, 2)) for a, z in spans[1]] for t, b in spans[0]]
    return np.sqrt(np.moveaxis(np.array(means), 2, 0))


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
    if start.farthest > BEYOND:
        text = (
            f"{went}, most around y {start.y_px}, x {start.x_px} of frame {start.frame}, by "
            f"{start.farthest:.1f} times the result's noise. Look there in the window average: what only one of "
            "the two shows may come from other movies. Longer training, or --init none, settles it."
        )
        return Verdict("start", "look", text)
    better = " and lowered its error" if start.gain is not None and start.gain.low > 0 else ""
    text = f"{went}{better}; nowhere do the two differ by more than {start.farthest:.1f} times the result's noise."
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
    return {"moved": float(f"{start.moved:.4g}"), "farthest": float(f"{start.farthest:.4g}"), **place, **gain}
