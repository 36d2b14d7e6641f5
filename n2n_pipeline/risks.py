"""How well windows of a movie predict frames that they do not hold.

For each held-out frame t, an estimate made from W frames around it is compared with the frame itself,

    Q(W) = mean over t of E(estimate from W frames around t, without t - frame t)² - noise variance of a frame,

in which blur and noise both count. Frames are laid over each other by whole pixels, so an estimate is moved by
what was rounded off to where frame t has the scene, as denoised frames are. The quick estimator is the mean of the
window after a Gaussian filter, of several widths, since what follows the average (a network) also trades detail
for noise. A trained network can be scored in its place: half of the frames, and the other half, denoised and
averaged, as `denoise` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise, product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from n2n_pipeline.checkpoint import Denoiser
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.errors import Stopped
from n2n_pipeline.filling import fill_unseen
from n2n_pipeline.halving import window_frames
from n2n_pipeline.ladder import level_frames, split_around
from n2n_pipeline.placing import move, offset_of
from n2n_pipeline.progress import progress
from n2n_pipeline.records import stop_requested
from n2n_pipeline.shifted import Ints, ShiftedFrames, whole_shifts

Floats = npt.NDArray[np.float64]
Region = tuple[slice, slice]

FILTERS_PX = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # standard deviations tried for the linear estimator
REGION_PX = 512  # side of the regions that a large image is scored on
FIELD_PX = 64  # side of the fields that each may want a window of its own
READ_FRAMES = 64  # frames held at once
RIDGE = 1e-6  # of the mean square of the estimates; they are very much alike

Estimator = Callable[[Floats, Ints], Floats]
"""Turns sums and counts of two halves, ``(2, y, x)``, into an estimate of the frame between them."""


class Risks(NamedTuple):
    """Squared errors against held-out frames, without the part that no estimator can change."""

    risk: Floats
    """``(t, window, estimate)`` mean of estimate² - 2 · estimate · frame, in squared units of the movie."""
    signal: Floats
    """``(t,)`` mean of the product of two neighbouring frames: what makes the risk a squared error."""
    fields: list[Region]
    """Parts of the image, of up to 64 by 64 px."""
    field_risk: Floats
    """``(t, window, estimate, field)``, the risk of each."""
    moments: Floats | None = None
    """``(t, product, product)`` mean products of all estimates, of 1 and of the frame, all less ``origin``."""
    origin: float = 0.0
    """What estimates and frames are taken less, in `moments` alone."""


def measure_risks(
    movie: CorrectedMovie,
    windows: tuple[int, ...],
    frames: Sequence[int],
    estimators: Sequence[Estimator],
    threads: int = 1,
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
    threads : int
        Regions of frames that are looked at at a time.
    """
    regions = _regions(movie.store.info.shape[1:])
    scores = []
    pool = ThreadPoolExecutor(threads)
    try:
        found = pool.map(
            lambda place: _score_frame(movie, place[0], windows, place[1], estimators), product(frames, regions)
        )
        with progress("sweep", len(frames), "frames") as advance:
            for _ in frames:
                if stop_requested():
                    raise Stopped(movie.store.path)
                parts = list(islice(found, len(regions)))
                scores.append(_Score(*(np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))))
                advance(1)
    finally:
        pool.shutdown(cancel_futures=True)
    risk, signal, pixels, moments = (np.stack(part) for part in zip(*scores, strict=True))
    fields = [field for region in regions for field in _fields(region)]
    seen = np.maximum(pixels, 1)
    weight = np.maximum(pixels.sum(axis=-1), 1)
    return Risks(
        risk.sum(axis=-1) / weight[:, None, None],
        signal.sum(axis=-1) / weight,
        fields,
        risk / seen[:, None, None],
        moments.sum(axis=-1) / weight[:, None, None],
        movie.typical_value,
    )


def judge_all_windows(risks: Risks) -> Floats:
    """Return the ``(t,)`` risks of a linear stand-in for a network that sees all windows at once.

    It is the best weighted sum of all estimates, over all windows and filters. What that takes off the risk of the
    best weighted sum of one window's estimates is taken off the risk of the best single estimate: filters weighed
    together sharpen as no Gaussian does, which has nothing to do with windows.
    """
    single = risks.risk.reshape(len(risks.risk), -1)
    alone = [combine_estimates(risks, number) for number in range(risks.risk.shape[1])]
    return single[:, single.mean(axis=0).argmin()] + combine_estimates(risks) - min(alone, key=np.mean)


