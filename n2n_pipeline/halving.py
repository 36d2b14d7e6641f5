"""Which frames a window holds and which half each is in; sums of the halves of sliding windows.

The sums are compiled loops that stay in a core's cache.

Frames are ``(t, p)``, pixels laid out in one row. A window that slides by one frame keeps nearly all of them, so
a half costs a few operations per pixel and frame whatever the window's length: two for the interleaved split
(the halves swap names, one frame leaves, one enters), one for each doubling of the window for the balanced one,

    even - odd = the frames filtered by the product over k of (1 - shift by 2^k),

which is the Thue-Morse sequence. Whole numbers are summed as such and floats in float64: the sums are exact, or as
good as, and neither the order of frames nor the cutting into blocks changes them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from n2n_pipeline.config import Split

Array = npt.NDArray[Any]

BLOCK = 4096  # pixels at a time


def window_frames(n_frames: int, t: int, window: int) -> range:
    """Return the frames averaged for output frame ``t``: about it, or shifted inwards at the movie's ends.

    Examples
    --------
    >>> window_frames(10, 5, 4), window_frames(10, 0, 4), window_frames(10, 9, 4), window_frames(3, 1, 8)
    (range(3, 7), range(0, 4), range(6, 10), range(0, 3))
    """
    size = min(window, n_frames)
    start = min(max(t - size // 2, 0), n_frames - size)
    return range(start, start + size)


def split_window(size: int, split: Split, key: tuple[int, ...] = (0,)) -> npt.NDArray[np.bool_]:
    """Say which frames of a window are in the even half.

    Parameters
    ----------
    size : int
        Frames in the window.
    split : str
        ``balanced`` (Thue-Morse order ABBABAAB, which cancels a linear change over the window),
        ``interleaved`` (ABAB), ``adjacent`` (AABB) or ``random`` (half of the frames, drawn by `key`).
    key : tuple of int
        Seeds the random split.

    Returns
    -------
    numpy.ndarray
        ``(size,)``, True for the even half, which holds ``ceil(size / 2)`` frames or, when balanced, as many
        as the sequence gives.

    Examples
    --------
    >>> "".join("AB"[not even] for even in split_window(8, "balanced"))
    'ABBABAAB'
    """
    order = np.arange(size)
    if split == "balanced":
        return np.asarray(np.bitwise_count(order) % 2 == 0)
    if split == "interleaved":
        return np.asarray(order % 2 == 0)
    if split == "adjacent":
        return np.asarray(order < (size + 1) // 2)
    shuffled = np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).permutation(size)
    return np.asarray(shuffled < (size + 1) // 2)


class Halves(NamedTuple):
    """``(window, p)`` sums or averages of the two halves of consecutive windows."""

    even: Array
    odd: Array


class Finish(NamedTuple):
    """What is done to a half's sum: divided by its number of frames, then ``(average - dark) * gain``."""

    even_count: int = 1
    odd_count: int = 1
    dark: Array | None = None
    """``(p,)``."""
    gain: Array | None = None


def slide_halves(
    frames: Array, window: int, balanced: bool, dtype: npt.DTypeLike, finish: Finish | None = None
) -> Halves:
    """Sum both halves of every window of consecutive frames.

    Parameters
    ----------
    frames : numpy.ndarray
        ``(t, p)`` of any real type, ``t >= window``, finite.
    window : int
        Frames per window.
    balanced : bool
        Halve in Thue-Morse order (ABBABAAB), else frame by frame (ABAB).
    dtype : type
        Of the result, float32 or float64.
    finish : Finish, optional
        Divides and corrects the sums.

    Returns
    -------
    Halves
        ``(t - window + 1, p)`` each.
    """
    finish = finish or Finish()
    n_windows, size = len(frames) - window + 1, frames.shape[1]
    halves = Halves(np.empty((n_windows, size), dtype), np.empty((n_windows, size), dtype))
    is_small = frames.dtype.kind in "iub" and frames.dtype.itemsize <= 2
    rows = len(frames) if balanced else 2
    work = np.empty((rows, min(BLOCK, max(size, 1))), np.int32 if is_small else np.float64)
    dark = np.zeros(1) if finish.dark is None else finish.dark.astype(np.float64)
    gain = np.ones(1) if finish.gain is None else finish.gain.astype(np.float64)
    shares = (1.0 / max(finish.even_count, 1), 1.0 / max(finish.odd_count, 1))
    kernel = _balanced if balanced else _interleaved
    kernel(np.ascontiguousarray(frames), window, work, shares, (dark, gain), halves)
    return halves


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
def write_average(sums: Array, share: float, references: tuple[Array, Array], first: int, out: Array) -> None:
    """Write ``(sums * share - dark) * gain`` of a block of pixels, the first of which is ``first``."""
    dark, gain = references
    if dark.size == 1 and gain.size == 1:
        for j in range(out.size):
            out[j] = sums[j] * share
    else:
        for j in range(out.size):
            at_dark, at_gain = (first + j) % dark.size, (first + j) % gain.size
            out[j] = (sums[j] * share - dark[at_dark]) * gain[at_gain]


