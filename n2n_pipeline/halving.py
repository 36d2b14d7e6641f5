"""Which frames a window holds, and which half each is in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline.config import Split

Array = npt.NDArray[Any]


class Halves(NamedTuple):
    """``(window, p)`` sums or averages of the two halves of consecutive windows."""

    even: Array
    odd: Array


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
