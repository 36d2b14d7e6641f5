"""Scenes that jump: frames that lie far from the path that was found, looked for all over the image.

Local steps cannot mend a path that is off by more than the coarsest wave that was aligned. So groups of frames are
compared with all the others at every displacement at once; a group moves where the likelihood gains more than
chance allows, one group after the other, so that two parts of a movie do not change places for ever.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from n2n_pipeline.spectra import Spectra, keep_on_disk, ring_mean, undo_shifts

Floats = npt.NDArray[np.float64]

GROUPS = (8, 2)  # frames that are looked for together: first many, then, where the scene jumped, few
SURE = 10.0  # nats of likelihood, besides those of the number of places that were looked at
LIKELY = 3.0  # nats, where only two places are compared
ROUNDS = 4
NEAR_FRAMES = 64
VISIBLE = 5.0  # standard errors by which a group that is in its place must show
AGREES = 0.3  # share of what such a group must show


class _Match:
    """How well groups of frames agree with the mean of all others."""

    def __init__(self, spectra: Spectra, position: Floats, size: int) -> None:
        self.spectra = spectra
        n_frames = len(position)
        self.groups = np.array_split(np.arange(n_frames), max(round(n_frames / size), 1))
        self.sums = keep_on_disk(spectra.folder, (len(self.groups), len(spectra.ky)))
        self.total = torch.zeros(len(spectra.ky), dtype=torch.complex64, device=spectra.ky.device)
        for number, group in enumerate(self.groups):
            own = undo_shifts(spectra, position, slice(group[0], group[-1] + 1)).sum(dim=0)
            self.sums[number] = own.cpu()
            self.total += own
        height, width = spectra.shape
        rows, cols = (spectra.ky * height).round().long() % height, (spectra.kx * width).round().long()
        self.place = rows * (width // 2 + 1) + cols

    def sum_of(self, number: int) -> Tensor:
        """Return the ``(k,)`` sum of a group's aligned frames."""
        return self.sums[number].to(self.total.device)

    def reference(self, number: int, near: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return the mean of the other groups, Wiener-filtered, and the power a frame should share with it."""
        n_others = sum(map(len, self.groups[near])) - len(self.groups[number])
        total = self.total if near == slice(None) else self.sums[near].to(self.total.device).sum(dim=0)
        mean = (total - self.sum_of(number)) / max(n_others, 1)
        power = ring_mean(mean.abs().square(), self.spectra)
        signal = (power - 1 / max(n_others, 1)).clamp(min=0)
        wiener = signal / (signal + 1 / max(n_others, 1))
        return mean * wiener, signal * wiener

    def gains(self, number: int) -> Tensor:
        """Return the likelihood that a group gains at each displacement ``(dy, dx)``, circular, in nats."""
        reference, _ = self.reference(number)
        height, width = self.spectra.shape
        plane = torch.zeros(height * (width // 2 + 1), dtype=torch.complex64, device=reference.device)
        plane[self.place] = reference.conj() * self.sum_of(number)
        likelihood: Tensor = torch.fft.irfft2(plane.reshape(height, -1), s=(height, width)) * (height * width)
        return likelihood - likelihood[0, 0]

    def find(self, number: int) -> tuple[float, tuple[int, int]]:
        """Return the most that a group gains, and where ``(dy, dx)``."""
        (height, width), gains = self.spectra.shape, self.gains(number)
        dy, dx = divmod(int(gains.argmax()), width)
        return float(gains[dy, dx]), (dy - height * (2 * dy > height), dx - width * (2 * dx > width))

    def find_beside(self, number: int, position: Floats) -> tuple[float, tuple[int, int]]:
        """Return the most that a single frame gains where the one before it, or after it, lies."""
        beside = [t for t in (number - 1, number + 1) if 0 <= t < len(position)]
        steps = [tuple(np.rint(position[t] - position[number]).astype(int).tolist()) for t in beside]
        gains = self.gains(number)
        return max((float(gains[dy % len(gains), dx % gains.shape[1]]), (dy, dx)) for dy, dx in steps)

    def move(self, number: int, by: tuple[int, int]) -> None:
        """Take a group to lie further along by so many pixels."""
        angle = 2 * torch.pi * (by[0] * self.spectra.ky + by[1] * self.spectra.kx)
        moved = self.sum_of(number) * torch.polar(torch.ones_like(angle), angle)
        self.total += moved - self.sum_of(number)
        self.sums[number] = moved.cpu()


def undo_jumps(spectra: Spectra, position: Floats) -> Floats | None:
    """Find frames far from their path.

    Parameters
    ----------
    spectra : Spectra
        Of all frames.
    position : numpy.ndarray
        ``(t, 2)`` path so far, in binned pixels.

    Returns
    -------
    numpy.ndarray or None
        The path with what was found, to a binned pixel; None where no frame lies elsewhere.
    """
    needed = SURE + math.log(math.prod(spectra.shape))
    position, has_jumped = position.copy(), False
    for size in GROUPS:
        match = _Match(spectra, position, size)
        for _ in range(ROUNDS):
            moved = False
            for number, group in enumerate(match.groups):
                gain, by = match.find(number)
                if gain > needed and by != (0, 0):
                    match.move(number, by)
                    position[group] += by
                    moved = True
            has_jumped |= moved
            if not moved:
                break
        if not has_jumped:
            return None
    _move_beside(spectra, position)
    return position


def _move_beside(spectra: Spectra, position: Floats) -> None:
    """Find out for single frames at a jump on which side of it they are."""
    match = _Match(spectra, position, 1)
    for _ in range(ROUNDS):
        for t in range(len(position)):
            gain, by = match.find_beside(t, position)
            if gain > LIKELY and by != (0, 0):
                match.move(t, by)
                position[t] += by


def agrees(spectra: Spectra, position: Floats) -> Floats:
    """Tell which frames show the scene of the others where the path says; ``(t,)``, 1 or 0.

    Where the scene is too faint for a group of frames to show it, the group is given the benefit of the doubt.
    """
    match = _Match(spectra, position, GROUPS[0])
    verdict = np.ones(len(position))
    for number, group in enumerate(match.groups):
        reach = NEAR_FRAMES // GROUPS[0]  # farther on, drift may have brought another scene
        reference, shared = match.reference(number, slice(max(number - reach, 0), number + reach + 1))
        error = math.sqrt(len(group) * float((spectra.weight * reference.abs().square()).sum()))
        expected = len(group) * float((spectra.weight * shared).sum())
        found = float((spectra.weight * (reference.conj() * match.sum_of(number)).real).sum())
        if expected > VISIBLE * error and found < AGREES * expected:
            verdict[group] = 0.0
    return verdict
