"""Dark, gain and defects: bad pixels found from the movie's own statistics, corrections applied lazily.

Corrected values are ``(counts - dark) * gain``, in the movie's own units (counts or electrons per pixel per
frame). A pixel that is a defect, or not finite, is *invalid*: its value is 0 and it carries no weight; nothing
is invented for it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage, special

from n2n_pipeline.store import MovieStore

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]

NEIGHBOURHOOD = 5  # px; a defect is judged against the median of so many by so many pixels
BAND_ROWS = 32  # rows whose medians are taken at a time
CHANCE = 1e-9  # one-sided probability under which a pixel's mean is not noise: six standard deviations
LINE_RATIO = 4.0  # a row or column whose temporal variance differs from its neighbours' by this is broken


class Statistics:
    """Mean and variance over time of every pixel, gathered frame by frame in float64.

    Sums of counts and of their squares are exact for integer counts up to 2**53, so neither the order nor the
    grouping of the frames changes a bit of the result.

    Parameters
    ----------
    shape : tuple of int
        ``(y, x)``.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.n_frames = 0
        self._sum = np.zeros(shape, np.float64)
        self._square = np.zeros(shape, np.float64)

    def accumulate(self, frames: npt.NDArray[Any]) -> None:
        """Add ``(t, y, x)`` frames of raw counts; values that are not finite count as 0."""
        for frame in frames:
            values = frame.astype(np.float64)
            if frame.dtype.kind == "f":
                np.nan_to_num(values, copy=False, posinf=0.0, neginf=0.0)
            self._sum += values
            np.multiply(values, values, out=values)
            self._square += values
            self.n_frames += 1

    @classmethod
    def join(cls, bands: Sequence[Statistics]) -> Statistics:
        """Put bands of rows, gathered apart over the same frames, one below the other."""
        joined = cls((0, 0))
        joined.n_frames = bands[0].n_frames
        joined._sum = np.concatenate([band._sum for band in bands])
        joined._square = np.concatenate([band._square for band in bands])
        return joined

    def merge(self, other: Statistics) -> None:
        """Add what another part of the movie gathered."""
        self.n_frames += other.n_frames
        self._sum += other._sum
        self._square += other._square

    @property
    def mean(self) -> Floats:
        """``(y, x)`` mean over time, in counts."""
        return self._sum / max(self.n_frames, 1)

    @property
    def variance(self) -> Floats:
        """``(y, x)`` variance over time, in counts squared; 0 for fewer than two frames."""
        if self.n_frames < 2:
            return np.zeros_like(self._sum)
        centred = self._square - self._sum**2 / self.n_frames
        return np.maximum(centred, 0.0) / (self.n_frames - 1)


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
    mean, variance = statistics.mean, statistics.variance
    if statistics.n_frames < 2 or not variance.any():
        return np.zeros(mean.shape, bool)
    if dark is not None:
        mean = mean - dark
    if gain is not None:
        mean, variance = mean * gain, variance * np.square(gain)
    around = _Surroundings(_local_median(mean), _local_median(variance))
    events = _events(around, statistics.n_frames)
    return _broken_lines(variance) | _outlying(mean, around, events) | _stuck(variance, around, events)


class _Surroundings(NamedTuple):
    """``(y, x)`` medians of every pixel's neighbourhood."""

    mean: Floats
    variance: Floats


def _local_median(image: Floats) -> Floats:
    """Return the median along y of medians along x over the neighbourhood, 30 times faster than a true median.

    It ignores lone outliers, rows and columns as a true median does, and is computed in bands that stay in cache.
    """
    reach = NEIGHBOURHOOD // 2
    padded = np.pad(image, [(min(reach, side - 1),) * 2 for side in image.shape], mode="reflect")
    padded = np.pad(padded, [(reach - min(reach, side - 1),) * 2 for side in image.shape], mode="edge")
    result = np.empty_like(image)
    for y in range(0, len(image), BAND_ROWS):
        along_x = _median_of_five(padded[y : y + BAND_ROWS + 2 * reach], 1)
        result[y : y + BAND_ROWS] = _median_of_five(along_x, 0)
    return result


def _median_of_five(image: Floats, axis: int) -> Floats:
    """Return medians of five neighbours along an axis, which loses four."""
    n = image.shape[axis] - NEIGHBOURHOOD + 1
    a, b, c, d, e = (image[k : k + n] if axis == 0 else image[:, k : k + n] for k in range(NEIGHBOURHOOD))
    low = np.maximum(np.minimum(a, b), np.minimum(c, d))  # neither can be below the median's place
    high = np.minimum(np.maximum(a, b), np.maximum(c, d))
    return np.maximum(np.minimum(low, high), np.minimum(np.maximum(low, high), e))


