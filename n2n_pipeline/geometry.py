"""Whole numbers only: which pixels a tile reads, and which of them it keeps.

Along one axis an image of ``size`` pixels is mirrored beyond its ends up to a multiple of the network's stride
(the ``extent``). Tiles read equal, overlapping parts of the extent that start on multiples of the stride, for
elsewhere the network's pooling grid would shift, and keep a core with at least the halo around it, except at the
ends of the extent, where the untiled network sees no more either. Positions may be negative or lie past the image
(mirrored pixels); ranges are half open. Nothing here touches a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


def spread_evenly(size: int, count: int) -> list[int]:
    """Pick so many of ``size`` things, each in the middle of its share of them.

    Examples
    --------
    >>> spread_evenly(48, 6), spread_evenly(5, 2), spread_evenly(2, 8), spread_evenly(5, 0)
    ([4, 12, 20, 28, 36, 44], [1, 3], [0, 1], [])
    """
    shares = min(count, size)
    return [(2 * i + 1) * size // (2 * shares) for i in range(shares)]


class Range(NamedTuple):
    """Pixels ``start`` to ``stop - 1`` along one axis."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of pixels."""
        return self.stop - self.start

    def moved(self, by: int) -> Range:
        """Return the range so many pixels further on."""
        return Range(self.start + by, self.stop + by)

    def grown(self, by: int, size: int) -> Range:
        """Return the range with so many pixels more at each end, as far as an axis of ``size`` pixels has them."""
        return Range(max(self.start - by, 0), min(self.stop + by, size))

    def within(self, origin: int) -> slice:
        """Return the same pixels as a slice of an array whose first pixel is ``origin``."""
        return slice(self.start - origin, self.stop - origin)


class Tiling(NamedTuple):
    """How an image is to be cut; all in pixels."""

    stride: int
    """What read origins and sides must be multiples of."""
    core: int
    """Longest side that one tile keeps, away from the ends."""
    halo: int
    """Least context around what is kept, except at the ends of the extent."""
    overlap: int = 0
    """Extent two neighbouring cores share."""
    border: int = 0
    """Mirrored pixels to add at each end before rounding up to the stride; a multiple of it."""


class Span(NamedTuple):
    """One tile along one axis."""

    read: Range
    """What enters the network, in mirrored coordinates."""
    core: Range
    """What is kept of its output: inside the image, shared with a neighbour by the overlap."""


class Tile(NamedTuple):
    """One tile: a span along each axis."""

    y: Span
    x: Span

    def source(self, shape: tuple[int, int]) -> tuple[Range, Range]:
        """Return the rows and columns of an image of ``shape`` that the tile needs."""
        return shown(self.y.read, shape[0]), shown(self.x.read, shape[1])


@dataclass(frozen=True)
class TilePlan:
    """Every tile of a region of an image, in the fixed order in which they are blended."""

    shape: tuple[int, int]
    """Height and width of the whole image."""
    region: tuple[Range, Range]
    """Rows and columns that come out."""
    tiling: Tiling
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """Row by row."""
        return tuple(Tile(y, x) for y in self.rows for x in self.columns)

    @property
    def source(self) -> tuple[Range, Range]:
        """Rows and columns of the image that the tiles need, mirrored pixels included."""
        rows = Range(self.rows[0].read.start, self.rows[-1].read.stop)
        columns = Range(self.columns[0].read.start, self.columns[-1].read.stop)
        return shown(rows, self.shape[0]), shown(columns, self.shape[1])

    @property
    def cost(self) -> float:
        """Pixels that the network computes over pixels that come out."""
        computed = sum(span.read.size for span in self.rows) * sum(span.read.size for span in self.columns)
        return computed / (self.region[0].size * self.region[1].size)


def plan_tiles(shape: tuple[int, int], tiling: Tiling, region: tuple[Range, Range] | None = None) -> TilePlan:
    """Cut a region of an image into the fewest tiles of at most ``core + 2 * halo`` a side, evenly spread.

    Parameters
    ----------
    shape : tuple of int
        ``(y, x)`` of the whole image, of any size from 1 x 1.
    tiling : Tiling
        Stride, core, halo, overlap and border in px.
    region : tuple of Range, optional
        Rows and columns that are wanted; the whole image by default. A region comes out as it would in the whole.

    Raises
    ------
    ValueError
        If the region leaves the image, or cores are too small to share the overlap.

    Examples
    --------
    >>> plan = plan_tiles((100, 60), Tiling(stride=8, core=48, halo=8))
    >>> [span.read for span in plan.rows]
    [Range(start=0, stop=64), Range(start=40, stop=104)]
    >>> [span.core for span in plan.rows]
    [Range(start=0, stop=52), Range(start=52, stop=100)]
    >>> [span.read for span in plan.columns]
    [Range(start=0, stop=64)]
    """
    height, width = shape
    rows, columns = region or (Range(0, height), Range(0, width))
    _check(shape, tiling, (rows, columns))
    return TilePlan(
        shape,
        (rows, columns),
        tiling,
        _plan_axis(height, tiling, rows),
        _plan_axis(width, tiling, columns),
    )