def combine_estimates(risks: Risks, number: int | None = None) -> Floats:
    """Return the ``(t,)`` risks of the best weighted sum of the estimates from one window, or from all.

    The weights are the same at every pixel, and are fitted by least squares to the other frames that are held out.
    """
    if risks.moments is None:
        raise ValueError("risks were given without moments")
    n_windows, n_estimates = risks.risk.shape[1:]
    first, last = (0, n_windows) if number is None else (number, number + 1)
    used = [*range(first * n_estimates, last * n_estimates), -2, -1]
    moments = risks.moments[:, used][:, :, used]
    found = []
    for t, own in enumerate(moments):
        others = np.delete(moments, t, axis=0).sum(axis=0)
        square, with_frame = others[:-1, :-1], others[:-1, -1]
        ridge = RIDGE * np.trace(square) / len(square) * np.eye(len(square))
        weights = np.linalg.solve(square + ridge, with_frame)
        centred = weights @ own[:-1, :-1] @ weights - 2 * weights @ own[:-1, -1]
        found.append(centred - 2 * risks.origin * own[-2, -1] - risks.origin**2)
    return np.array(found)


def _regions(shape: tuple[int, int]) -> list[Region]:
    """Cut a large image down to a few regions, spread over it."""
    spans = []
    for size in shape:
        starts = [0] if size <= REGION_PX else [size // 4 - REGION_PX // 4, 3 * size // 4 - 3 * REGION_PX // 4]
        spans.append([slice(start, min(start + REGION_PX, size)) for start in starts])
    return [(rows, cols) for rows in spans[0] for cols in spans[1]]


def _starts(size: int) -> list[int]:
    """Cut a length into nearly equal parts of at most `FIELD_PX`."""
    parts = -(-size // FIELD_PX)
    return [part * size // parts for part in range(parts)]


def _fields(region: Region) -> list[Region]:
    """Cut a region into fields, row by row."""
    spans = []
    for part in region:
        starts = [*_starts(part.stop - part.start), part.stop - part.start]
        spans.append([slice(part.start + a, part.start + b) for a, b in pairwise(starts)])
    return [(rows, cols) for rows in spans[0] for cols in spans[1]]


def _sum_fields(image: npt.NDArray[Any]) -> Floats:
    """Return the ``(field,)`` sums of a region's pixels."""
    rows, cols = (_starts(size) for size in image.shape)
    return np.add.reduceat(np.add.reduceat(image.astype(np.float64), rows, axis=0), cols, axis=1).ravel()


class _Score(NamedTuple):
    """Of one frame, summed over the pixels of each field."""

    risk: Floats
    """``(window, estimate, field)``."""
    signal: Floats
    """``(field,)``."""
    pixels: Floats
    moments: Floats
    """``(product, product, region)``, summed over the pixels of each region."""


def _score_frame(
    movie: CorrectedMovie,
    t: int,
    windows: tuple[int, ...],
    region: Region,
    estimators: Sequence[Estimator],
) -> _Score:
    """Predict frame t from each window by each estimator."""
    frame, valid = (part[0] for part in movie.read(slice(t, t + 1), *region))
    risks: list[list[Floats]] = []
    products = np.empty((0, 0), np.float32)
    signal = pixels = np.empty(0)
    n_frames = movie.store.info.shape[0]
    spans = [window_frames(n_frames, t, window + 1) for window in windows]
    sums = _growing_sums(movie, t, spans, region, _split_nearest(n_frames, t))
    for span, (total, count) in zip(spans, sums, strict=True):
        if not risks:  # what the smallest window sees, the others see too
            seen = valid & (count.sum(axis=0) > 0)
            pixels = _sum_fields(seen)
            signal = _sum_fields(_mean(total, count, movie.typical_value) * frame * seen)
            products = np.empty((len(windows) * len(estimators) + 2, int(seen.sum())), np.float32)
            products[-2], products[-1] = 1.0, frame[seen] - movie.typical_value
        of_window = products[len(risks) * len(estimators) :]
        risks.append([])
        by = _way_to(movie, t, span)
        for estimate, row in zip(estimators, of_window, strict=False):
            guess = _move(estimate(total, count), by, movie.typical_value)
            risks[-1].append(_sum_fields(guess * (guess - 2.0 * frame) * seen))
            row[:] = guess[seen] - movie.typical_value
    return _Score(np.array(risks), signal, pixels, (products @ products.T)[..., None].astype(np.float64))


def _way_to(movie: CorrectedMovie, t: int, frames: Iterable[int]) -> Floats:
    """Return how far an average of frames, without frame t, has to be moved to where that has the scene."""
    members = [f for f in frames if f != t]
    return offset_of(movie, t, members, "camera") if members else np.zeros(2)


def _move(guess: Floats, by: Floats, typical: float) -> Floats:
    """Move an estimate as denoised frames are, which takes single precision: of what it is beside the typical."""
    return np.asarray(typical + move((guess - typical).astype(np.float32), by), np.float64) if by.any() else guess


def score_ladder(movie: CorrectedMovie, denoiser: Denoiser, frames: Sequence[int]) -> Floats:
    """Return the ``(t,)`` risks of a network of a ladder, each predicting a frame that it is not shown."""
    n_frames, ladder = movie.store.info.shape[0], denoiser.card.ladder
    regions = _regions(movie.store.info.shape[1:])
    found = []
    with progress("sweep", len(frames), "frames") as advance:
        for t in frames:
            total = np.zeros(2)
            spans, is_even = [level_frames(n_frames, t, window) for window in ladder], split_around(n_frames, t)
            ways = [_way_to(movie, t, [f for f in spans[-1] if is_even[f] == even]) for even in (True, False)]
            for region in regions:
                sums = list(_growing_sums(movie, t, spans, region, is_even))
                total += _score_levels(movie, t, region, denoiser, sums, ways)
            found.append(total[0] / max(total[1], 1))
            advance(1)
    return np.array(found)


def _score_levels(
    movie: CorrectedMovie,
    t: int,
    region: Region,
    denoiser: Denoiser,
    sums: Sequence[tuple[Floats, Ints]],
    ways: Sequence[Floats],
) -> Floats:
    """Return the summed risk of frame t in a region, and its number of pixels."""
    frame, valid = (part[0] for part in movie.read(slice(t, t + 1), *region))
    filled = [
        [fill_unseen(*half, movie.typical_value) for half in zip(total, count, strict=True)]
        for total, count in sums
    ]
    counts = np.stack([count for _, count in sums], axis=1).astype(np.float32)
    halves = denoiser(np.stack(filled, axis=1), counts).astype(np.float64)
    moved = [_move(half, by, movie.typical_value) for half, by in zip(halves, ways, strict=True)]
    guess = np.mean(moved, axis=0)
    seen = valid & (counts[:, 0].sum(axis=0) > 0)
    return np.array([(guess * (guess - 2.0 * frame))[seen].sum(), seen.sum()])


def _mean(total: Floats, count: Ints, typical: float) -> Floats:
    both = count.sum(axis=0)
    return np.where(both > 0, total.sum(axis=0) / np.maximum(both, 1), typical)


def filter_mean(movie: CorrectedMovie, sigma: float) -> Estimator:
    """Average both halves under a Gaussian filter in which a pixel weighs as much as it has frames."""

    def estimate(total: Floats, count: Ints) -> Floats:
        average, both = _mean(total, count, movie.typical_value), count.sum(axis=0).astype(np.float64)
        if sigma == 0:
            return average
        weight = ndimage.gaussian_filter(both, sigma, mode="mirror")
        return np.asarray(ndimage.gaussian_filter(average * both, sigma, mode="mirror") / np.maximum(weight, 1e-9))

    return estimate


def denoise_halves(movie: CorrectedMovie, denoiser: Denoiser) -> Estimator:
    """Denoise each half with a network and average them."""

    def estimate(total: Floats, count: Ints) -> Floats:
        halves = [fill_unseen(*half, movie.typical_value) for half in zip(total, count, strict=True)]
        denoised = denoiser(np.stack(halves), count.astype(np.float32))
        return np.asarray(denoised.mean(axis=0, dtype=np.float64))

    return estimate


def _split_nearest(n_frames: int, t: int) -> npt.NDArray[np.bool_]:
    """Deal frames to two halves: of two at the same distance from t one to either, in Thue-Morse order of it."""
    frames = np.arange(n_frames)
    return np.asarray((np.bitwise_count(np.abs(frames - t)) + (frames > t)) % 2 == 0)


def _growing_sums(
    movie: CorrectedMovie, t: int, spans: Sequence[range], region: Region, is_even: npt.NDArray[np.bool_]
) -> Iterator[tuple[Floats, Ints]]:
    """Sum the frames around t, itself left out, in two halves, for each span in turn; each frame is read once.

    Spans grow, and ``is_even`` says of every frame of the movie which half it is in, so that the halves stay
    balanced as they do.
    """
    shifts = whole_shifts(movie)
    extent = (2, *(part.stop - part.start for part in region))
    total, count = np.zeros(extent), np.zeros(extent, np.int64)
    have = range(t, t + 1)
    for want in spans:
        for piece in (range(want.start, have.start), range(have.stop, want.stop)):
            for start in range(piece.start, piece.stop, READ_FRAMES):
                part = range(start, min(start + READ_FRAMES, piece.stop))
                frames = ShiftedFrames(movie, part, range(t, t + 1), region, shifts, "camera")
                for half in (0, 1):
                    more, seen = frames.sum_frames(t, [f for f in part if is_even[f] == (half == 0)])
                    total[half] += more
                    count[half] += seen
        have = want
        yield total.copy(), count.copy()
