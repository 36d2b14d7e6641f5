"""Sums of both halves of sliding windows, by compiled loops that stay in a core's cache.

Frames are ``(t, p)``, pixels laid out in one row. A window that slides by one frame keeps nearly all of them, so
a half costs a few operations per pixel and frame whatever the window's length: two for the interleaved split
(one frame leaves, one enters; of an even number of frames a window's odd half is the even half of the next, and
both are views of one array), one for each doubling of the window for the balanced one,

    even - odd = the frames filtered by the product over k of (1 - shift by 2^k),

which is the Thue-Morse sequence. Whole numbers are summed as such and floats in float64: the sums are exact, or as
good as, and neither the order of frames nor the cutting into blocks changes them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from n2n_pipeline import buffers
from n2n_pipeline.halving import Halves

Array = npt.NDArray[Any]

CACHE_BYTES = 2**20  # of all frames' sums, for some pixels at a time
MOST_PIXELS = 8192  # at a time


class Finish(NamedTuple):
    """What is done to a half's sum: divided by its number of frames, then ``(average - dark) * gain``."""

    even_count: int = 1
    odd_count: int = 1
    dark: Array | None = None
    """``(p,)``."""
    gain: Array | None = None


def slide_halves(
    frames: Array,
    window: int,
    balanced: bool,
    dtype: npt.DTypeLike,
    finish: Finish | None = None,
    ends: tuple[int, int] = (0, 0),
) -> Halves:
    """Sum both halves of every window of consecutive frames.

    Parameters
    ----------
    frames : numpy.ndarray
        ``(t, p)`` or ``(t, y, x)`` of any real type, ``t >= window``, finite.
    window : int
        Frames per window.
    balanced : bool
        Halve in Thue-Morse order (ABBABAAB), else frame by frame (ABAB).
    dtype : type
        Of the result, float32 or float64.
    finish : Finish, optional
        Divides and corrects the sums.
    ends : tuple of int
        How many more times the first and the last window are wanted.

    Returns
    -------
    Halves
        ``(t - window + 1 + sum(ends), p)`` each, ``p`` all pixels; read-only where both are views of the same
        averages.
    """
    finish = finish or Finish()
    n_frames, n_windows, size = len(frames), len(frames) - window + 1, math.prod(frames.shape[1:])
    counts = (float(max(finish.even_count, 1)), float(max(finish.odd_count, 1)))
    references = prepare_references(finish.dark, finish.gain)
    source, summed, rows = _find_rows(frames), type_of_sums(frames.dtype, window), n_frames if balanced else 2
    pixels = CACHE_BYTES // (rows * summed.itemsize + n_frames * frames.itemsize)
    pixels = max(min(pixels, MOST_PIXELS, size), 1)
    scratch = _Scratch(np.empty((n_frames, pixels), frames.dtype), np.empty((rows, pixels), summed))
    lead, n_rows = ends[0], n_windows + sum(ends)
    kept = slice(lead, lead + n_windows)
    if not balanced and window % 2 == 0 and counts[0] == counts[1]:
        # A window's odd half is the next one's even half.
        both = buffers.averages.empty((n_rows + 1, size), dtype)
        _every_other(source, (0, window // 2), scratch, counts[0], references, both[lead : kept.stop + 1])
        if not any(ends):
            both.flags.writeable = False
            return Halves(both[:-1], both[1:])
        halves = Halves(both[:-1], buffers.averages.empty((n_rows, size), dtype))
        halves.odd[kept] = both[lead + 1 : kept.stop + 1]
    else:
        even, odd = (buffers.averages.empty((n_rows, size), dtype) for _ in range(2))
        halves = Halves(even, odd)
        inner = Halves(halves.even[kept], halves.odd[kept])
        if balanced:
            _balanced(source, window, scratch, counts, references, inner)
        else:
            _every_other(source, (0, (window + 1) // 2), scratch, counts[0], references, inner.even)
            _every_other(source, (1, window // 2), scratch, counts[1], references, inner.odd)
    for half in halves:
        half[:lead], half[kept.stop :] = half[lead], half[kept.stop - 1]
    return halves


class _Scratch(NamedTuple):
    """What a core works in, small enough for its cache."""

    near: Array
    """``(t, p)`` some pixels of all frames."""
    work: Array
    """``(row, p)`` sums."""


class _Rows(NamedTuple):
    """Where the rows of frames are in memory: compiled loops over one-dimensional memory are the fast ones."""

    memory: Array
    """From the first pixel of all to the last."""
    frame_step: int
    row_step: int
    width: int


def _find_rows(frames: Array) -> _Rows:
    """Find the rows of frames, which may be a part of larger ones; copy those that are not in rows."""
    is_in_rows = frames.strides[-1] == frames.itemsize and min(frames.strides) >= 0
    if not is_in_rows or frames.size == 0:
        frames = buffers.averages.contiguous(frames)
    steps = [stride // frames.itemsize for stride in frames.strides]
    extent = frames.size and 1 + sum((length - 1) * step for length, step in zip(frames.shape, steps, strict=True))
    memory = np.lib.stride_tricks.as_strided(frames, (extent,), (frames.itemsize,))
    return _Rows(memory, steps[0], steps[-2] if frames.ndim == 3 else 0, frames.shape[-1])


def type_of_sums(dtype: np.dtype[Any], window: int) -> np.dtype[Any]:
    """Return the narrowest, so fastest, type that holds a window's sum exactly; float64 where none surely does."""
    if dtype.kind in "iub":
        limits = np.iinfo(np.uint8 if dtype.kind == "b" else dtype)
        peak = (window + 1) * max(int(limits.max), -int(limits.min))
        for narrow in (np.int16, np.int32):
            if peak <= np.iinfo(narrow).max:
                return np.dtype(narrow)
    return np.dtype(np.float64)


def prepare_references(dark: Array | None, gain: Array | None) -> tuple[Array, Array]:
    """Return dark and gain ``(p,)`` in float64 as `write_average` takes them: both empty where there are none."""
    given = next((part for part in (dark, gain) if part is not None), np.empty(0))
    return (
        np.zeros(given.shape) if dark is None else dark.astype(np.float64),
        np.ones(given.shape) if gain is None else gain.astype(np.float64),
    )


def sum_members(frames: Array, members: Array) -> Array:
    """Sum chosen frames of each window, for splits that follow no rule.

    Parameters
    ----------
    frames : numpy.ndarray
        ``(t, p)``.
    members : numpy.ndarray
        ``(window, t)``, True for the frames to be summed.

    Returns
    -------
    numpy.ndarray
        ``(window, p)`` float64.
    """
    return np.stack([frames[chosen].sum(axis=0, dtype=np.float64) for chosen in members])


def finish_sums(sums: Halves, dtype: npt.DTypeLike, finish: Finish | None = None) -> Halves:
    """Divide and correct sums as `slide_halves` does."""
    finish = finish or Finish()
    dark = 0.0 if finish.dark is None else finish.dark
    gain = 1.0 if finish.gain is None else finish.gain
    counts = (finish.even_count, finish.odd_count)
    return Halves(*(((s / max(n, 1) - dark) * gain).astype(dtype) for s, n in zip(sums, counts, strict=True)))


@numba.njit(nogil=True, cache=True)
def copy_row(row: Array, out: Array) -> None:
    """Write some pixels of a frame where their sums will be."""
    for j in range(out.size):
        out[j] = row[j]


@numba.njit(nogil=True, cache=True)
def add_row(row: Array, sums: Array) -> None:
    """Add some pixels of a frame to their sums."""
    for j in range(sums.size):
        sums[j] += row[j]


@numba.njit(nogil=True, cache=True)
def _subtract(row: Array, sums: Array) -> None:
    for j in range(sums.size):
        sums[j] -= row[j]


@numba.njit(nogil=True, cache=True)
def _subtract_two_levels(first: Array, second: Array, third: Array, fourth: Array, out: Array) -> None:
    kind = out.dtype.type
    for j in range(out.size):
        out[j] = kind(first[j]) - kind(second[j]) - kind(third[j]) + kind(fourth[j])


@numba.njit(nogil=True, cache=True)
def _slide(enters: Array, leaves: Array, sums: Array) -> None:
    for j in range(sums.size):
        sums[j] += enters[j]
        sums[j] -= leaves[j]


@numba.njit(nogil=True, cache=True)
def write_average(sums: Array, count: float, references: tuple[Array, Array], first: int, out: Array) -> None:
    """Divide and correct the sums of pixels, the first of which is ``first``.

    The result is rounded once, so that neither the type of the sums nor the way they came about shows in it.
    """
    dark, gain = references
    if dark.size:
        dark, gain = dark[first : first + out.size], gain[first : first + out.size]
        for j in range(out.size):
            out[j] = (sums[j] / count - dark[j]) * gain[j]
    elif sums.itemsize == 2 and math.frexp(count)[0] == 0.5:  # a power of two: the product is the quotient
        inverse = np.float32(1 / count)
        for j in range(out.size):
            out[j] = np.float32(sums[j]) * inverse
    elif sums.itemsize == 2:  # exact in float32, which is twice as fast
        short = np.float32(count)
        for j in range(out.size):
            out[j] = np.float32(sums[j]) / short
    else:
        for j in range(out.size):
            out[j] = sums[j] / count


@numba.njit(nogil=True, cache=True)
def _bring_near(source: _Rows, first: int, near: Array) -> None:
    """Copy some pixels of all frames, from pixel ``first`` on, to where they stay in a core's cache."""
    n_frames, length = near.shape
    for i in range(n_frames):
        done = 0
        while done < length:
            y = (first + done) // source.width
            x = first + done - y * source.width
            run = min(source.width - x, length - done)
            start = i * source.frame_step + y * source.row_step + x
            copy_row(source.memory[start : start + run], near[i, done : done + run])
            done += run


@numba.njit(nogil=True, cache=True)
def _every_other(
    source: _Rows,
    chosen: tuple[int, int],
    scratch: _Scratch,
    count: float,
    references: tuple[Array, Array],
    averages: Array,
) -> None:
    """Average every other frame, from the one ``chosen`` and each one after it on, as many as are ``chosen``."""
    begin, members = chosen
    near, work = scratch
    n_sums, size = averages.shape
    for first in range(0, size, work.shape[1]):
        stop = min(first + work.shape[1], size)
        _bring_near(source, first, near[:, : stop - first])
        frames = near[begin:, : stop - first]
        one, other = work[0, : stop - first], work[1, : stop - first]
        one[:] = 0
        other[:] = 0
        for i in range(members):
            add_row(frames[2 * i], one)
            if n_sums > 1:
                add_row(frames[2 * i + 1], other)
        for s in range(n_sums):
            write_average(one, count, references, first, averages[s, first:stop])
            if s + 2 < n_sums:
                _slide(frames[s + 2 * members], frames[s], one)
            one, other = other, one


@numba.njit(nogil=True, cache=True)
def _balanced(
    source: _Rows,
    window: int,
    scratch: _Scratch,
    counts: tuple[float, float],
    references: tuple[Array, Array],
    halves: Halves,
) -> None:
    near, work = scratch
    n_windows, size = halves.even.shape
    sums = np.empty((3, work.shape[1]), work.dtype)
    for first in range(0, size, work.shape[1]):
        stop = min(first + work.shape[1], size)
        width = stop - first
        _bring_near(source, first, near[:, :width])
        total, both, last = sums[0, :width], sums[1, :width], sums[2, :width]
        rows, span = _differences(scratch, window, width, n_windows)
        total[:] = 0
        for i in range(window):
            add_row(near[i, :width], total)
        for s in range(n_windows):
            difference = rows[s, :width]
            if span:
                second, third = rows[s + span, :width], rows[s + 2 * span, :width]
                _subtract_two_levels(difference, second, third, rows[s + 3 * span, :width], last)
                difference = last
            for j in range(width):  # twice a half
                both[j] = total[j] + difference[j]
            write_average(both, 2 * counts[0], references, first, halves.even[s, first:stop])
            for j in range(width):
                both[j] = total[j] - difference[j]
            write_average(both, 2 * counts[1], references, first, halves.odd[s, first:stop])
            if s + 1 < n_windows:
                _slide(near[s + window, :width], near[s, :width], total)


@numba.njit(nogil=True, cache=True)
def _differences(scratch: _Scratch, window: int, width: int, n_windows: int) -> tuple[Array, int]:
    """Even minus odd of every window, in a table of rows: ``work``, which becomes the difference over 2^k frames.

    A window is its binary digits, larger pieces first. A piece of 2^k frames is reversed where the frame that it
    begins at has an odd number of ones: the Thue-Morse sequence from there is its own beginning, or the reverse.
    With the table comes the span of two levels that are left to do, or 0.
    """
    near, work = scratch
    n_frames, span = len(work), 1
    is_sum = window & (window - 1)  # of several pieces
    difference = np.zeros((n_windows if is_sum else 0, work.shape[1]), work.dtype)
    if window % 4:
        for i in range(n_frames):
            copy_row(near[i, :width], work[i, :width])
    else:
        n_frames, span = n_frames - 3, 4
        for i in range(n_frames):
            second, third, fourth = near[i + 1, :width], near[i + 2, :width], near[i + 3, :width]
            _subtract_two_levels(near[i, :width], second, third, fourth, work[i, :width])
    while True:
        if is_sum and window & span:
            begin = window // (2 * span) * (2 * span)
            ones, rest = 0, begin
            while rest:
                ones += rest & 1
                rest >>= 1
            for s in range(n_windows):
                if ones % 2 == 0:
                    add_row(work[s + begin, :width], difference[s, :width])
                else:
                    _subtract(work[s + begin, :width], difference[s, :width])
        if not is_sum and 4 * span == window:
            return work, span
        if 2 * span > window:
            return (difference if is_sum else work), 0
        if 4 * span <= window and not window & (2 * span):  # two levels at once
            n_frames -= 3 * span
            for i in range(n_frames):
                one, second, third = work[i, :width], work[i + span, :width], work[i + 2 * span, :width]
                _subtract_two_levels(one, second, third, work[i + 3 * span, :width], one)
            span *= 4
        else:
            n_frames -= span
            for i in range(n_frames):
                _subtract(work[i + span, :width], work[i, :width])
            span *= 2
