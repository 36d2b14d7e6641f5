"""Averages through the network, tile by tile, in memory.

Values are in the movie's own units on the way in and out. Tiles are blended in the plan's order, in float32, so
the same plan gives the same bytes however often, and by however many workers, it is carried out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from n2n_pipeline.checkpoint import Denoiser
from n2n_pipeline.config import Passes
from n2n_pipeline.device import autocast, trim_memory
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.geometry import Tile, TilePlan, Tiling, mirrored, plan_tiles
from n2n_pipeline.inference.bands import Bands, forward, rows_of_band, works_in_bands
from n2n_pipeline.inference.blending import taper_axis
from n2n_pipeline.model import UNet, exact_halo, stride

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.number[Any]]
Number = TypeVar("Number", bound=np.number[Any])

NO_MEMORY = ("can't allocate memory", "could not create a primitive", "could not create a memory", "bad_alloc")
"""What PyTorch, and the library that does its convolutions on a CPU, say when there is none."""

BLENDED_ROWS = 32  # at a time: a core is as large as memory allows, and what is in between stays in cache

_log = logging.getLogger(__name__)


class Turn(NamedTuple):
    """One of the eight ways to lay a square on itself; it keeps the network's pooling grid in place."""

    mirror_y: bool
    mirror_x: bool
    transpose: bool


UPRIGHT = Turn(False, False, False)
UPSIDE_DOWN = Turn(True, True, False)
FLIPS = tuple(Turn(y, x, False) for y, x in product((False, True), repeat=2))
ALL_TURNS = FLIPS + tuple(Turn(y, x, True) for y, x in product((False, True), repeat=2))


class Turns(NamedTuple):
    """The orientations in which the network sees each half."""

    even: tuple[Turn, ...]
    odd: tuple[Turn, ...]


def turns_of(passes: Passes) -> Turns:
    """Return the orientations over which each half is averaged; ``halves`` costs nothing, the others their number.

    Examples
    --------
    >>> [len(turns_of(passes).even) for passes in ("off", "halves", "flips", "all")]
    [1, 1, 4, 8]
    """
    return {
        "off": Turns((UPRIGHT,), (UPRIGHT,)),
        "halves": Turns((UPRIGHT,), (UPSIDE_DOWN,)),
        "flips": Turns(FLIPS, FLIPS),
        "all": Turns(ALL_TURNS, ALL_TURNS),
    }[passes]


def denoise_frames(
    denoiser: Denoiser,
    values: Floats,
    counts: Floats,
    plan: TilePlan,
    turns: tuple[Turn, ...] = (UPRIGHT,),
) -> Floats:
    """Denoise averages that are in memory.

    Parameters
    ----------
    denoiser : Denoiser
        The network.
    values : numpy.ndarray
        ``(n, y, x)`` averages in the movie's units: the plan's `source` part of the image.
    counts : numpy.ndarray
        ``(n, y, x)`` frames that each average holds.
    plan : TilePlan
        How the image is cut.
    turns : tuple of Turn
        Orientations to average over.

    Returns
    -------
    numpy.ndarray
        ``(n, y, x)`` float32, the plan's `region`, in the movie's units.
    """
    canvas = Canvas(plan, len(values))
    origin = (plan.source[0].start, plan.source[1].start)
    for tile in plan.tiles:
        parts = [gather(image, tile, plan.shape, origin) for image in (values, counts)]
        canvas.blend(tile, denoise_rows(denoiser, parts[0], parts[1], turns))
    return canvas.image


def denoise_rows(
    denoiser: Denoiser, values: Numbers, counts: Floats, turns: tuple[Turn, ...] = (UPRIGHT,)
) -> Iterator[Floats]:
    """Yield the rows of what `run_network` returns, from the top down, as they can be had.

    One image that is seen upright takes no more memory than a band of it, where the network works in bands; all
    else comes whole.
    """
    height, width = values.shape[-2:]
    network, rows_left, done = denoiser.network, range(0), 0
    if len(values) == 1 and turns == (UPRIGHT,) and works_in_bands(network, denoiser.device):
        rows_left = range(0, height, rows_of_band(network, width))
    if len(rows_left) < 2:
        yield run_network(denoiser, values, counts, turns)
        return
    bands = Bands(network)
    try:
        for row in rows_left:
            part = slice(row, row + rows_left.step)
            with torch.inference_mode(), autocast(denoiser.device, denoiser.dtype):
                images = denoiser.prepare(values[..., part, :], counts[..., part, :])
                denoised = bands.push(images, is_last=part.stop >= height)
            done += denoised.shape[2]
            yield denoiser.restore(denoised[:, 0])
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        yield run_network(denoiser, values, counts, turns)[:, done:]


def run_network(
    denoiser: Denoiser, values: Numbers, counts: Floats, turns: tuple[Turn, ...] = (UPRIGHT,)
) -> Floats:
    """Denoise averages, laid out as the network takes them, whose sides are multiples of the stride."""
    with torch.inference_mode(), autocast(denoiser.device, denoiser.dtype):
        images = denoiser.prepare(values, counts)
        denoised = [_turn_back(run_within_memory(denoiser.network, _turn(images, turn)), turn) for turn in turns]
        mean = denoised[0] if len(turns) == 1 else torch.stack(denoised).mean(dim=0)
    return denoiser.restore(mean[:, 0])


