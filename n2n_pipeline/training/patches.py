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
from n2n_pipeline.ladder import level_frames, split_around
from n2n_pipeline.training.detail import draw_start
from n2n_pipeline.training.pool import Pool, Slot
from n2n_pipeline.training.steadiness import Levels, average_bins

Floats = npt.NDArray[np.float32]
Place = tuple[range, range]
"""Rows and columns of the stable frame of reference."""

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
    """Averages over one half of a window, in the movie's units; of a ladder ``(n, level, y, x)``."""
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
    """Frames per sample, both halves together; each sample draws one of them, or has all if they are a ladder."""
    split: Split
    patch_px: int
    target: int = 0
    """Of a ladder: frames about the middle one, whose other half is the target. 0 where it is no ladder."""
    detail: float = 0.0
    """Share of patches drawn by contrast."""


class Deal(NamedTuple):
    """Which groups of frames are on which side of a sample."""

    levels: list[list[int]]
    """Those of the input; of a ladder, those that each level adds to the one before."""
    target: list[int]
    full: float
    """Frames behind a target whose weight is 1."""


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

    def draw_levels(self, indices: range) -> list[tuple[Levels, Levels]]:
        """Draw the levels of some patches, of two halves each of which is symmetric about its moment."""
        self._pool.prepare(0)
        return [self._draw_levels((self._recipe.seed, 0, index)) for index in indices]

    def _draw_levels(self, key: tuple[int, int, int]) -> tuple[Levels, Levels]:
        slot, _, place, rng = self._choose(key)
        windows, n_frames = self._recipe.windows, len(slot.stack.sums)
        t = int(rng.integers(n_frames))
        while True:
            halves = part_rings(rng.random(n_frames)[np.abs(np.arange(n_frames) - t)] < 0.5, t, windows)
            if all(half[0] for half in halves):
                break
        sums = [slot.sum_levels(half, place) for half in halves]
        seen = np.logical_and(*(counts[0] > 0 for _, counts in sums))  # what drifts in is no blur
        even, odd = (average_bins(totals * seen, counts) for totals, counts in sums)
        return even, odd

    def _draw(self, key: tuple[int, int, int]) -> Batch:
        slot, deal, place, rng = self._choose(key)
        pair = average_halves(slot, deal, place)
        weight = pair.weight / deal.full
        for block in self._held_out[slot.movie]:
            rows, cols = (
                slice(max(first - part.start, 0), max(first + block.side - part.start, 0))
                for first, part in zip((block.y, block.x), place, strict=True)
            )
            weight[rows, cols] = 0
        return turn(pair._replace(weight=weight), int(rng.integers(8)))

    def _choose(self, key: tuple[int, int, int]) -> tuple[Slot, Deal, Place, np.random.Generator]:
        """Choose where a patch comes from, and return what else is drawn for it."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
        slot = self._pool.choose(key[1], rng)
        deal = self._deal(slot, rng)
        side = self._recipe.patch_px
        y, x = self._draw_start(slot, rng)
        return slot, deal, (range(y, y + side), range(x, x + side)), rng

    def _deal(self, slot: Slot, rng: np.random.Generator) -> Deal:
        n_groups = len(slot.stack.sums)
        windows = self._recipe.windows
        if self._recipe.target:
            return deal_ladder(n_groups, int(rng.integers(n_groups)), self._recipe, rng)
        window = windows[int(rng.integers(len(windows)))] if len(windows) > 1 else windows[0]
        groups = _draw_groups(slot, window, rng)
        return deal_window(groups, split_groups(len(groups), self._recipe.split, rng), window)

    def _draw_start(self, slot: Slot, rng: np.random.Generator) -> tuple[int, int]:
        _, rows, cols = slot.region
        side, share = self._recipe.patch_px, self._recipe.detail
        if slot.detail is not None and share and rng.random() < share:
            return draw_start(slot.detail, (rows, cols), side, rng)
        return _draw_place(rows, side, rng), _draw_place(cols, side, rng)


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


def deal_window(groups: range, halves: npt.NDArray[np.bool_], window: int) -> Deal:
    """Deal the groups of one window; ``(group,)`` halves are True for those in the input."""
    used = [g for g, is_used in zip(groups, halves, strict=True) if is_used]
    return Deal([used], [g for g in groups if g not in used], window / 2)


def deal_ladder(n_frames: int, t: int, recipe: Recipe, rng: np.random.Generator) -> Deal:
    """Deal the frames about ``t``: of two at the same distance, one to either side, drawn for each distance."""
    while True:
        used = split_around(n_frames, t, rng.random(n_frames) < 0.5)
        target = [f for f in level_frames(n_frames, t, recipe.target) if not used[f]]
        nearest = level_frames(n_frames, t, recipe.windows[0])
        if target and used[nearest.start : nearest.stop].any():
            break
    levels, _ = part_rings(used, t, recipe.windows)
    return Deal(levels, target, recipe.target / 2)


def part_rings(
    used: npt.NDArray[np.bool_], t: int, windows: Sequence[int]
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the frames that each level about ``t`` adds to the one before, those that are used and the others."""
    rings, inner = [], range(t, t)
    for window in windows:
        outer = level_frames(len(used), t, window)
        rings.append([f for f in outer if f not in inner])
        inner = outer
    return [[f for f in ring if used[f]] for ring in rings], [[f for f in ring if not used[f]] for ring in rings]


def average_halves(slot: Slot, deal: Deal, place: Place) -> Batch:
    """Average the two sides of a sample at one place, ``(y, x)``.

    Parameters
    ----------
    slot : Slot
        The movie's part in memory.
    deal : Deal
        Groups of frames on either side.
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
    totals, counts = slot.sum_levels(deal.levels, (rows, cols))
    values = np.stack(
        [fill_unseen(*level, slot.typical_value)[inner] for level in zip(totals, counts, strict=True)]
    )
    seen = counts[:, *inner].astype(np.float32)
    total, count = slot.sum_groups(deal.target, place)
    target = (total / np.maximum(count, 1)).astype(np.float32)
    if len(deal.levels) == 1:
        values, seen = values[0], seen[0]
    return Batch(values, seen, target, count.astype(np.float32))


def turn(patch: Batch, which: int) -> Batch:
    """Lay a square patch down in one of eight ways: quarter turns, mirrored or not."""
    turned = (np.rot90(image, which % 4, axes=(-2, -1)) for image in patch)
    return Batch(*(image[..., ::-1] if which >= 4 else image for image in turned))


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
