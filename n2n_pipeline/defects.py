"""Hot, dead and stuck pixels, rows and columns, found from a movie's own statistics over time.

The image is looked at in bands of rows, by several threads: what is needed of a band stays in a core's cache, and
memory does not grow with the camera.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline.gathering import Statistics

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]

NEIGHBOURHOOD = 5  # px; a defect is judged against the median of so many by so many pixels
REACH = NEIGHBOURHOOD // 2
BAND_ROWS = 32
SAMPLE_BANDS = 8  # tell how far means usually stray
SIGMAS = 6.0  # standard deviations beyond which a pixel's mean is not noise
CHANCE = 1e-9  # one-sided probability of that many
STILL = 0.01  # a pixel's variance over its neighbours', below which it does not fluctuate
LINE_RATIO = 4.0  # a row or column whose temporal variance differs from its neighbours' by this is broken
LINE_PIXELS = 512  # of a row or column, enough for its median


def find_defects(statistics: Statistics, dark: Floats | None = None, gain: Floats | None = None) -> Bools:
    """Find hot, dead and stuck pixels, rows and columns from a movie's statistics over time.

    A pixel is a defect when its mean lies further from the median of its neighbourhood than noise and the
    scene's own texture explain, or when it does not fluctuate though its neighbours do.

    Parameters
    ----------
    statistics : Statistics
        Of the raw counts, over the whole movie.
    dark, gain : numpy.ndarray, optional
        ``(y, x)`` references; an uncorrected offset or gain pattern would look like defects.

    Returns
    -------
    numpy.ndarray
        ``(y, x)``, True where the pixel is bad. All False for fewer than two frames.
    """
    height = statistics.shape[0]
    bad = np.zeros(statistics.shape, bool)
    movie = _Seen(statistics, dark, gain)
    bands = [slice(y, min(y + BAND_ROWS, height)) for y in range(0, height, BAND_ROWS)]
    if statistics.n_frames < 2 or not any(movie.variance(band).any() for band in bands):
        return bad
    usual = _usual_stray(movie, bands)

    def judge(rows: slice) -> None:
        band = movie.look(rows)
        if _has_suspects(band, usual):
            local_variance = local_median(band.around)[band.inner]
            events = _events(band, local_variance, statistics.n_frames)
            bad[rows] = _outlying(band, events, usual) | _stuck(band, local_variance, events)

    with ThreadPoolExecutor() as pool:
        lines = pool.map(partial(_broken_lines, movie), (0, 1))
        list(pool.map(judge, bands))
    for broken in lines:
        bad |= broken
    return bad


class _Band(NamedTuple):
    """Rows of the image: ``(y, x)`` each."""

    mean: Floats
    variance: Floats
    local_mean: Floats
    """Median of each pixel's neighbourhood."""
    around: Floats
    """Variance of these rows and of those that their neighbourhoods reach."""
    inner: slice
    """Where among these they are."""


@dataclass(frozen=True)
class _Seen:
    """Statistics as they would be after dark and gain correction, in single precision: twice as fast."""

    statistics: Statistics
    dark: Floats | None
    gain: Floats | None

    def mean(self, rows: slice, cols: slice = slice(None)) -> Floats:
        """Return the corrected mean, ``(y, x)``."""
        mean: Floats = self.statistics.mean(rows, cols).astype(np.float32)
        mean = mean if self.dark is None else mean - self.dark[rows, cols]
        return mean if self.gain is None else mean * self.gain[rows, cols]

    def variance(self, rows: slice, cols: slice = slice(None)) -> Floats:
        """Return the corrected variance, ``(y, x)``."""
        variance: Floats = self.statistics.variance(rows, cols).astype(np.float32)
        return variance if self.gain is None else variance * np.square(self.gain[rows, cols])

    def look(self, rows: slice) -> _Band:
        """Return rows, and what is around them."""
        above = min(rows.start, REACH)
        outer = slice(rows.start - above, min(rows.stop + REACH, self.statistics.shape[0]))
        inner = slice(above, above + rows.stop - rows.start)
        mean, variance = self.mean(outer), self.variance(outer)
        return _Band(mean[inner], variance[inner], local_median(mean)[inner], variance, inner)


def local_median(image: Floats) -> Floats:
    """Return the median along y of medians along x over the neighbourhood, 30 times faster than a true median.

    It ignores lone outliers, rows and columns as a true median does.
    """
    mirrored = [min(REACH, side - 1) for side in image.shape]
    padded = np.pad(image, [(n, n) for n in mirrored], mode="reflect")
    if min(mirrored) < REACH:
        padded = np.pad(padded, [(REACH - n,) * 2 for n in mirrored], mode="edge")
    return _median_of_five(_median_of_five(padded, 1), 0)


