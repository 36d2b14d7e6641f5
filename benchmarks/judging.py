"""How close frames are to their truth, and the sheet of pictures that shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from n2n_pipeline.files import read_json
from n2n_pipeline.metrics.frc import ring_power
from n2n_pipeline.metrics.quality import BORDER_PX, fit_to_truth, score_frame
from n2n_pipeline.pictures import Limits, contact_sheet, contrast_limits

Floats = npt.NDArray[np.floating[Any]]

DETAIL_PER_PX = 0.05
"""Cycles per pixel above which a scene's structure counts as detail: 20 px and finer."""
SHOWN_PX = 192
GREYS = 40
"""Levels that a sheet is drawn in: a third of the bytes, and no less to see."""


def judge(frames: Floats, truth: Floats) -> dict[str, float]:
    """Score frames, ``(n, y, x)``, against their truth.

    Returns
    -------
    dict
        ``snr_db`` and ``ssim``, means over frames; ``detail_power``, the power above 0.05 cycles per pixel over
        the truth's, noise and invention counted; ``detail_kept``, the part of the truth's detail that is there, at
        its place: cross spectrum over the truth's power. A perfect picture has 1 of both; noise and invention add
        to the first alone.
    """
    scores = [score_frame(*both) for both in zip(frames, truth, strict=True)]
    inside = (slice(BORDER_PX, -BORDER_PX), slice(BORDER_PX, -BORDER_PX))
    wanted = np.stack([image[inside] for image in truth]).astype(np.float64)
    fitted = np.stack(
        [fit_to_truth(one[inside].astype(float), other) for one, other in zip(frames, wanted, strict=True)]
    )
    power = ring_power(fitted, wanted)
    detail = slice(round(DETAIL_PER_PX * min(wanted.shape[1:])), None)
    true = power.second[detail].sum()
    return {
        "snr_db": round(float(np.mean([score.snr_db for score in scores])), 2),
        "ssim": round(float(np.mean([score.ssim for score in scores])), 3),
        "detail_power": round(float(power.first[detail].sum() / true), 3),
        "detail_kept": round(float(power.cross[detail].sum() / true), 3),
    }


def judge_kept_out(frames: Floats, truth: Floats, plan: Path) -> dict[str, float]:
    """Score frames in the squares that training kept out, whose truth no training towards it has seen either.

    Parameters
    ----------
    frames, truth : numpy.ndarray
        ``(n, y, x)``.
    plan : pathlib.Path
        What a training resolved, ``resume/plan.json``; without it there is nothing to tell.

    Returns
    -------
    dict
        ``kept_out_snr_db``, with the fit and the variance of whole frames; the mean over frames.
    """
    if not plan.exists():
        return {}
    inside = np.zeros(truth.shape[1:], bool)
    for y, x, side in read_json(plan)["held_out"][0]:
        inside[y : y + side, x : x + side] = True
    fitted = [
        fit_to_truth(one.astype(float), other.astype(float)) for one, other in zip(frames, truth, strict=True)
    ]
    errors = [np.mean((one - other)[inside] ** 2) for one, other in zip(fitted, truth, strict=True)]
    return {"kept_out_snr_db": round(float(np.mean(10 * np.log10(np.var(truth, axis=(1, 2)) / errors))), 2)}


def draw_sheet(pictures: dict[str, Floats], truth: Floats, pixel_size: float | None, path: Path) -> None:
    """Draw one frame as every method has it, its middle, all with the truth's contrast.

    Parameters
    ----------
    pictures : dict
        ``(y, x)`` by title; brightness and contrast are fitted to the truth.
    truth : numpy.ndarray
        ``(y, x)``.
    pixel_size : float or None
        Å per pixel.
    path : pathlib.Path
        PNG file to write.
    """
    y, x = ((side - SHOWN_PX) // 2 for side in truth.shape)
    place = (slice(y, y + SHOWN_PX), slice(x, x + SHOWN_PX))
    limits = contrast_limits(truth[place])
    spread = limits.white - limits.black
    wide = Limits(limits.black - 0.1 * spread, limits.white + 0.1 * spread)
    step = (wide.white - wide.black) / GREYS
    shown = [truth, *(fit_to_truth(picture.astype(float), truth) for picture in pictures.values())]
    coarse = [np.round((image[place] - wide.black) / step) * step + wide.black for image in shown]
    path.write_bytes(contact_sheet(coarse, ["truth", *pictures], pixel_size, wide, columns=6))
