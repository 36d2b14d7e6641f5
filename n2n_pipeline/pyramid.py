"""Halved copies of a large image, so that a viewer shows all of a montage without reading all of it.

Each level is the 2 x 2 mean of the one below, in the same type; an odd last row or column is repeated.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from n2n_pipeline.arrays import open_array
from n2n_pipeline.layout import Layout, halve
from n2n_pipeline.records import Unit
from n2n_pipeline.shards import write_shard

LARGE_PX = 2048
"""Images of more pixels along a side get levels, down to at most so many."""

Shard = tuple[int, int, int, int]
"""Level, and place of the shard along t, y and x."""


def plan_levels(layout: Layout) -> int:
    """Return how many levels a single image gets; a movie gets none, as it is looked at frame by frame.

    Examples
    --------
    >>> from n2n_pipeline.layout import default_layout
    >>> plan_levels(default_layout((1, 20000, 3000), "uint16"))
    4
    """
    n_frames, *sides = layout.shape
    return (max(0, -(-max(sides) // LARGE_PX) - 1)).bit_length() if n_frames == 1 else 0


def plan_level_units(layout: Layout) -> dict[Unit, Shard]:
    """Cut all levels of an array into units of one shard each, lower levels first."""
    units: dict[Unit, Shard] = {}
    for level in range(1, plan_levels(layout) + 1):
        smaller = halve(layout, level)
        counts = (-(-side // shard) for side, shard in zip(smaller.shape, smaller.shards, strict=True))
        for t, y, x in itertools.product(*map(range, counts)):
            units[Unit(f"level-{level}-{t}-{y}-{x}", (f"{level}/c/{t}/{y}/{x}",))] = (level, t, y, x)
    return units


def write_level_shard(store: Path, layout: Layout, shard: Shard) -> None:
    """Average one shard of a level from the level below, and write it.

    Parameters
    ----------
    store : pathlib.Path
        Folder of the store, whose level below is written.
    layout : Layout
        Of array ``0``.
    shard : tuple of int
        One of `plan_level_units`.
    """
    level, *place = shard
    below, smaller = open_array(store, str(level - 1)), halve(layout, level)
    y0, x0 = (2 * i * size for i, size in zip(place[1:], smaller.shards[1:], strict=True))
    width = min(2 * smaller.shards[2], below.shape[2] - x0)
    height = min(2 * smaller.shards[1], below.shape[1] - y0)
    means = np.empty((1, -(-height // 2), -(-width // 2)), below.dtype)
    step = 2 * smaller.chunks[1]
    for y, x in itertools.product(range(0, height, step), range(0, width, step)):
        rows, columns = slice(y0 + y, y0 + min(y + step, height)), slice(x0 + x, x0 + min(x + step, width))
        half = _halved(np.asarray(below[place[0], rows, columns]))
        means[0, y // 2 : y // 2 + half.shape[0], x // 2 : x // 2 + half.shape[1]] = half
    write_shard(store / str(level), smaller, (place[0], place[1], place[2]), means)


def _halved(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the mean of every 2 x 2 pixels, rounded where the type is whole."""
    image = np.pad(image, [(0, side % 2) for side in image.shape], mode="edge")
    parts = (image[i::2, j::2].astype(np.float64) for i, j in itertools.product((0, 1), (0, 1)))
    mean = np.add.reduce(list(parts)) / 4
    return np.asarray(mean if image.dtype.kind == "f" else np.rint(mean)).astype(image.dtype)