def run_within_memory(network: nn.Module, images: Tensor) -> Tensor:
    """Return ``network(images)``; when memory runs out, of parts half as large, which are exact.

    Raises
    ------
    InputError
        If not even the smallest part fits.
    """
    try:
        return forward(network, images)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error) or not isinstance(network, UNet):
            raise
    _log.warning("out of memory at %d images of %d x %d px: going on with half of that", *images[:, 0].shape)
    if images.device.type == "cuda":
        torch.cuda.empty_cache()
    trim_memory()  # what the C library keeps, the library of the convolutions cannot map its code into
    if len(images) > 1:
        return torch.cat([run_within_memory(network, half) for half in images.chunk(2)])
    return _run_in_parts(network, images)


def _run_in_parts(network: UNet, images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    step, halo = stride(network.config), exact_halo(network.config)
    plan = plan_tiles((height, width), Tiling(step, max((max(height, width) - 2 * halo) // 2, step), halo))
    if len(plan.tiles) == 1:
        what = f"no memory for the network on {height} x {width} px"
        raise InputError("denoise", what, "free some memory or train a narrower network", ExitCode.IO)
    denoised = images.new_empty((1, 1, height, width), dtype=torch.float32)
    for tile in plan.tiles:
        read, kept = (tuple(slice(*part) for part in parts) for parts in zip(*tile, strict=True))
        inner = tuple(span.core.within(span.read.start) for span in tile)
        denoised[:, :, *kept] = run_within_memory(network, images[:, :, *read])[:, :, *inner]
    return denoised


def gather(
    image: npt.NDArray[Number], tile: Tile, shape: tuple[int, int], origin: tuple[int, int]
) -> npt.NDArray[Number]:
    """Cut what a tile reads out of a part of an image, mirroring the image at its ends.

    Parameters
    ----------
    image : numpy.ndarray
        ``(…, y, x)``, a part of the image that holds every pixel needed.
    tile : Tile
        The tile, in positions of the whole image.
    shape, origin : tuple of int
        ``(y, x)`` size of the whole image, and position of the part's first pixel in it.
    """
    rows, columns = (
        _as_slice(mirrored(span.read, size) - first) for span, size, first in zip(tile, shape, origin, strict=True)
    )
    return image[..., rows, :][..., columns]


class Canvas:
    """What comes out of a plan's tiles, blended as they arrive; hand them over in the plan's order.

    Parameters
    ----------
    plan : TilePlan
        How the image is cut.
    n_frames : int
        Frames denoised together.
    """

    def __init__(self, plan: TilePlan, n_frames: int) -> None:
        rows, columns = plan.region
        # Written, not only promised by the system: what a run needs does not depend on the pace of its threads.
        self.image: Floats = np.full((n_frames, rows.size, columns.size), 0, np.float32)
        self._origin = (rows.start, columns.start)
        self._tapers = tuple(
            {span.core: taper for span, taper in zip(spans, taper_axis(spans), strict=True)}
            for spans in (plan.rows, plan.columns)
        )

    def blend(self, tile: Tile, denoised: Iterable[Floats], frames: slice = slice(None)) -> None:
        """Add a tile's core, weighted, to the image.

        Parameters
        ----------
        tile : Tile
            One of the plan's tiles.
        denoised : iterable of numpy.ndarray
            ``(n, y, x)`` what the network made of all that the tile reads, some rows at a time, from the top down.
        frames : slice
            Which of the canvas's frames these are; all by default.
        """
        core, kept = (span.core.within(span.read.start) for span in tile)
        rows, columns = (span.core.within(first) for span, first in zip(tile, self._origin, strict=True))
        target = self.image[frames, rows, columns]
        down, across = self._tapers[0][tile.y.core][:, None], self._tapers[1][tile.x.core]
        for first, band in _cut_bands(denoised):
            start, stop = max(core.start, first), min(core.stop, first + band.shape[1])
            if start < stop:
                place = slice(start - core.start, stop - core.start)
                target[:, place] += down[place] * across * band[:, start - first : stop - first, kept]
            if stop == core.stop:
                return


def _cut_bands(parts: Iterable[Floats]) -> Iterator[tuple[int, Floats]]:
    """Yield rows as they come, at most `BLENDED_ROWS` of them at a time, and the number of the first."""
    first = 0
    for part in parts:
        for row in range(0, part.shape[1], BLENDED_ROWS):
            yield first + row, part[:, row : row + BLENDED_ROWS]
        first += part.shape[1]


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in str(error) for sign in NO_MEMORY)


def _turn(images: Tensor, turn: Turn) -> Tensor:
    flipped = torch.flip(images, list(_mirrored_axes(turn)))
    return flipped.mT if turn.transpose else flipped


def _turn_back(images: Tensor, turn: Turn) -> Tensor:
    upright = images.mT if turn.transpose else images
    return torch.flip(upright, list(_mirrored_axes(turn)))


def _mirrored_axes(turn: Turn) -> Iterator[int]:
    return (axis for axis, mirror in ((-2, turn.mirror_y), (-1, turn.mirror_x)) if mirror)


def _as_slice(pixels: npt.NDArray[np.intp]) -> slice | npt.NDArray[np.intp]:
    """Return a slice where pixels follow each other, which copies nothing."""
    consecutive = len(pixels) == int(pixels[-1]) - int(pixels[0]) + 1 and bool((np.diff(pixels) == 1).all())
    return slice(int(pixels[0]), int(pixels[-1]) + 1) if consecutive else pixels
