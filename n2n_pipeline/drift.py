"""Whole-frame drift of a movie too noisy for any single frame to be aligned by itself.

One pass over the frames keeps their binned, band-limited, whitened spectra; the path is then found from these.
Each frame is compared with the mean of its neighbours, itself left out, every spatial frequency weighted by the
signal that the mean is measured to hold there. What one frame says of its own position is an observation with a
known variance; all of them together, under the prior that drift is a random walk about a constant velocity, give
the path (a Kalman smoother), and the strength of that walk is estimated from the movie too. So a still movie is
held still and a jerky one may jerk, with nothing to set. Frames that lie far from the path, since the scene has
jumped, are looked for all over the image.

Shifts are in pixels ``(y, x)``, added to a frame-0 coordinate to find it in frame t.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from n2n_pipeline.config import AlignConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.errors import InputError
from n2n_pipeline.jumps import agrees, undo_jumps
from n2n_pipeline.spectra import Spectra, cut_frames, read_spectra, ring_mean, ring_sum, undo_shifts
from n2n_pipeline.store import MovieStore, Shifts, open_store, write_shifts

Floats = npt.NDArray[np.float64]

FINER = 8  # times as many velocities are told apart as a segment's length allows
FASTEST = 3.0  # binned px per frame, largest velocity tried
ANNEALING = (1 / 32, 1 / 16, 1 / 8, 1 / 4)  # cycles per binned px: coarse to fine, so that no wrong peak is met
SETTLED_PX = 0.01
FREEDOM = 4.0  # degrees of freedom of Student's t
STEP_ROUNDS = 4
SURE = 4.0  # standard errors by which a moving scene must fit better than a still one
ALIGNED = 0.5  # confidence under which a frame is not claimed as aligned


class Path2D(NamedTuple):
    """A path and how well it is known, in binned pixels."""

    position: Floats
    """``(t, 2)``."""
    variance: Floats
    """``(t, 2)``, of the posterior."""


def align_store(path: Path, config: AlignConfig | None = None, device: str = "cpu") -> Shifts:
    """Estimate the drift of a stored movie and save it in the store.

    Raises
    ------
    InputError
        If the movie has fewer than two frames.
    """
    store = open_store(path)
    shifts = estimate_drift(store, config or AlignConfig(), device)
    write_shifts(path, shifts)
    return shifts


def estimate_drift(store: MovieStore, config: AlignConfig | None = None, device: str = "cpu") -> Shifts:
    """Estimate where the first frame's scene lies in every frame.

    Parameters
    ----------
    store : MovieStore
        A movie of at least two frames; references and defects are applied.
    config : AlignConfig, optional
        Highest spatial frequency, rounds.
    device : str
        Where the spectra are kept and compared, as PyTorch names it.

    Returns
    -------
    Shifts
        ``(t, 2)`` px and, for each frame, the probability that its position is right to within a pixel.
        Zeros with confidence 0 where the movie is too faint to tell.
    """
    n_frames = store.info.shape[0]
    if n_frames < 2:
        raise InputError(store.path, f"{n_frames} frame; pairs need at least 2")
    config = config or AlignConfig()
    spectra = read_spectra(CorrectedMovie(store), config, torch.device(device))
    path = _refine(spectra, _first_path(spectra, config), config)
    jumped = undo_jumps(spectra, path.position)
    if jumped is not None:
        path = _refine(spectra, jumped, config)
    confidence = 1.0 - np.exp(-0.5 / (path.variance.mean(axis=1) * spectra.bin**2))
    confidence *= agrees(spectra, path.position)
    if np.median(confidence) < ALIGNED:
        return Shifts(np.zeros((n_frames, 2)), np.zeros(n_frames))
    return Shifts((path.position - path.position[0]) * spectra.bin, confidence)


def describe_shifts(shifts: Shifts) -> str:
    """Say in one sentence how far the movie drifts and which frames could not be aligned."""
    if not shifts.confidence.any():
        return "no drift could be measured: the frames are too faint; they are taken as they are"
    length = float(np.hypot(*np.ptp(shifts.dy_dx, axis=0)))
    step = float(np.median(np.hypot(*np.diff(shifts.dy_dx, axis=0).T)))
    unsure = np.flatnonzero(shifts.confidence < ALIGNED)
    sentence = f"drift of {length:.1f} px over the movie, {step:.2f} px per frame"
    return sentence + (f"; {len(unsure)} frames unsure (first: {unsure[0]})" if len(unsure) else "")


def _first_path(spectra: Spectra, config: AlignConfig) -> Floats:
    """Find a path to start from: constant velocities over pieces of the movie, and the pieces' own drift."""
    pieces = cut_frames(len(spectra.values))
    paths = []
    means = torch.empty((len(pieces), len(spectra.ky)), dtype=torch.complex64)  # one block: no gaps in the heap
    for number, piece in enumerate(pieces):
        part = spectra._replace(values=spectra.values[piece])
        path = _constant_velocity(part)
        if len(pieces) > 1:
            path = _refine(part, path, config).position
            path -= path.mean(axis=0)
            means[number] = undo_shifts(part, path, slice(None)).sum(dim=0).cpu() / len(path) ** 0.5
        paths.append(path)
    if len(pieces) == 1:
        return paths[0]
    ends = [(path[-1] - path[0]) / max(len(path) - 1, 1) for path in paths]
    steps = [
        (len(a) * va + len(b) * vb) / 2 for a, b, va, vb in zip(paths, paths[1:], ends, ends[1:], strict=False)
    ]
    offsets = np.concatenate((np.zeros((1, 2)), np.cumsum(steps, axis=0)))
    offsets = _refine(spectra._replace(values=means), offsets, config).position
    return np.concatenate([path + offset for path, offset in zip(paths, offsets, strict=True)])


