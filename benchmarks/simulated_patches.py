"""Patches of simulated movies in which all drifts, parts move, and objects come and go; drawn on a GPU.

A movie is a scene that drifts, whose parts move against each other, and which objects visit. Its frames are
exposed by a camera that counts or integrates; only the sums of frames that the levels of a ladder hold are drawn,
which is the same as drawing the frames and summing them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from n2n_pipeline.checkpoint import subtract_levels
from n2n_pipeline.ladder import LADDER

REACH = LADDER[-1] // 2
TARGET = LADDER[0]
PATCH_PX = 128
PATCHES = 4  # of each movie
ROOM_PX = 64  # about a patch for its scene to move in
KNOTS = 5  # of a field of local motion, along a side of a patch
DOSES = (0.03, 2.0)  # electrons per pixel and frame
LENGTHS = (8, 500)  # frames of a movie
EXPOSURES = 128  # of each of the two that a target is the mean of


class Samples(NamedTuple):
    """Patches of movies, each in units of its own."""

    inputs: Tensor
    """``(n, level, y, x)`` as `stack_channels` gives them."""
    target: Tensor
    """``(n, y, x)``."""
    noise: Tensor
    """``(n / PATCHES,)`` the variance of the target's noise in each movie, as its two exposures show it."""


class Generator:
    """Draws patches of simulated movies, on the scenes' device.

    Parameters
    ----------
    scenes : torch.Tensor
        ``(scene, y, x)``, their means 1.
    seed : int
        Of all that is drawn.
    """

    def __init__(self, scenes: Tensor, seed: int) -> None:
        self.scenes, self.device = scenes, scenes.device
        self.rng = torch.Generator(self.device).manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw evenly."""
        return low + (high - low) * torch.rand(shape, generator=self.rng, device=self.device)

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw evenly by magnitude."""
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def normal(self, *shape: int) -> Tensor:
        """Draw from the standard normal distribution."""
        return torch.randn(shape, generator=self.rng, device=self.device)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Draw whole numbers, ``high`` left out."""
        return torch.randint(low, high, shape, generator=self.rng, device=self.device)

    def chance(self, share: float, *shape: int) -> Tensor:
        """Return 1 for a share of all, 0 for the others."""
        return (self.uniform(0, 1, *shape) < share).float()

    def draw(self, movies: int) -> Samples:
        """Draw patches of so many movies."""
        n = movies * PATCHES
        dose = self.log_uniform(*DOSES, movies).repeat_interleave(PATCHES)
        is_counting = self.chance(0.5, movies).repeat_interleave(PATCHES)
        scenes = self.draw_scenes(movies)
        frames = self.film(scenes) * dose[:, None, None, None]
        used, seen = self.deal(movies, n)
        rings = self.ring_members()
        input_rings = rings * (used * seen)[:, None]
        target_ring = rings[:1] * ((1 - used) * seen)[:, None]
        members = torch.cat((input_rings, target_ring), dim=1)
        sums = torch.einsum("nrt,ntyx->nryx", members, frames)
        counts = members.sum(2)
        levels = len(LADDER)
        longer = EXPOSURES * counts[:, [levels, levels]]
        exposed = self.expose(
            torch.cat((sums[:, :levels], EXPOSURES * sums[:, [levels, levels]]), dim=1),
            torch.cat((counts[:, :levels], longer), dim=1),
            is_counting,
        )
        totals, held = exposed[:, :levels].cumsum(1), counts[:, :levels].cumsum(1)
        targets = exposed[:, levels:] / longer[:, :, None, None]
        spread = clipped_deviations(scenes.flatten(1)).repeat_interleave(PATCHES) * dose
        return self.normalise(totals / held[:, :, None, None], targets, dose, spread)

    def draw_scenes(self, movies: int) -> Tensor:
        """Return scenes ``(movie, y, x)``, their means 1: as they are, stronger, fainter or blank."""
        scenes = self.scenes[self.integers(0, len(self.scenes), movies)].clamp(min=0)
        power = 1 + self.uniform(0, 2, movies) * self.chance(0.25, movies)
        scenes = scenes ** power[:, None, None]
        scenes = scenes / scenes.mean((1, 2), keepdim=True)
        left = 1 - (1 - self.log_uniform(0.15, 1.0, movies)) * self.chance(0.4, movies)
        contrast = left * (1 - self.chance(0.08, movies))
        return 1 + contrast[:, None, None] * (scenes - 1)

    def film(self, scenes: Tensor) -> Tensor:
        """Return noiseless frames ``(n, t, y, x)`` of scenes about the middle one, their mean about 1."""
        movies, scene = len(scenes), scenes.repeat_interleave(PATCHES, 0)
        n = len(scene)
        other = self.scenes[self.integers(0, len(self.scenes), n)]
        times = torch.arange(-REACH, REACH + 1, device=self.device, dtype=torch.float32)
        places = self.places(scene.shape[-1], n)
        moved = self.drift(times, movies) + self.sway(times, movies, n)
        frames = sample(scene, places[:, None] - moved).clamp(min=0)
        still = sample(other, self.places(scene.shape[-1], n)[:, None]).clamp(min=0)
        return self.visit(frames, still, times, movies)

    def places(self, side: int, n: int) -> Tensor:
        """Return where the pixels of ``n`` patches lie in their scenes, ``(n, y, x, 2)``, x first, in px."""
        first = self.integers(ROOM_PX, side - ROOM_PX - PATCH_PX + 1, n, 2).float()
        pixels = torch.arange(PATCH_PX, device=self.device).float()
        grid = torch.stack(torch.meshgrid(pixels, pixels, indexing="xy"), dim=-1)
        return first[:, None, None] + grid

    def drift(self, times: Tensor, movies: int) -> Tensor:
        """Return how far all has moved since the middle frame, ``(n, t, 1, 1, 2)``; a third stands still."""
        speed = self.log_uniform(0.02, 1.2, movies) * self.chance(0.65, movies)
        angle = self.uniform(0, 2 * math.pi, movies)
        pace = torch.stack((speed * angle.cos(), speed * angle.sin()), dim=-1).repeat_interleave(PATCHES, 0)
        step = (self.log_uniform(0.01, 0.3, movies) * self.chance(0.7, movies)).repeat_interleave(PATCHES)
        steps = self.normal(len(pace), len(times), 2) * step[:, None, None]
        walk = steps.cumsum(1)
        walk = walk - walk[:, REACH : REACH + 1]
        far = pace[:, None] * times[:, None] + walk
        return far.clamp(-ROOM_PX, ROOM_PX)[:, :, None, None]

    def sway(self, times: Tensor, movies: int, n: int) -> Tensor:
        """Return how far parts have moved against each other, ``(n, t, y, x, 2)``; in half of all movies none."""
        peak = (self.uniform(0, 8, movies) * self.chance(0.5, movies)).repeat_interleave(PATCHES)
        field = functional.interpolate(self.normal(n, 2, KNOTS, KNOTS), (PATCH_PX, PATCH_PX), mode="bicubic")
        field = (peak[:, None, None, None] * field / 2).clamp(-8, 8).movedim(1, -1)
        period = self.log_uniform(40, 400, movies).repeat_interleave(PATCHES)[:, None]
        phase = self.uniform(0, 2 * math.pi, n)[:, None]
        swing = (2 * math.pi * times / period + phase).sin() - phase.sin()
        return swing[:, :, None, None, None] * field[:, None]

    def visit(self, frames: Tensor, still: Tensor, times: Tensor, movies: int) -> Tensor:
        """Let objects come, move and go in two thirds of the movies: two absorb or shine, one shows a scene."""
        for shows_scene in (0.0, 0.0, 1.0):
            n = len(frames)
            is_there = self.chance(0.35, movies).repeat_interleave(PATCHES) * self.chance(0.8, n)
            cover = self.cover(times, n) * is_there[:, None, None, None]
            change = self.uniform(0.1, 1.0, n) * (1 - 2 * self.chance(0.6, n))
            if shows_scene:
                frames = torch.lerp(frames, still, cover)
            else:
                frames = frames * (1 + change[:, None, None, None] * cover)
        return frames

    def cover(self, times: Tensor, n: int) -> Tensor:
        """Return where an object is, ``(n, t, y, x)`` from 0 to 1: an ellipse, from one moment to another."""
        first = self.uniform(-1.2 * REACH, 0.9 * REACH, n)
        length = self.log_uniform(4, 4 * REACH, n)
        near = self.chance(0.5, n)  # begins or ends close to the middle frame
        edge = self.uniform(-8, 8, n)
        ends = self.chance(0.5, n)
        first = near * (edge - ends * length) + (1 - near) * first
        present = ((times >= first[:, None]) & (times < (first + length)[:, None])).float()
        speed = self.log_uniform(0.05, 2.0, n) * self.chance(0.4, n)
        angle = self.uniform(0, 2 * math.pi, n)
        pace = torch.stack((speed * angle.cos(), speed * angle.sin()), dim=-1)
        radius = self.log_uniform(2.5, 40, n)
        squeeze = self.log_uniform(0.5, 2, n)
        soft = self.log_uniform(0.5, 3, n)
        centre = self.uniform(0, PATCH_PX, n, 2)
        pixels = torch.arange(PATCH_PX, device=self.device).float()
        middle = centre[:, None] + pace[:, None] * times[:, None]
        dx = (pixels - middle[..., :1]) * squeeze[:, None, None].sqrt()
        dy = (pixels - middle[..., 1:]) / squeeze[:, None, None].sqrt()
        distance = (dx[:, :, None, :].square() + dy[:, :, :, None].square()).sqrt()
        inside = ((radius[:, None, None, None] - distance) / soft[:, None, None, None]).sigmoid()
        return inside * present[:, :, None, None]

    def deal(self, movies: int, n: int) -> tuple[Tensor, Tensor]:
        """Say which frames are in the input's half and which the movie has, ``(n, t)`` of 0 and 1 each."""
        length = self.log_uniform(*LENGTHS, movies).round().repeat_interleave(PATCHES)
        middle = (self.uniform(0, 1, n) * length).floor()
        frame = torch.arange(-REACH, REACH + 1, device=self.device) + middle[:, None]
        seen = ((frame >= 0) & (frame < length[:, None])).float()
        nearest = slice(REACH - TARGET // 2, REACH + TARGET // 2 + 1)
        used = self.split(n)
        while True:
            shared = (used * seen)[:, nearest].sum(1) * ((1 - used) * seen)[:, nearest].sum(1)
            if bool((shared > 0).all()):
                return used, seen
            used = torch.where((shared > 0)[:, None], used, self.split(n))

    def split(self, n: int) -> Tensor:
        """Put one of two frames at the same distance into either half."""
        before = self.chance(0.5, n, REACH)
        return torch.cat((before, self.chance(0.5, n, 1), 1 - before.flip(1)), dim=1)

    def ring_members(self) -> Tensor:
        """Return which frames each level adds to the one before, ``(level, t)``."""
        distance = torch.arange(-REACH, REACH + 1, device=self.device).abs()
        inner = torch.tensor([-1, *(window // 2 for window in LADDER[:-1])], device=self.device)
        outer = torch.tensor([window // 2 for window in LADDER], device=self.device)
        return ((distance > inner[:, None]) & (distance <= outer[:, None])).float()

    def expose(self, electrons: Tensor, frames: Tensor, is_counting: Tensor) -> Tensor:
        """Return what a camera makes of expected electrons ``(n, r, y, x)`` in so many frames ``(n, r)``.

        One that integrates spreads each electron over its neighbours, makes more of some than of others, and reads
        with noise; see `de_twin`, whose cameras these are like.
        """
        n = len(electrons)
        counted = torch.poisson(electrons, generator=self.rng)
        movies = n // PATCHES

        def of_movies(values: Tensor) -> Tensor:
            values = values.repeat_interleave(PATCHES) * (1 - is_counting)
            return values[:, None, None, None]

        variation = of_movies(self.uniform(0.0, 0.8, movies))
        signal = counted + variation * counted.sqrt() * self.normal(*counted.shape)
        spread = of_movies(self.uniform(0.0, 0.25, movies))
        signal = blur(blur(signal, spread, 2), spread, 3)
        noise = of_movies(self.log_uniform(0.01, 0.15, movies))
        return signal + noise * frames[:, :, None, None].sqrt() * self.normal(*signal.shape)

    def normalise(self, levels: Tensor, targets: Tensor, mean: Tensor, spread: Tensor) -> Samples:
        """Put each movie into units of its own mean and spreads.

        The patches of a movie show what its noise is, the whole scene, ``spread``, how much there is to see.
        """
        mean = mean[:, None, None]
        steps = subtract_levels(levels - mean[:, None], 0.0)
        part = steps[:, :, ::3, ::3].unflatten(0, (-1, PATCHES)).transpose(1, 2).flatten(2)
        spreads = clipped_deviations(part).repeat_interleave(PATCHES, 0)
        spreads[:, -1] = torch.maximum(spreads[:, -1], spread).clamp(min=1e-6)
        scales = torch.where(spreads > 0, spreads, spreads[:, -1:])[:, :, None, None]
        wanted = (targets - mean[:, None]) / scales[:, -1:]
        noise = of_each_movie((wanted[:, 0] - wanted[:, 1]).square()) / 4
        inputs, target = steps / scales, wanted.mean(1)
        turns = int(self.integers(0, 4, 1))
        return Samples(torch.rot90(inputs, turns, (2, 3)), torch.rot90(target, turns, (1, 2)), noise)


def of_each_movie(images: Tensor) -> Tensor:
    """Return the mean over all patches ``(n, y, x)`` of a movie."""
    return images.unflatten(0, (-1, PATCHES)).mean((1, 2, 3))


def clipped_deviations(values: Tensor) -> Tensor:
    """Return the deviation along the last axis, outliers clipped, as `metrics.noise.clipped_deviation` has it."""
    ordered = values.sort(dim=-1).values
    cut = values.shape[-1] // 200
    return values.clamp(ordered[..., cut, None], ordered[..., -1 - cut, None]).std(-1)


def sample(scenes: Tensor, places: Tensor) -> Tensor:
    """Interpolate scenes ``(n, y, x)`` at ``(n, t, y, x, 2)`` places in px, x first."""
    n, t, height, width, _ = places.shape
    grid = (2 * places + 1) / scenes.shape[-1] - 1
    grid = grid.expand(n, t, height, width, 2).reshape(n, t * height, width, 2)
    found = functional.grid_sample(scenes[:, None], grid, "bicubic", "reflection", align_corners=False)
    return found.reshape(n, t, height, width)


def blur(images: Tensor, share: Tensor, axis: int) -> Tensor:
    """Give a share of each pixel to either neighbour along an axis."""
    return images * (1 - 2 * share) + share * (images.roll(1, axis) + images.roll(-1, axis))