def _events(around: _Surroundings, n_frames: int) -> Floats:
    """Estimate, from the neighbourhood, how many independent electrons each pixel has seen.

    For counts of electrons of any size and read noise, mean² / variance of one frame is the number of electrons
    in it, or fewer where read noise counts: the number that sets how far a mean may stray.
    """
    spread = np.maximum(around.variance, 1e-12 * max(float(around.variance.max()), 1e-300))
    return n_frames * np.square(around.mean) / spread


def _outlying(mean: Floats, around: _Surroundings, events: Floats) -> Bools:
    """Mark means that neither noise nor texture explains."""
    strays = mean - around.mean
    threshold = -special.ndtri(CHANCE) * 1.4826 * float(np.median(np.abs(_sample(_sample(strays, 0), 1))))
    threshold = max(threshold, 1e-6 * float(np.abs(mean).max()))
    bad = np.abs(strays) > threshold
    # Few electrons stray further upwards than a normal distribution does: Poisson's upper limit holds there.
    upwards = np.nonzero(strays > threshold)
    seen = np.maximum(events[upwards], 1e-12)
    limit = (special.gammaincinv(seen + 1.0, 1.0 - CHANCE) - seen) * np.abs(around.mean[upwards]) / seen
    bad[upwards] = strays[upwards] > limit
    return np.asarray(bad)


def _stuck(variance: Floats, around: _Surroundings, events: Floats) -> Bools:
    """Mark pixels that do not fluctuate where electrons must have arrived: chance of none is exp(-events)."""
    local = around.variance
    return np.asarray((variance <= 0.01 * local) & (local > 0) & (events > -np.log(CHANCE)))


def _broken_lines(variance: Floats) -> Bools:
    """Mark rows and columns whose variance, taken over their length, is not that of their neighbours."""
    bad = np.zeros(variance.shape, bool)
    for axis in (0, 1):
        along = _sample(variance, 1 - axis)
        line = np.median(along, axis=1 - axis) if min(variance.shape) >= 32 else variance.mean(axis=1 - axis)
        local = ndimage.median_filter(line, NEIGHBOURHOOD, mode="mirror")
        broken = (line < local / LINE_RATIO) | (line > local * LINE_RATIO)
        bad |= np.expand_dims(broken, 1 - axis)
    return bad


def _sample(image: Floats, axis: int) -> Floats:
    """Return pixels spread evenly along an axis: no fewer than 512, enough for a median."""
    return np.moveaxis(np.moveaxis(image, axis, 0)[:: max(1, image.shape[axis] // 512)], 0, axis)


class Corrected(NamedTuple):
    """Frames after correction, and where they hold something."""

    values: npt.NDArray[np.float32]
    """``(t, y, x)`` in the movie's units; 0 where invalid."""
    valid: Bools
    """``(t, y, x)``, or ``(1, y, x)`` when it is the same for every frame."""


@dataclass(frozen=True)
class CorrectedMovie:
    """A store's frames, corrected as they are read."""

    store: MovieStore

    def read(self, frames: slice, rows: slice, cols: slice) -> Corrected:
        """Read and correct a part of the movie.

        Parameters
        ----------
        frames, rows, cols : slice
            Ranges of frames and of pixels, within the movie; no steps.
        """
        counts = np.asarray(self.store.array[frames, rows, cols])
        values = counts.astype(np.float32)
        dark, gain, defects = self.store.references
        if dark is not None:
            values -= dark[rows, cols].astype(np.float32)
        if gain is not None:
            values *= gain[rows, cols].astype(np.float32)
        valid = np.ones((1, *values.shape[1:]), bool) if defects is None else ~defects[None, rows, cols]
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            valid = valid & np.isfinite(values)
            values[~np.isfinite(values)] = 0.0
        np.multiply(values, valid, out=values)
        return Corrected(values, valid)

    @cached_property
    def typical_value(self) -> float:
        """Mean of the valid pixels of the middle frame, in the movie's units: what an unseen pixel is given."""
        middle = self.store.info.shape[0] // 2
        values, valid = self.read(slice(middle, middle + 1), slice(None), slice(None))
        return float(values.sum(dtype=np.float64) / max(int(valid.sum()), 1))
