"""Pixels of single frames that no electron can have made, such as hits by X-rays.

A limit that cut into the tail of what electrons leave would bias every average towards the dark. So it is placed
where that tail, taken to fall no slower than an exponential does beyond its 99.9th percentile, holds one value in
10^10: what is above it is left out of both halves, as a bad pixel is, and what is below stays. Hits must be fewer
than one value in 10^4.
"""

from __future__ import annotations

import logging
import math

import numpy as np

from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.geometry import spread_evenly

SAMPLE_FRAMES = 16
SAMPLE_PX = 512  # side of the part of each frame that is looked at
TAIL = 1e-3  # share of values beyond which the tail is extrapolated
REMAINDER = 1e-10  # share of electrons' values that may lie above the limit

_log = logging.getLogger(__name__)


def without_outliers(movie: CorrectedMovie) -> CorrectedMovie:
    """Return the same movie, in which values too bright for electrons are invalid."""
    brightest = estimate_brightest(movie)
    _log.info("values above %.4g are taken for hits by X-rays and left out", brightest)
    return CorrectedMovie(movie.store, brightest)


def estimate_brightest(movie: CorrectedMovie) -> float:
    """Estimate the value that electrons do not exceed, in the movie's units.

    Parameters
    ----------
    movie : CorrectedMovie
        Some of its frames are read.

    Returns
    -------
    float
        Infinite where no pixel of the sample is valid.
    """
    values = _sample(movie)
    if not len(values):
        return math.inf
    near, middle, far = np.quantile(values, (1 - 10 * TAIL, 1 - TAIL, 1 - TAIL / 10))
    decay = max(middle - near, far - middle) / math.log(10)
    above = values[values > middle]
    rare = 2 * float(np.median(above)) if len(above) else middle  # where few values hold an electron at all
    return float(max(middle + decay * math.log(TAIL / REMAINDER), rare))


def _sample(movie: CorrectedMovie) -> np.ndarray:
    n_frames, *sides = movie.store.info.shape
    place = (slice(max(0, (side - SAMPLE_PX) // 2), (side + SAMPLE_PX) // 2) for side in sides)
    rows, cols = place
    found = []
    for t in spread_evenly(n_frames, min(SAMPLE_FRAMES, n_frames)):
        values, valid = movie.read(slice(t, t + 1), rows, cols)
        found.append(values[valid].astype(np.float64))
    return np.concatenate(found)
