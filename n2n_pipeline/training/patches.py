"""Training patches: random windows, places, halves and turns, each a function of (seed, step, index) alone.

Nothing depends on how many workers or ranks draw them, in which order, or whether the run was interrupted. The
two halves of a patch share no frame. The target's weight is the number of frames behind each of its pixels,
because the variance of its noise is inversely proportional to it; held-out pixels and those that no frame saw
weigh nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline.config import Split
from n2n_pipeline.filling import FILL_REACH, fill_unseen
from n2n_pipeline.halving import split_window
from n2n_pipeline.training.pool import Pool, Slot

Floats = npt.NDArray[np.float32]

HELD_OUT_PX = 64  # below some 64² px the mean squares of single blocks are far from Gaussian
HELD_OUT_SHARE = 1 / 16
MAX_BLOCKS = 16


class Block(NamedTuple):
    """A square of the stable frame of reference, in px, that is kept from training."""

    y: int
    x: int
    side: int


class Batch(NamedTuple):
    """Patches, ``(n, y, x)`` each."""

    values: Floats
    """Averages over one half of a window, in the movie's units."""
    counts: Floats
    """Frames they hold; 0 where the value was filled in from its neighbours."""
    target: Floats
    """Averages over the other half; 0 where no frame was valid."""
    weight: Floats
    """Of the target, from 0 to about 1."""


class Recipe(NamedTuple):
    """How patches are drawn."""

    seed: int
    windows: tuple[int, ...]
    """Frames per sample, both halves together; each sample draws one of them."""
    split: Split
    patch_px: int


class PatchSampler:
    """Draws patches from the movies in a pool.

    Parameters
    ----------
    pool : Pool
        Movies in memory.
    recipe : Recipe
        Window, split, size and seed.
    held_out : sequence of sequence of Block
        For each movie, squares that are no target.
    """

    def __init__(self, pool: Pool, recipe: Recipe, held_out: Sequence[Sequence[Block]]) -> None:
        self._pool, self._recipe, self._held_out = pool, recipe, held_out

    def draw_batch(self, step: int, indices: range) -> Batch:
        """Draw the patches numbered ``indices`` of a step's batch."""
        self._pool.prepare(step)
        patches = [self._draw((self._recipe.seed, step, index)) for index in indices]
        return Batch(*(np.stack(parts) for parts in zip(*patches, strict=True)))

    def _draw(self, key: tuple[int, int, int]) -> Batch:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
        slot = self._pool.choose(key[1], rng)
        windows = self._recipe.windows
        window = windows[int(rng.integers(len(windows)))] if len(windows) > 1 else windows[0]
        groups = _draw_groups(slot, window, rng)
        halves = split_groups(len(groups), self._recipe.split, rng)
        side = self._recipe.patch_px
        y, x = (_draw_place(part, side, rng) for part in slot.region[1:])
        pair = average_halves(slot, groups, halves, (range(y, y + side), range(x, x + side)))
        weight = pair.weight / (window / 2)
        for block in self._held_out[slot.movie]:
            rows = slice(max(block.y - y, 0), max(block.y + block.side - y, 0))
            weight[rows, max(block.x - x, 0) : max(block.x + block.side - x, 0)] = 0
        return turn(pair._replace(weight=weight), int(rng.integers(8)))


def _draw_groups(slot: Slot, window: int, rng: np.random.Generator) -> range:
    n_groups = min(max(window // slot.group_size, 2), len(slot.stack.sums))
    first = int(rng.integers(len(slot.stack.sums) - n_groups + 1))
    return range(first, first + n_groups)


def _draw_place(whole: range, side: int, rng: np.random.Generator) -> int:
    """Draw where a patch starts; pixels near the ends, which fewer places hold, are given more of them."""
    last = len(whole) - side
    return whole.start + min(max(int(rng.integers(-side // 4, last + side // 4 + 1)), 0), last)


def split_groups(n_groups: int, split: Split, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Say which groups of a window are in the input's half, chosen at random which of the two that is."""
    key = (int(rng.integers(2**32)),)
    halves = split_window(n_groups, split, key)
    return ~halves if rng.integers(2) else halves


def average_halves(slot: Slot, groups: range, halves: npt.NDArray[np.bool_], place: tuple[range, range]) -> Batch:
    """Average the two halves of a window at one place, ``(y, x)``.

    Parameters
    ----------
    slot : Slot
        The movie's part in memory.
    groups : range
        Groups of frames in the window.
    halves : numpy.ndarray
        ``(group,)``, True for those in the input.
    place : tuple of range
        Rows and columns of the stable frame of reference, within the slot's region.

    Returns
    -------
    Batch
        Of one patch; the weight is the number of frames behind the target.
    """
    rows, cols = (
        range(max(part.start - FILL_REACH, whole.start), min(part.stop + FILL_REACH, whole.stop))
        for part, whole in zip(place, slot.region[1:], strict=True)
    )
    inner = tuple(
        slice(part.start - grown.start, part.stop - grown.start)
        for part, grown in zip(place, (rows, cols), strict=True)
    )
    total, count = slot.sum_groups([g for g, used in zip(groups, halves, strict=True) if used], (rows, cols))
    values = fill_unseen(total, count, slot.typical_value)[inner]
    others = [g for g, used in zip(groups, halves, strict=True) if not used]
    target, target_count = slot.sum_groups(others, place)
    target /= np.maximum(target_count, 1)
    return Batch(
        values, count[inner].astype(np.float32), target.astype(np.float32), target_count.astype(np.float32)
    )


def turn(patch: Batch, which: int) -> Batch:
    """Lay a square patch down in one of eight ways: quarter turns, mirrored or not."""
    turned = (np.rot90(image, which % 4) for image in patch)
    return Batch(*(np.fliplr(image) if which >= 4 else image for image in turned))


def plan_held_out(shape: tuple[int, int], key: tuple[int, ...]) -> tuple[Block, ...]:
    """Choose squares for validation: about 6 % of the image, 16 at most, drawn by ``key``.

    Examples
    --------
    >>> len(plan_held_out((256, 256), (0,))), len(plan_held_out((4096, 4096), (0,)))
    (1, 16)
    """
    side = max(min(HELD_OUT_PX, min(shape) // 4), 1)
    rows, cols = shape[0] // side, shape[1] // side
    wanted = round(HELD_OUT_SHARE * shape[0] * shape[1] / side**2)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    cells = rng.choice(rows * cols, size=min(max(wanted, 1), MAX_BLOCKS, rows * cols), replace=False)
    return tuple(Block(int(cell) // cols * side, int(cell) % cols * side, side) for cell in cells)
