"""Where there is something to see: the contrast of a movie, square by square, against its own noise.

The two halves of all frames share the scene and no noise, so their covariance within a square is the variance of
the scene there, and zero on average where the field is empty. Patches may be drawn by it. What is drawn then
depends on the movie as a whole, hardly on the noise of any one frame, so the targets stay unbiased.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from n2n_pipeline.training.stacks import Stack

SQUARE_PX = 32
BIN_PX = 4  # finer detail is mostly noise
LEAST_SHARE = 0.01
"""Of the mean contrast: what a square without any is given, so that every place is drawn at times."""


def measure_detail(stack: Stack) -> npt.NDArray[np.float64]:
    """Measure the variance of the scene in squares of `SQUARE_PX`, and turn it into the share of draws.

    Parameters
    ----------
    stack : Stack
        Groups of frames; at least two.

    Returns
    -------
    numpy.ndarray
        ``(rows, cols)``, adding up to 1; squares at the lower and right ends may be cut.
    """
    even, odd = (_bin_average(Stack(stack.sums[half::2], stack.counts[half::2])) for half in (0, 1))
    per_square = SQUARE_PX // BIN_PX
    shape = [-(-side // per_square) for side in even.shape]
    found = np.zeros(shape)
    for row, col in np.ndindex(*shape):
        square = (slice(row * per_square, (row + 1) * per_square), slice(col * per_square, (col + 1) * per_square))
        a, b = even[square], odd[square]
        found[row, col] = max(float(np.mean((a - a.mean()) * (b - b.mean()))), 0.0)
    found += LEAST_SHARE * found.mean() + np.finfo(float).tiny
    return np.asarray(found / found.sum())


def draw_start(
    detail: npt.NDArray[np.float64], whole: tuple[range, range], side: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Draw where a patch starts, so that its middle lies in a square drawn by its detail, where the image allows.

    Parameters
    ----------
    detail : numpy.ndarray
        As `measure_detail` returns it, of the same region.
    whole : tuple of range
        Rows and columns of the region.
    side : int
        Of the patch, in px.
    rng : numpy.random.Generator
        Of this patch.
    """
    square = np.unravel_index(int(rng.choice(detail.size, p=detail.ravel())), detail.shape)
    starts = []
    for part, index in zip(whole, square, strict=True):
        middle = int(index) * SQUARE_PX + int(rng.integers(SQUARE_PX))
        starts.append(part.start + min(max(middle - side // 2, 0), len(part) - side))
    return starts[0], starts[1]


def _bin_average(stack: Stack) -> npt.NDArray[np.float64]:
    """Average all groups, and ``BIN_PX`` by ``BIN_PX`` pixels; pixels left over at the ends are dropped."""
    total, count = stack.sums.sum(axis=0, dtype=np.float64), stack.counts.sum(axis=0, dtype=np.float64)
    rows, cols = (max(side // BIN_PX, 1) for side in total.shape)
    high, wide = (min(side, BIN_PX) for side in total.shape)
    totals, counts = (
        part[: rows * high, : cols * wide].reshape(rows, high, cols, wide).sum(axis=(1, 3))
        for part in (total, count)
    )
    average = totals / np.maximum(counts, 1)
    return np.where(counts > 0, average, average[counts > 0].mean() if counts.any() else 0.0)