def _constant_velocity(spectra: Spectra) -> Floats:
    """Try velocities on a grid; the one whose aligned sum has most power gives a straight path.

    Each Fourier coefficient of a scene that moves at a velocity v is a wave in time, of frequency k·v. So one
    transform along time holds the power of the aligned sum for every velocity.

    The grid is searched with one half of the frequencies; the other half must agree that the scene moves, or it is
    taken to be still: of a thousand velocities one always fits the noise.
    """
    n_frames = len(spectra.values)
    coarse = spectra.within(ANNEALING[1])
    waves = torch.fft.ifft(coarse.values.to(coarse.ky.device), n=FINER * n_frames, dim=0, norm="forward")
    power = waves.abs().square() * coarse.weight
    searched = torch.rand(len(coarse.weight), generator=torch.Generator().manual_seed(0)) < 0.5
    searched = searched.to(power.device)
    spacing = 0.75 / (ANNEALING[1] * n_frames)
    count = int(np.ceil(FASTEST / spacing))
    speeds = torch.arange(-count, count + 1, device=power.device) * spacing
    best, velocity = -1.0, (0.0, 0.0)
    for vy in speeds.tolist():
        totals = _power_along(power, coarse, vy, speeds)[:, searched].sum(dim=1)
        number = int(totals.argmax())
        if float(totals[number]) > best:
            best, velocity = float(totals[number]), (vy, float(speeds[number]))
    moving, still = (
        _power_along(power, coarse, v[0], speeds.new_tensor([v[1]]))[0] for v in (velocity, (0.0, 0.0))
    )
    gain = (moving - still)[~searched]
    if float(gain.sum()) < SURE * float(gain.square().sum().sqrt()):
        velocity = (0.0, 0.0)
    return np.asarray((np.arange(n_frames) - (n_frames - 1) / 2)[:, None] * np.asarray(velocity))


def _power_along(power: Tensor, spectra: Spectra, vy: float, speeds: Tensor) -> Tensor:
    """Look up ``(v, k)`` power at velocities ``(vy, vx)`` in ``(f, k)``, by frequency in time."""
    frequency = vy * spectra.ky + speeds[:, None] * spectra.kx
    return power.gather(0, (frequency * len(power)).round().long() % len(power))


def _refine(spectra: Spectra, position: Floats, config: AlignConfig) -> Path2D:
    """Alternate between the reference and the path, from coarse to fine detail, until the path settles."""
    walk = np.ones((2, len(position)))
    bands = [band for band in ANNEALING if band < config.max_frequency_per_px] + [config.max_frequency_per_px]
    path = Path2D(position, np.ones_like(position))
    for band in bands:
        for _ in range(config.iterations):
            observed, information = _observe(spectra, path.position, band)
            smoothed = [_smooth(observed[:, a], information[:, a], walk[a], path.position[:, a]) for a in (0, 1)]
            walk = np.stack([part.walk for part in smoothed])
            updated = Path2D(
                np.stack([part.mean for part in smoothed], axis=1),
                np.stack([part.variance for part in smoothed], axis=1),
            )
            moved = float(np.abs(updated.position - path.position).max())
            path = updated
            if moved < SETTLED_PX:
                break
    return path


