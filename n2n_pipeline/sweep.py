"""Which averaging window: measured on frames that were left out, without a clean reference.

The Noise2Noise loss cannot compare windows: its noise floor falls as the window grows, so it always prefers the
largest. So each window is scored by how well it predicts a frame that it does not hold (`risks`), over the whole
image and field by field: what moves needs a shorter window than what stands still.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from n2n_pipeline.checkpoint import Denoiser, load_model
from n2n_pipeline.config import SweepConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.diagnostics import diagnose
from n2n_pipeline.errors import InputError
from n2n_pipeline.files import write_atomically
from n2n_pipeline.geometry import spread_evenly
from n2n_pipeline.manifest import content_digest
from n2n_pipeline.metrics.bootstrap import standard_error
from n2n_pipeline.plots import sweep_plot
from n2n_pipeline.risks import (
    FILTERS_PX,
    Risks,
    denoise_halves,
    filter_mean,
    judge_all_windows,
    measure_risks,
    score_ladder,
)
from n2n_pipeline.store import open_store

Floats = npt.NDArray[np.float64]

RESAMPLES = 500
SURE = 3.0  # standard errors by which a field must fare better with a window of its own

_log = logging.getLogger(__name__)


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
        A JSON file to write the result to; a picture of it is put beside it.
    model : Path, optional
        A network to score the windows with, instead of a filtered mean; see `compare_windows`.

    Returns
    -------
    dict
        ``window``, the best of those scored; ``use``, that window, or ``all`` where these surely predict better;
        ``filter_px``, the Gaussian width that went with it (None for a network); ``scores``, a list of ``window``,
        ``filter_px``, ``risk``, ``low`` and ``high`` (squared units of the movie, bootstrap interval of 95 % of
        the difference from the best); ``as_good``, the windows that the interval does not tell from the best;
        ``all``, ``risk``, ``low`` and ``high`` of all windows at once: of weighted sums of their averages, see
        `judge_all_windows`, or of a network of a ladder; ``fields``, parts of the image of up to 64 by 64 px
        (``y``, ``x``, first and the one after the last) and the ``window`` of each, another than that of all where
        it is better by three standard errors; ``diagnostics``, whether the movie is fit for Noise2Noise, as
        ``check``, ``verdict``, ``sentence``.

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
        write_atomically(output.with_suffix(".png"), sweep_plot(result, result["window"]))
    return result


def compare_windows(path: Path, config: SweepConfig, denoiser: Denoiser | None = None) -> dict[str, Any]:
    """Score windows with a network or, without one, with a filtered mean.

    A network is scored on the frames of this movie that it was not trained on, where it has such; one that was
    trained over several windows compares them fairly, and by default on these. A network of a ladder has but one
    score, beside those of filtered means.
    """
    movie = CorrectedMovie(open_store(path))
    n_frames = movie.store.info.shape[0]
    windows = config.windows or (denoiser.card.windows if denoiser else ()) or default_windows(n_frames)
    if n_frames < 2:
        raise InputError(path, f"{n_frames} frame; pairs need at least 2")
    if min(windows) > n_frames:
        raise InputError(path, f"{n_frames} frames, window needs {min(windows)}", "choose other --windows")
    windows = tuple(sorted({window for window in windows if window <= n_frames}))
    frames = spread_evenly(n_frames, config.sample_frames)
    if denoiser is not None:
        frames = _unseen_frames(path, denoiser, frames)
    if denoiser is not None and not denoiser.card.ladder:
        risks = measure_risks(movie, windows, frames, [denoise_halves(movie, denoiser)])
        return choose_window(risks, windows, (None,))
    filters = [filter_mean(movie, sigma) for sigma in FILTERS_PX]
    risks = measure_risks(movie, windows, frames, filters, torch.get_num_threads())
    if denoiser is not None:
        at_once: Floats | None = score_ladder(movie, denoiser, frames)
    else:
        at_once = judge_all_windows(risks) if len(frames) > 1 else None
    return choose_window(risks, windows, FILTERS_PX, at_once)


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
    risks: Risks,
    windows: tuple[int, ...],
    filters_px: tuple[float | None, ...] = FILTERS_PX,
    at_once: Floats | None = None,
) -> dict[str, Any]:
    """Turn risks into scores, the best window, and those as good within the interval.

    ``at_once`` are the ``(t,)`` risks of all windows at once, where they were measured.

    Frames are drawn with replacement, all windows at once, so that what a frame adds to every score cancels.
    """
    mean = risks.risk.mean(axis=0)
    best_filter = mean.argmin(axis=1)
    each = np.arange(len(windows))
    per_frame = risks.risk[:, each, best_filter]
    best = int(per_frame.mean(axis=0).argmin())
    if at_once is not None:
        per_frame = np.column_stack([per_frame, at_once])
    against = per_frame - per_frame[:, best : best + 1]
    rng = np.random.default_rng(0)
    draws = rng.integers(len(against), size=(RESAMPLES, len(against)))
    low, high = np.percentile(against[draws].mean(axis=1), (2.5, 97.5), axis=0)
    floor = float(risks.signal.mean())
    risk = per_frame.mean(axis=0) + floor
    as_good = [window for window, least in zip(windows, low, strict=False) if least <= 0]
    scores = [
        {"risk": float(risk[i]), "low": float(risk[best] + low[i]), "high": float(risk[best] + high[i])}
        for i in range(len(risk))
    ]
    uses_all = at_once is not None and high[-1] < 0
    return {
        "window": windows[best],
        "use": "all" if uses_all else windows[best],
        "filter_px": filters_px[best_filter[best]],
        "as_good": as_good,
        "scores": [{"window": windows[i], "filter_px": filters_px[best_filter[i]], **scores[i]} for i in each],
        "all": None if at_once is None else scores[-1],
        "fields": [
            {"y": [rows.start, rows.stop], "x": [cols.start, cols.stop], "window": windows[own]}
            for (rows, cols), own in zip(
                risks.fields, _choose_by_field(risks.field_risk[:, each, best_filter], best), strict=True
            )
        ],
    }


def _choose_by_field(risk: Floats, best: int) -> list[int]:
    """Return the window of each field: the one that is best for all, unless another is surely better there.

    Parameters
    ----------
    risk : numpy.ndarray
        ``(t, window, field)``.
    best : int
        Which window is best for all.
    """
    against = risk - risk[:, best : best + 1]
    mean = against.mean(axis=0)
    mean[mean >= -SURE * standard_error(against)] = np.inf
    mean[best] = 0.0
    return [int(choice) for choice in mean.argmin(axis=0)]