def mirrored(positions: Range, size: int) -> npt.NDArray[np.intp]:
    """Return the pixel, in ``[0, size)``, that each position shows, the image being mirrored about its end pixels.

    Examples
    --------
    >>> mirrored(Range(-2, 7), size=4).tolist()
    [2, 1, 0, 1, 2, 3, 2, 1, 0]
    >>> mirrored(Range(-1, 2), size=1).tolist()
    [0, 0, 0]
    """
    period = max(2 * (size - 1), 1)
    position = np.arange(positions.start, positions.stop) % period
    return np.where(position < size, position, period - position).astype(np.intp)


def shown(positions: Range, size: int) -> Range:
    """Return the smallest range of pixels of an image that holds all that the positions show.

    Examples
    --------
    >>> shown(Range(-32, 64), size=100), shown(Range(64, 128), size=100)
    (Range(start=0, stop=64), Range(start=64, stop=100))
    """
    pixels = mirrored(positions, size)
    return Range(int(pixels.min()), int(pixels.max()) + 1)


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple that is not below the value.

    Examples
    --------
    >>> round_up(33, 32), round_up(-33, 32)
    (64, -32)
    """
    return -(-value // multiple) * multiple


def _check(shape: tuple[int, int], tiling: Tiling, region: tuple[Range, Range]) -> None:
    for size, wanted in zip(shape, region, strict=True):
        if not 0 <= wanted.start < wanted.stop <= size:
            raise ValueError(f"{wanted} is no part of an axis of {size} px")
    if tiling.stride < 1 or tiling.core < 1 or min(tiling.halo, tiling.overlap, tiling.border) < 0:
        raise ValueError(f"stride and core must be at least 1 px, the rest at least 0: {tiling}")
    if tiling.overlap > tiling.core // 2:
        raise ValueError(f"overlap {tiling.overlap} px is more than half of the core, {tiling.core} px")
    if tiling.border % tiling.stride:
        raise ValueError(f"border {tiling.border} px is not a multiple of the stride, {tiling.stride} px")


def _plan_axis(size: int, tiling: Tiling, wanted: Range) -> tuple[Span, ...]:
    reads = _plan_reads(_extent(size, tiling, wanted), tiling)
    cuts = [(left.stop + right.start) // 2 for left, right in pairwise(reads)]
    before, after = tiling.overlap // 2, tiling.overlap - tiling.overlap // 2
    starts = [wanted.start, *(max(cut - before, wanted.start) for cut in cuts)]
    stops = [*(min(cut + after, wanted.stop) for cut in cuts), wanted.stop]
    return tuple(Span(read, Range(*core)) for read, *core in zip(reads, starts, stops, strict=True))


def _extent(size: int, tiling: Tiling, wanted: Range) -> Range:
    """Return what the tiles of a region read between them."""
    first, last = -tiling.border, round_up(size + tiling.border, tiling.stride)
    below = -round_up(tiling.halo - wanted.start, tiling.stride)
    above = round_up(wanted.stop + tiling.halo, tiling.stride)
    return Range(max(first, below), min(last, above))


def _plan_reads(extent: Range, tiling: Tiling) -> list[Range]:
    """Spread equal reads over the extent so that neighbours share twice the halo and the overlap."""
    stride = tiling.stride
    shared = round_up(2 * tiling.halo + tiling.overlap, stride)
    longest = max(round_up(tiling.core + 2 * tiling.halo, stride), shared + stride)
    if extent.size <= longest:
        return [extent]
    count = -(-(extent.size - shared) // (longest - shared))
    side = shared + round_up(-(-(extent.size - shared) // count), stride)
    strides_left = (extent.size - side) // stride
    starts = (extent.start + stride * (i * strides_left // (count - 1)) for i in range(count))
    return [Range(start, start + side) for start in starts]
