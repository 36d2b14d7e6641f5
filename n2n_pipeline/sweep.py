"""Which averaging window: measured on frames that were left out, without a clean reference.

The Noise2Noise loss cannot compare windows: its noise floor falls as the window grows, so it always prefers the
largest. So each window is scored by how well it predicts a frame that it does not hold,

    Q(W) = mean over t of E(estimate from W frames around t, without t - frame t)² - noise variance of a frame,

in which blur and noise both count. The quick estimator is the mean of the window after a Gaussian filter whose
width Q chooses too, since what follows the average (a network) also trades detail for noise. A trained network can
be scored in its place: half of the frames, and the other half, denoised and averaged, as `denoise` does.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from n2n_pipeline.checkpoint import Denoiser, load_model
from n2n_pipeline.config import SweepConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.diagnostics import diagnose
from n2n_pipeline.errors import InputError
from n2n_pipeline.files import write_atomically
from n2n_pipeline.filling import fill_unseen
from n2n_pipeline.geometry import spread_evenly
from n2n_pipeline.halving import window_frames
from n2n_pipeline.manifest import content_digest
from n2n_pipeline.progress import progress
from n2n_pipeline.shifted import Ints, ShiftedFrames, whole_shifts
from n2n_pipeline.store import open_store

Floats = npt.NDArray[np.float64]

FILTERS_PX = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # standard deviations tried for the linear estimator
REGION_PX = 512  # side of the regions that a large image is scored on
READ_FRAMES = 64  # frames held at once
RESAMPLES = 500

_log = logging.getLogger(__name__)

Estimator = Callable[[Floats, Ints], Floats]
"""Turns sums and counts of two halves, ``(2, y, x)``, into an estimate of the frame between them."""


class Risks(NamedTuple):
    """Squared errors against held-out frames, without the part that no estimator can change."""

    risk: Floats
    """``(t, window, estimate)`` mean of estimate² - 2 · estimate · frame, in squared units of the movie."""
    signal: Floats
    """``(t,)`` mean of the product of two neighbouring frames: what makes the risk a squared error."""


def sweep_windows(
    path: Path, config: SweepConfig | None = None, output: Path | None = None, model: Path | None = None
) -> dict[str, Any]:
    """Score averaging windows of a stored movie, name the best, and say whether the movie is fit for it.

    Parameters
    ----------
    path : Path
        The movie's store; its shifts, if any, are undone.
    config : SweepConfig, optional
        Windows, and how many frames are held out.
    output : Path, optional
        A JSON file to write the result to.
    model : Path, optional
        A network to score the windows with, instead of a filtered mean; see `compare_windows`.

    Returns
    -------
    dict
        ``window``; ``scores``, a list of ``window``, ``risk``, ``low`` and ``high`` (squared units of the movie,
        bootstrap interval of 95 % of the difference from the best); ``as_good``, the windows that the interval
        does not tell from the best; ``filter_px``, the Gaussian width that went with the best
        (None for a network); ``diagnostics``,
        whether the movie is fit for Noise2Noise, as ``check``, ``verdict`` and ``sentence``.

    Raises
    ------
    InputError
        If the movie has fewer frames than the smallest window needs.
    """
    denoiser = None if model is None else load_model(model)
    result = compare_windows(path, config or SweepConfig(), denoiser)
    movie = CorrectedMovie(open_store(path))
    result["diagnostics"] = [verdict._asdict() for verdict in diagnose(movie, result["window"])]
    if output is not None:
        write_atomically(output, json.dumps(result, indent=1) + "\n")
    return result


def compare_windows(path: Path, config: SweepConfig, denoiser: Denoiser | None = None) -> dict[str, Any]:
    """Score windows with a network or, without one, with a filtered mean.

    A network is scored on the frames of this movie that it was not trained on, where it has such; one that was
    trained over several windows compares them fairly, and by default on these.
    """
    movie = CorrectedMovie(open_store(path))
    n_frames = movie.store.info.shape[0]
    windows = config.windows or (denoiser.card.windows if denoiser else ()) or default_windows(n_frames)
    if n_frames < 2:
        raise InputError(path, f"{n_frames} frame; pairs need at least 2")
    if min(windows) > n_frames:
        raise InputError(path, f"{n_frames} frames, window needs {min(windows)}")
    windows = tuple(sorted({window for window in windows if window <= n_frames}))
    frames = spread_evenly(n_frames, config.sample_frames)
    if denoiser is None:
        estimators = [_filter_mean(movie, sigma) for sigma in FILTERS_PX]
    else:
        estimators, frames = [_denoise(movie, denoiser)], _unseen_frames(path, denoiser, frames)
    return choose_window(
        measure_risks(movie, windows, frames, estimators), windows, (None,) if denoiser else FILTERS_PX
    )


def _unseen_frames(path: Path, denoiser: Denoiser, frames: list[int]) -> list[int]:
    """Return frames that a network was not trained on; of a movie that it never saw, those given."""
    held_out = denoiser.card.provenance.get("held_out_frames", {}).get(content_digest(path))
    if held_out == []:
        _log.warning(
            "%s: the model was trained on the frames it is scored on, which favours short windows; "
            "train with --window 4,8,16 or train.held_out_frames",
            path,
        )
    return held_out or frames


def default_windows(n_frames: int) -> tuple[int, ...]:
    """Return 2, 4, 8, … and the whole movie, cut to a multiple of 4 so that its halves can balance.

    Examples
    --------
    >>> default_windows(48), default_windows(3), default_windows(2)
    ((2, 4, 8, 16, 32, 48), (2,), (2,))
    """
    powers = [2**k for k in range(1, n_frames.bit_length()) if 2**k <= n_frames]
    return tuple(sorted({*powers, n_frames // 4 * 4} - {0}))


def choose_window(
    risks: Risks, windows: tuple[int, ...], filters_px: tuple[float | None, ...] = FILTERS_PX
) -> dict[str, Any]:
    """Turn risks into scores, the best window, and those as good within the interval.

    Frames are drawn with replacement, all windows at once, so that what a frame adds to every score cancels.
    """
    mean = risks.risk.mean(axis=0)
    best_filter = mean.argmin(axis=1)
    per_frame = np.take_along_axis(risks.risk, best_filter[None, :, None], axis=2)[..., 0]
    best = int(per_frame.mean(axis=0).argmin())
    against = per_frame - per_frame[:, best : best + 1]
    rng = np.random.default_rng(0)
    draws = rng.integers(len(against), size=(RESAMPLES, len(against)))
    low, high = np.percentile(against[draws].mean(axis=1), (2.5, 97.5), axis=0)
    floor = float(risks.signal.mean())
    risk = per_frame.mean(axis=0) + floor
    as_good = [window for window, least in zip(windows, low, strict=True) if least <= 0]
    return {
        "window": windows[best],
        "filter_px": filters_px[best_filter[best]],
        "as_good": as_good,
        "scores": [
            {"window": w, "risk": float(r), "low": float(risk[best] + lo), "high": float(risk[best] + hi)}
            for w, r, lo, hi in zip(windows, risk, low, high, strict=True)
        ],
    }


def measure_risks(
    movie: CorrectedMovie, windows: tuple[int, ...], frames: Sequence[int], estimators: Sequence[Estimator]
) -> Risks:
    """Predict held-out frames from windows around them.

    Parameters
    ----------
    movie : CorrectedMovie
        The movie.
    windows : tuple of int
        Ascending frames per window, the held-out frame not counted.
    frames : sequence of int
        Those that are held out.
    estimators : sequence of Estimator
        What predicts a frame from a window.
    """
    risks, signals = [], []
    with progress("sweep", len(frames), "frames") as advance:
        for t in frames:
            regions = [_score_frame(movie, t, windows, region, estimators) for region in _regions(movie)]
            risks.append(np.mean([risk for risk, _ in regions], axis=0))
            signals.append(np.mean([signal for _, signal in regions]))
            advance(1)
    return Risks(np.stack(risks), np.asarray(signals))


def _regions(movie: CorrectedMovie) -> list[tuple[slice, slice]]:
    """Cut a large image down to a few regions, spread over it."""
    spans = []
    for size in movie.store.info.shape[1:]:
        starts = [0] if size <= REGION_PX else [size // 4 - REGION_PX // 4, 3 * size // 4 - 3 * REGION_PX // 4]
        spans.append([slice(start, min(start + REGION_PX, size)) for start in starts])
    return [(rows, cols) for rows in spans[0] for cols in spans[1]]


def _score_frame(
    movie: CorrectedMovie,
    t: int,
    windows: tuple[int, ...],
    region: tuple[slice, slice],
    estimators: Sequence[Estimator],
) -> tuple[Floats, float]:
    """Return the ``(window, estimate)`` risk of predicting frame t, and the product of its neighbours."""
    frame, valid = (part[0] for part in movie.read(slice(t, t + 1), *region))
    risks = np.empty((len(windows), len(estimators)))
    signal = float("nan")
    for i, (total, count) in enumerate(_growing_sums(movie, t, windows, region)):
        seen = valid & (count.sum(axis=0) > 0)
        if i == 0:
            signal = float(np.mean((_mean(total, count, movie.typical_value) * frame)[seen]))
        for j, estimate in enumerate(estimators):
            guess = estimate(total, count)[seen]
            risks[i, j] = np.mean(guess * (guess - 2.0 * frame[seen]))
    return risks, signal


def _mean(total: Floats, count: Ints, typical: float) -> Floats:
    both = count.sum(axis=0)
    return np.where(both > 0, total.sum(axis=0) / np.maximum(both, 1), typical)


def _filter_mean(movie: CorrectedMovie, sigma: float) -> Estimator:
    """Average both halves under a Gaussian filter in which a pixel weighs as much as it has frames."""

    def estimate(total: Floats, count: Ints) -> Floats:
        average, both = _mean(total, count, movie.typical_value), count.sum(axis=0).astype(np.float64)
        if sigma == 0:
            return average
        weight = ndimage.gaussian_filter(both, sigma, mode="mirror")
        return np.asarray(ndimage.gaussian_filter(average * both, sigma, mode="mirror") / np.maximum(weight, 1e-9))

    return estimate


def _denoise(movie: CorrectedMovie, denoiser: Denoiser) -> Estimator:
    """Denoise each half with a network and average them."""

    def estimate(total: Floats, count: Ints) -> Floats:
        halves = [fill_unseen(*half, movie.typical_value) for half in zip(total, count, strict=True)]
        denoised = denoiser(np.stack(halves), count.astype(np.float32))
        return np.asarray(denoised.mean(axis=0, dtype=np.float64))

    return estimate


def _growing_sums(
    movie: CorrectedMovie, t: int, windows: tuple[int, ...], region: tuple[slice, slice]
) -> Iterator[tuple[Floats, Ints]]:
    """Sum the frames around t, itself left out, in two halves, for each window in turn; each frame is read once.

    Of two frames at the same distance from t one is in either half, in Thue-Morse order of the distance, so that
    the halves stay balanced as the window grows.
    """
    n_frames, shifts = movie.store.info.shape[0], whole_shifts(movie)
    extent = (2, *(part.stop - part.start for part in region))
    total, count = np.zeros(extent), np.zeros(extent, np.int64)
    have = range(t, t + 1)
    for window in windows:
        want = window_frames(n_frames, t, window + 1)
        for piece in (range(want.start, have.start), range(have.stop, want.stop)):
            for start in range(piece.start, piece.stop, READ_FRAMES):
                part = range(start, min(start + READ_FRAMES, piece.stop))
                frames = ShiftedFrames(movie, part, range(t, t + 1), region, shifts, "camera")
                for half in (0, 1):
                    members = [f for f in part if (abs(f - t).bit_count() + (f > t)) % 2 == half]
                    more, seen = frames.sum_frames(t, members)
                    total[half] += more
                    count[half] += seen
        have = want
        yield total, count
