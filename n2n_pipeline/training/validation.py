"""How good the network is on squares it was never trained towards, and on splits it was never given.

Each sample is one held-out square in one window, halved by a split of its own. The input is the square with
context around it; the target's weight is 0 outside the square. The loss is the Noise2Noise loss: the squared
error plus a constant, the same at every step, so differences between steps are differences in error. Where the
target's half has six frames or more, thirds of it give the squared error itself (uMSE).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline.halving import split_window
from n2n_pipeline.ladder import level_frames
from n2n_pipeline.metrics.bootstrap import Interval, bootstrap
from n2n_pipeline.metrics.unsupervised import Copies, unsupervised_error
from n2n_pipeline.training.patches import (
    Batch,
    Block,
    Deal,
    Recipe,
    average_halves,
    deal_ladder,
    deal_window,
)
from n2n_pipeline.training.pool import VALIDATION, Slot
from n2n_pipeline.training.stacks import Frames, Region, group_size

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

SAMPLES = 16


class ValidationSet(NamedTuple):
    """The same samples at every validation, in the movie's units."""

    batch: Batch
    """``(n, y, x)`` each; the weight is 0 outside the held-out squares."""
    copies: Copies | None
    """``(n, y, x)`` averages over thirds of the target's frames, NaN where they do not count."""


class Scores(NamedTuple):
    """One validation."""

    losses: Doubles
    """``(n,)`` weighted mean squared difference from the target of each sample, in normalised units."""
    umse: Interval | None
    """Squared error with its 95 % interval, in squared units of the movie."""

    @property
    def loss(self) -> float:
        """Mean over the samples."""
        return float(self.losses.mean())


def read_validation(
    movies: Sequence[Frames], held_out: Sequence[Sequence[Block]], recipe: Recipe
) -> ValidationSet:
    """Read validation samples, spread evenly over all held-out squares."""
    windows = recipe.windows
    squares = [(movie, block) for movie, blocks in enumerate(held_out) for block in blocks]
    samples = []
    for number in range(SAMPLES):
        movie, block = squares[number * len(squares) // SAMPLES]
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((recipe.seed, VALIDATION, number))))
        if not recipe.target:
            recipe = recipe._replace(windows=(windows[number % len(windows)],))
        samples.append(_read_sample(movies[movie], block, recipe, rng))
    batch = Batch(*(np.stack(part) for part in zip(*(batch for batch, _ in samples), strict=True)))
    return ValidationSet(batch, _stack_copies([copies for _, copies in samples], batch.target[0].shape))


def _stack_copies(thirds: Sequence[Copies | None], shape: tuple[int, ...]) -> Copies | None:
    """Put the copies of all samples together; NaN for those whose window is too short for any."""
    if not any(thirds):
        return None
    blank = np.full(shape, np.nan)
    filled = [copies or Copies(blank, blank, blank) for copies in thirds]
    return Copies(*(np.stack(part) for part in zip(*filled, strict=True)))


def score(validation: ValidationSet, denoised: Floats, scale: float) -> Scores:
    """Compare the network's output with the targets.

    Parameters
    ----------
    validation : ValidationSet
        What was denoised.
    denoised : numpy.ndarray
        ``(n, y, x)`` output in the movie's units.
    scale : float
        Unit of the loss, in the movie's units.
    """
    batch = validation.batch
    weight = batch.weight.astype(np.float64)
    error = (denoised.astype(np.float64) - batch.target) / scale
    losses = (weight * error**2).sum(axis=(1, 2)) / np.maximum(weight.sum(axis=(1, 2)), 1e-12)
    return Scores(losses, _umse(validation.copies, denoised))


def _umse(copies: Copies | None, denoised: Floats) -> Interval | None:
    if copies is None:
        return None
    error = unsupervised_error(denoised.astype(np.float64), copies)
    seen = np.isfinite(error)
    sums = np.stack([np.where(seen, error, 0).sum(axis=(1, 2)), seen.sum(axis=(1, 2))], axis=1)
    return bootstrap(sums, lambda s: s[..., 0] / np.maximum(s[..., 1], 1)) if seen.any() else None


def _read_sample(
    movie: Frames, block: Block, recipe: Recipe, rng: np.random.Generator
) -> tuple[Batch, Copies | None]:
    frames, size, deal = _deal(movie, recipe, rng)
    place = (
        _around(block.y, block.side, recipe.patch_px, movie.shape[0]),
        _around(block.x, block.side, recipe.patch_px, movie.shape[1]),
    )
    region = Region(frames, *place)
    stack = movie.read_stack(region, size)
    slot = Slot(0, region, stack, size, movie.typical_value)
    batch = average_halves(slot, deal, place)
    inside = np.zeros(batch.weight.shape, bool)
    y, x = block.y - place[0].start, block.x - place[1].start
    inside[y : y + block.side, x : x + block.side] = True
    weight = np.where(inside, batch.weight / deal.full, 0).astype(np.float32)
    others = rng.permutation(deal.target)
    return batch._replace(weight=weight), _average_thirds(slot, others, inside)


def _deal(movie: Frames, recipe: Recipe, rng: np.random.Generator) -> tuple[range, int, Deal]:
    """Choose the frames of a sample, and deal them in groups of so many."""
    if recipe.target:
        t = int(rng.integers(movie.n_frames))
        frames = level_frames(movie.n_frames, t, recipe.windows[-1])
        return frames, 1, deal_ladder(len(frames), t - frames.start, recipe, rng)
    window = recipe.windows[0]
    size = group_size(window)
    n_groups = min(max(window // size, 2), movie.n_frames // size)
    first = int(rng.integers(movie.n_frames // size - n_groups + 1)) * size
    halves = split_window(n_groups, recipe.split, (int(rng.integers(2**32)),))
    return range(first, first + n_groups * size), size, deal_window(range(n_groups), halves, window)


def _around(start: int, side: int, length: int, limit: int) -> range:
    """Return ``length`` pixels with the square in their middle, or as near as the image allows."""
    first = min(max(start + side // 2 - length // 2, 0), limit - length)
    return range(first, first + length)


def _average_thirds(slot: Slot, groups: npt.NDArray[np.int64], inside: npt.NDArray[np.bool_]) -> Copies | None:
    n = len(groups) // 3
    if n == 0:
        return None
    averages = []
    for third in range(3):
        total, count = slot.sum_groups(groups[third * n : (third + 1) * n].tolist(), slot.region[1:])
        averages.append(np.where(inside & (count == n * slot.group_size), total / np.maximum(count, 1), np.nan))
    return Copies(*averages)
