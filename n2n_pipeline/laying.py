"""Corrected frames laid over each other in coordinates of frame 0, in one pass over the counts.

What is laid is several times as large as the counts, so it is made a strip of rows at a time, for whoever sums it
up to find it near.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from n2n_pipeline import buffers
from n2n_pipeline.corrections import CorrectedMovie

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

STRIP_BYTES = 1 << 22  # of laid values


class Strip(NamedTuple):
    """Some rows of a canvas, in all frames."""

    rows: range
    """Counted from the top of the canvas."""
    values: Array
    """``(t, y, x)`` float32 in the movie's units; 0 where a frame does not reach, or holds nothing valid."""
    seen: Array
    """``(t, y, x)`` bool: where it does."""


def lay_frames(movie: CorrectedMovie, frames: range, canvas: Sequence[range], moves: Ints) -> Iterator[Strip]:
    """Correct frames, move each by whole pixels, and yield strip by strip; each is overwritten by the next.

    Parameters
    ----------
    movie : CorrectedMovie
        The movie.
    frames : range
        Frames to lay, one after another.
    canvas : sequence of range
        Rows and columns in coordinates of frame 0, perhaps beyond the image.
    moves : numpy.ndarray
        ``(t, 2)`` whole pixels (y, x) that each frame has drifted.
    """
    store = movie.store
    low, high = moves.min(axis=0).tolist(), moves.max(axis=0).tolist()
    rows, columns = (
        slice(min(max(part.start + first, 0), size), max(min(part.stop + last, size), 0))
        for part, first, last, size in zip(canvas, low, high, store.info.shape[1:], strict=True)
    )
    counts = np.ascontiguousarray(store.read(slice(frames.start, frames.stop), rows, columns))
    references = _cut_references(movie, rows, columns)
    origins = moves + np.array([canvas[0].start - rows.start, canvas[1].start - columns.start])
    left_out = movie.repeated[frames.start : frames.stop]
    height, width = len(canvas[0]), len(canvas[1])
    step = max(STRIP_BYTES // (4 * len(frames) * max(width, 1)), 1)
    size = (len(frames) * min(step, height) * width,)
    values, seen = buffers.averages.empty(size, np.float32), buffers.averages.empty(size, np.bool_)
    for first in range(0, height, step):
        strip = range(first, min(first + step, height))
        shape = (len(frames), len(strip), width)
        laid = Strip(strip, *(part[: math.prod(shape)].reshape(shape) for part in (values, seen)))
        places = (origins + np.array([first, 0]), left_out)
        _lay(counts, references, places, np.float32(movie.brightest), laid.values, laid.seen)
        yield laid


def _cut_references(movie: CorrectedMovie, rows: slice, columns: slice) -> tuple[Array, Array, Array]:
    """Return dark, gain and valid pixels ``(y, x)`` of a part of the image, also where there are none."""
    dark, gain, defects = movie.store.references
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    return (
        np.zeros(shape, np.float32) if dark is None else np.ascontiguousarray(dark[rows, columns], np.float32),
        np.ones(shape, np.float32) if gain is None else np.ascontiguousarray(gain[rows, columns], np.float32),
        np.ones(shape, np.bool_) if defects is None else np.ascontiguousarray(~defects[rows, columns]),
    )


@numba.njit(nogil=True, cache=True)
def _lay(
    counts: Array,
    references: tuple[Array, Array, Array],
    places: tuple[Ints, Array],
    brightest: np.float32,
    values: Array,
    seen: Array,
) -> None:
    """Fill ``(t, y, x)`` values and seen; pixel (0, 0) of frame t is that of ``places[0][t]`` in the counts."""
    dark, gain, valid = references
    origins, left_out = places
    n_frames, height, width = values.shape
    for t in range(n_frames):
        top, left = origins[t]
        first, last = min(max(-left, 0), width), max(min(counts.shape[2] - left, width), 0)
        last = max(first, last)
        for y in range(height):
            row = top + y
            if left_out[t] or row < 0 or row >= counts.shape[1]:
                values[t, y] = 0
                seen[t, y] = False
                continue
            values[t, y, :first] = 0
            values[t, y, last:] = 0
            seen[t, y, :first] = False
            seen[t, y, last:] = False
            part = slice(left + first, left + last)
            reference = dark[row, part], gain[row, part], valid[row, part]
            out = values[t, y, first:last], seen[t, y, first:last]
            _correct(counts[t, row, part], reference, brightest, out)


@numba.njit(nogil=True, cache=True)
def _correct(
    counts: Array, reference: tuple[Array, Array, Array], brightest: np.float32, out: tuple[Array, Array]
) -> None:
    """Correct a row as `CorrectedMovie.read` does."""
    dark, gain, valid = reference
    values, seen = out
    for j in range(values.size):
        value = (np.float32(counts[j]) - dark[j]) * gain[j]
        # Of numbers only those that are finite differ from themselves by nothing.
        good = valid[j] & (value - value == 0) & (value <= brightest)
        values[j] = value if good else np.float32(0)
        seen[j] = good