def _median_of_five(image: Floats, axis: int) -> Floats:
    """Return medians of five neighbours along an axis, which loses four."""
    n = image.shape[axis] - NEIGHBOURHOOD + 1
    a, b, c, d, e = (image[k : k + n] if axis == 0 else image[:, k : k + n] for k in range(NEIGHBOURHOOD))
    low, other = np.minimum(a, b), np.minimum(c, d)
    np.maximum(low, other, out=low)  # the lowest of four is out
    high = np.maximum(a, b)
    np.minimum(high, np.maximum(c, d, out=other), out=high)  # so is the highest
    np.minimum(np.maximum(low, high, out=other), e, out=other)
    return np.maximum(np.minimum(low, high, out=low), other, out=other)


def _usual_stray(movie: _Seen, bands: list[slice]) -> float:
    """Return how far, in the movie's units, means stray from their surroundings by noise and texture alone."""
    sample = [movie.look(band) for band in bands[:: max(1, len(bands) // SAMPLE_BANDS)]]
    strays = np.concatenate([np.abs(band.mean - band.local_mean).ravel() for band in sample])
    deviation = 1.4826 * float(np.median(strays))  # standard deviation of a normal distribution
    largest = max(float(np.abs(band.mean).max()) for band in sample)
    return max(SIGMAS * deviation, 1e-6 * largest)


def _has_suspects(band: _Band, usual: float) -> bool:
    """Tell, at half the cost of a judgement, whether a band may hold defects: most of a good camera do not."""
    may_be_still = band.variance.min() <= STILL * band.around.max()
    return bool(may_be_still or (np.abs(band.mean - band.local_mean) > usual).any())


def _events(band: _Band, local_variance: Floats, n_frames: int) -> Floats:
    """Estimate, from the neighbourhood, how many independent electrons each pixel has seen.

    For counts of electrons of any size and read noise, mean² / variance of one frame is the number of electrons
    in it, or fewer where read noise counts: the number that sets how far a mean may stray.
    """
    spread = np.maximum(local_variance, 1e-12 * max(float(local_variance.max()), 1e-20))
    return np.asarray(n_frames * np.square(band.local_mean) / spread)


def _outlying(band: _Band, events: Floats, usual: float) -> Bools:
    """Mark means that neither noise nor texture explains."""
    strays = band.mean - band.local_mean
    bad = np.abs(strays) > usual
    # Few electrons stray further upwards than a normal distribution does: Poisson's upper limit holds there.
    upwards = np.nonzero(strays > usual)
    seen = np.maximum(events[upwards], 1e-12)
    limit = (_poisson_limit(seen) - seen) * np.abs(band.local_mean[upwards]) / seen
    bad[upwards] = strays[upwards] > limit
    return np.asarray(bad)


def _poisson_limit(expected: Floats) -> Floats:
    """Return the count that a Poisson variable exceeds as rarely as a normal one exceeds ``SIGMAS``.

    References
    ----------
    Wilson & Hilferty (1931), PNAS 17, 684-688: chi-squared, and so Poisson, by the cube of a normal variable.
    """
    shape = expected + 1.0
    return np.asarray(shape * (1.0 - 1.0 / (9.0 * shape) + SIGMAS / (3.0 * np.sqrt(shape))) ** 3)


def _stuck(band: _Band, local_variance: Floats, events: Floats) -> Bools:
    """Mark pixels that do not fluctuate where electrons must have arrived: chance of none is exp(-events)."""
    still = band.variance <= STILL * local_variance
    return np.asarray(still & (local_variance > 0) & (events > -np.log(CHANCE)))


def _broken_lines(movie: _Seen, axis: int) -> Bools:
    """Mark rows (axis 0) or columns whose variance, taken over their length, is not that of their neighbours."""
    shape = movie.statistics.shape
    every = [slice(None, None, max(1, side // LINE_PIXELS)) for side in shape]
    every[axis] = slice(None)
    variance = movie.variance(*every)
    line = np.median(variance, axis=1 - axis) if min(shape) >= 32 else variance.mean(axis=1 - axis)
    local = local_median(line[np.newaxis])[0]
    return np.expand_dims((line < local / LINE_RATIO) | (line > local * LINE_RATIO), 1 - axis)
