"""The part of a store that is exported, and how it is read: a bounded buffer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline.config import ExportConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.store import MovieStore

Values = npt.NDArray[Any]

BUFFER_BYTES = 64 * 2**20
PIXEL_BYTES = 4  # as most stores and all averages have them


class Selection(NamedTuple):
    """The part of a store that goes out; rows and columns span multiples of ``bin`` pixels."""

    frames: range
    rows: slice
    cols: slice
    bin: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(t, y, x)`` of what comes out."""
        height, width = self.rows.stop - self.rows.start, self.cols.stop - self.cols.start
        return len(self.frames), height // self.bin, width // self.bin


class Pixels(NamedTuple):
    """Frames that can be read a part at a time."""

    read: Callable[[slice, slice, slice], Values]
    """Takes frames, rows and columns, gives ``(t, y, x)``."""
    depth: int
    """Frames that are decoded together, and so are best read together."""


class Block(NamedTuple):
    """Pixels ``(t, y, x)`` and where they go in the output; they fill its whole width."""

    t: int
    y: int
    values: Values


def plan_selection(shape: tuple[int, int, int], config: ExportConfig) -> Selection:
    """Check what was asked for against the store's ``(t, y, x)`` shape.

    Raises
    ------
    InputError
        If frames or region are empty or lie outside, or a bin is larger than the region.

    Examples
    --------
    >>> plan_selection((48, 65, 64), ExportConfig(frames=(8, 16), bin=2)).shape
    (8, 32, 32)
    """
    n_frames, height, width = shape
    start, stop = config.frames or (0, n_frames)
    if not 0 <= start < stop <= n_frames:
        raise InputError("--frames", f"{start}:{stop} is not a part of frames 0:{n_frames}", code=ExitCode.USAGE)
    y0, y1, x0, x1 = config.region or (0, height, 0, width)
    if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
        what = f"{y0}:{y1},{x0}:{x1} is not a part of the {height}x{width} image"
        raise InputError("--region", what, code=ExitCode.USAGE)
    rows, cols = (y1 - y0) // config.bin, (x1 - x0) // config.bin
    if not rows or not cols:
        what = f"{config.bin} px is more than the {y1 - y0}x{x1 - x0} region has"
        raise InputError("--bin", what, code=ExitCode.USAGE)
    return Selection(
        range(start, stop),
        slice(y0, y0 + rows * config.bin),
        slice(x0, x0 + cols * config.bin),
        config.bin,
    )


def shrink(selection: Selection, side: int) -> Selection:
    """Bin a selection so far that neither side is longer than ``side`` px.

    Examples
    --------
    >>> shrink(Selection(range(1), slice(0, 4096), slice(0, 4000), 2), 1000).shape
    (1, 819, 800)
    """
    height, width = selection.rows.stop - selection.rows.start, selection.cols.stop - selection.cols.start
    size = max(selection.bin, -(-max(height, width) // side))
    rows = slice(selection.rows.start, selection.rows.start + height // size * size)
    cols = slice(selection.cols.start, selection.cols.start + width // size * size)
    return Selection(selection.frames, rows, cols, size)


def stored_pixels(movie: MovieStore) -> Pixels:
    """Read a store's array as it is."""
    return Pixels(movie.read, movie.array.chunks[0])


def iter_blocks(pixels: Pixels, selection: Selection, buffer_bytes: int = BUFFER_BYTES) -> Iterator[Block]:
    """Read a selection a buffer at a time, along whole chunks of frames so that none is decoded twice."""
    row_bytes = (selection.cols.stop - selection.cols.start) * PIXEL_BYTES * pixels.depth
    height = max(1, buffer_bytes // (row_bytes * selection.bin)) * selection.bin
    rows = selection.rows
    row_cuts = [*range(rows.start, rows.stop, height), rows.stop]
    for part in iter_groups(selection.frames, pixels.depth):
        for y0, y1 in pairwise(row_cuts):
            values = pixels.read(slice(part.start, part.stop), slice(y0, y1), selection.cols)
            binned = bin_pixels(values, selection.bin)
            yield Block(part.start - selection.frames.start, (y0 - rows.start) // selection.bin, binned)


def iter_groups(frames: range, depth: int) -> Iterator[range]:
    """Cut frames where chunks of ``depth`` frames meet.

    Examples
    --------
    >>> list(iter_groups(range(3, 10), 4))
    [range(3, 4), range(4, 8), range(8, 10)]
    """
    cuts = [frames.start, *range((frames.start // depth + 1) * depth, frames.stop, depth), frames.stop]
    return (range(start, stop) for start, stop in pairwise(cuts))


def iter_frames(pixels: Pixels, selection: Selection) -> Iterator[Values]:
    """Read a selection frame ``(y, x)`` by frame; what is binned is binned as it is read."""
    for part in iter_groups(selection.frames, pixels.depth):
        blocks = iter_blocks(pixels, selection._replace(frames=part))
        yield from np.concatenate([block.values for block in blocks], axis=1)


def read_frame(pixels: Pixels, selection: Selection, t: int) -> Values:
    """Read the selected part ``(y, x)`` of one frame."""
    return next(iter_frames(pixels, selection._replace(frames=range(t, t + 1))))


def bin_pixels(values: Values, size: int) -> Values:
    """Average ``size`` by ``size`` pixels of ``(t, y, x)`` values into one, as float32; 1 changes nothing.

    Examples
    --------
    >>> bin_pixels(np.array([[[1, 3], [5, 7]]]), 2)
    array([[[4.]]], dtype=float32)
    """
    if size == 1:
        return values
    n, y, x = values.shape
    blocks = values.reshape(n, y // size, size, x // size, size)
    mean: Values = blocks.mean(axis=(2, 4), dtype=np.float64).astype(np.float32)
    return mean