@numba.njit(nogil=True, cache=True)
def _interleaved(
    frames: Array,
    window: int,
    work: Array,
    shares: tuple[float, float],
    references: tuple[Array, Array],
    halves: Halves,
) -> None:
    n_windows, size = halves.even.shape
    for first in range(0, size, work.shape[1]):
        stop = min(first + work.shape[1], size)
        width = stop - first
        even, odd = work[0, :width], work[1, :width]
        even[:] = 0
        odd[:] = 0
        for i in range(window):
            half = even if i % 2 == 0 else odd
            for j in range(width):
                half[j] += frames[i, first + j]
        for s in range(n_windows):
            write_average(even, shares[0], references, first, halves.even[s, first:stop])
            write_average(odd, shares[1], references, first, halves.odd[s, first:stop])
            if s + 1 < n_windows:
                leaves, enters = frames[s, first:stop], frames[s + window, first:stop]
                if window % 2 == 0:
                    for j in range(width):
                        even[j] += enters[j]
                        even[j] -= leaves[j]
                else:
                    for j in range(width):
                        even[j] -= leaves[j]
                        odd[j] += enters[j]
                even, odd = odd, even


@numba.njit(nogil=True, cache=True)
def _balanced(
    frames: Array,
    window: int,
    work: Array,
    shares: tuple[float, float],
    references: tuple[Array, Array],
    halves: Halves,
) -> None:
    n_windows, size = halves.even.shape
    total = np.empty(work.shape[1], work.dtype)
    half = np.empty(work.shape[1], work.dtype)  # twice the half, as the sum and the difference give it
    difference = np.empty((n_windows, work.shape[1]), work.dtype)
    for first in range(0, size, work.shape[1]):
        stop = min(first + work.shape[1], size)
        width = stop - first
        for i in range(len(frames)):
            for j in range(width):
                work[i, j] = frames[i, first + j]
        _differences(work, window, width, difference)
        total[:width] = 0
        for i in range(window):
            for j in range(width):
                total[j] += frames[i, first + j]
        for s in range(n_windows):
            for j in range(width):
                half[j] = total[j] + difference[s, j]
            write_average(half[:width], 0.5 * shares[0], references, first, halves.even[s, first:stop])
            for j in range(width):
                half[j] = total[j] - difference[s, j]
            write_average(half[:width], 0.5 * shares[1], references, first, halves.odd[s, first:stop])
            if s + 1 < n_windows:
                for j in range(width):
                    total[j] += frames[s + window, first + j]
                    total[j] -= frames[s, first + j]


@numba.njit(nogil=True, cache=True)
def _differences(work: Array, window: int, width: int, difference: Array) -> None:
    """Even minus odd: ``work`` becomes the difference over 2^k frames, level by level.

    A window is its binary digits, larger pieces first. A piece of 2^k frames is reversed where the frame that it
    begins at has an odd number of ones: the Thue-Morse sequence from there is its own beginning, or the reverse.
    """
    n_windows, n_frames = len(difference), len(work)
    difference[:, :width] = 0
    span = 1
    while span <= window:
        if window & span:
            begin = window // (2 * span) * (2 * span)
            ones, rest = 0, begin
            while rest:
                ones += rest & 1
                rest >>= 1
            for s in range(n_windows):
                if ones % 2 == 0:
                    for j in range(width):
                        difference[s, j] += work[s + begin, j]
                else:
                    for j in range(width):
                        difference[s, j] -= work[s + begin, j]
        for i in range(n_frames - span):
            for j in range(width):
                work[i, j] -= work[i + span, j]
        n_frames -= span
        span *= 2