def _observe(spectra: Spectra, position: Floats, band: float) -> tuple[Floats, Floats]:
    """Ask every frame where it lies, given the mean of its neighbours at the present path.

    For whitened spectra Z with unit noise and a signal S known from a mean of n frames, the log-likelihood of a
    move d is Re Σ w S* Z exp(2πi k·d), with the Wiener weight w = s² / (s² + 1/n); its expected curvature is the
    Fisher information Σ w s² (2πk)². One step of Fisher scoring gives the observation.

    Returns
    -------
    tuple of numpy.ndarray
        ``(t, 2)`` observed positions, binned px, and ``(t, 2)`` information (inverse variance).
    """
    spectra = spectra.within(band)
    wave = 2 * torch.pi * torch.stack((spectra.ky, spectra.kx))
    # A ring's mean power strays by 1 / √(frequencies in it); what is no more than that is not taken for signal.
    noise = 1 + ring_sum(torch.ones_like(spectra.weight), spectra).rsqrt()
    slope, known = np.empty_like(position), np.empty_like(position)
    for piece, own, total, n_near in _with_neighbours(spectra, position):
        power = ring_mean((total / n_near).abs().square(), spectra)
        signal = (power - noise / n_near).clamp(min=0) * (n_near / max(n_near - 1, 1))
        wiener = signal / (signal + 1 / max(n_near - 1, 1))
        others = total.conj() / max(n_near - 1, 1)  # a frame's own part of it adds nothing imaginary
        slope[piece] = -(own @ (spectra.weight * wiener * others * wave).T).imag.cpu()
        known[piece] = (spectra.weight * wiener * signal * wave.square()).sum(dim=1).clamp(min=1e-9).cpu()
    reach = 1 / (8 * band)  # an eighth of the finest wave: beyond it the parabola is not trusted
    return np.asarray(position + np.clip(slope / known, -reach, reach)), known


def _with_neighbours(spectra: Spectra, position: Floats) -> Iterator[tuple[slice, Tensor, Tensor, int]]:
    """Yield every piece, its aligned ``(t, k)`` frames, and the sum and number of these and those beside it."""
    pieces = cut_frames(len(position))
    aligned = (undo_shifts(spectra, position, piece) for piece in pieces)
    own = next(aligned)
    near = deque([(own.sum(dim=0), len(own))], maxlen=3)
    for piece, after in zip_longest(pieces, aligned):
        if after is not None:
            near.append((after.sum(dim=0), len(after)))
        elif len(near) == 3:
            near.popleft()
        yield piece, own, torch.stack([total for total, _ in near]).sum(dim=0), sum(count for _, count in near)
        own = after


class _Smoothed(NamedTuple):
    mean: Floats
    variance: Floats
    walk: Floats


def _smooth(observed: Floats, information: Floats, walk: Floats, before: Floats, rounds: int = 5) -> _Smoothed:
    """Smooth positions along time under a random walk about a constant velocity, both estimated (EM).

    The steps of the walk are Student's t, so that a movie that jumps once is smoothed before and after as if it
    had not: each step has a variance of its own, ``(t,)``.

    Rauch, Tung & Striebel (1965), AIAA J. 3, 1445-1450; Shumway & Stoffer (1982), J. Time Ser. Anal. 3, 253-264;
    Lange, Little & Taylor (1989), J. Am. Stat. Assoc. 84, 881-896.
    """
    mean, variance = before, np.ones_like(before)
    velocity = float(np.median(np.diff(before))) if len(before) > 1 else 0.0
    for _ in range(rounds):
        mean, variance, lagged = _kalman(observed, information, walk, velocity)
        steps = np.diff(mean)
        square = (steps - velocity) ** 2 + variance[1:] + variance[:-1] - 2 * lagged[1:]
        if not len(square):
            break
        scale, weight = float(square.mean()), np.ones_like(square)
        for _ in range(STEP_ROUNDS):
            weight = (FREEDOM + 1) / (FREEDOM + square / max(scale, 1e-6))
            scale = float(np.mean(weight * square))
        velocity = float(np.average(steps, weights=weight))
        walk = np.concatenate(([0.0], np.maximum(scale / weight, 1e-6)))
    return _Smoothed(mean, variance, walk)


def _kalman(observed: Floats, information: Floats, walk: Floats, velocity: float) -> tuple[Floats, Floats, Floats]:
    """Filter forwards, smooth backwards; return mean, variance and covariance with the frame before."""
    n_frames = len(observed)
    mean, variance, ahead = (np.zeros(n_frames) for _ in range(3))
    m, p = float(observed[0]), 1e6
    for t in range(n_frames):
        if t:
            m, p = m + velocity, p + walk[t]
        ahead[t] = p
        trust = p * information[t] / (1 + p * information[t])
        m, p = m + trust * (observed[t] - m), p * (1 - trust)
        mean[t], variance[t] = m, p
    lagged = np.zeros(n_frames)
    for t in range(n_frames - 2, -1, -1):
        back = variance[t] / ahead[t + 1]
        mean[t] += back * (mean[t + 1] - mean[t] - velocity)
        variance[t] += back**2 * (variance[t + 1] - ahead[t + 1])
        lagged[t + 1] = back * variance[t + 1]
    return mean, variance, lagged
