"""Frames of a movie in Fourier space: binned, band-limited and whitened, as drift is found from them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from n2n_pipeline.config import AlignConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.progress import progress

Floats = npt.NDArray[np.float64]

SPECTRA_BYTES = 2**30  # budget of the kept spectra; larger movies are binned more
SMALLEST_SIDE_PX = 256  # binning stops here
EDGE_TAPER = 1 / 8  # share of each side over which a frame fades out, against the cross of its own borders


class Spectra(NamedTuple):
    """Frames in Fourier space: half a plane, band-limited, divided by the noise's own amplitude."""

    values: Tensor
    """``(t, k)`` complex64."""
    ky: Tensor
    """``(k,)`` cycles per binned pixel."""
    kx: Tensor
    weight: Tensor
    """``(k,)`` 2 where the other half-plane holds a mirror image, else 1."""
    ring: Tensor
    """``(k,)`` number of the ring a frequency lies in."""
    bin: int
    """Camera pixels per binned pixel."""
    shape: tuple[int, int]
    """``(y, x)`` binned pixels of a frame."""


def read_spectra(movie: CorrectedMovie, config: AlignConfig, device: torch.device) -> Spectra:
    """Read every frame once and keep its spectrum, up to the highest frequency of the settings."""
    n_frames, *sides = movie.store.info.shape
    binning = choose_bin(n_frames, tuple(sides), config.max_frequency_per_px)
    height, width = (side // binning for side in sides)
    ky, kx = np.meshgrid(np.fft.fftfreq(height), np.fft.rfftfreq(width), indexing="ij")
    radius = np.hypot(ky, kx)
    keep = (radius > 0) & (radius <= config.max_frequency_per_px)
    taper = torch.from_numpy(np.outer(_taper(height), _taper(width))).float().to(device)
    kept = torch.from_numpy(keep).to(device)
    values = torch.empty((n_frames, int(keep.sum())), dtype=torch.complex64, device=device)
    step = movie.store.array.shards[0] if movie.store.array.shards else 1
    with progress("align: reading", n_frames, "frames") as advance:
        for start in range(0, n_frames, step):
            frames = movie.read(slice(start, min(start + step, n_frames)), slice(None), slice(None))
            filled = np.where(frames.valid, frames.values, _valid_means(*frames))
            binned = torch.from_numpy(_bin(filled, binning)).to(device)
            binned = (binned - binned.mean(dim=(1, 2), keepdim=True)) * taper
            values[start : start + len(binned)] = torch.fft.rfft2(binned)[:, kept]
            advance(len(binned))
    weight = np.where(kx > 0, 2.0, 1.0)
    ring = np.rint(radius * min(height, width))
    on_device = [torch.from_numpy(part[keep].astype(np.float32)).to(device) for part in (ky, kx, weight, ring)]
    return Spectra(values, on_device[0], on_device[1], on_device[2], on_device[3].long(), binning, (height, width))


def choose_bin(n_frames: int, sides: tuple[int, ...], highest: float) -> int:
    """Choose the least binning whose spectra fit the budget."""
    binning = 1
    while min(sides) // (binning + 1) >= SMALLEST_SIDE_PX:
        kept = np.pi / 2 * highest**2 * np.prod([side // binning for side in sides])
        if 8 * n_frames * kept <= SPECTRA_BYTES and max(sides) // binning <= 4 * SMALLEST_SIDE_PX:
            break
        binning += 1
    return binning


def _bin(frames: npt.NDArray[np.float32], by: int) -> npt.NDArray[np.float32]:
    if by == 1:
        return frames
    n, height, width = frames.shape
    trimmed = frames[:, : height // by * by, : width // by * by]
    return np.asarray(trimmed.reshape(n, height // by, by, width // by, by).mean(axis=(2, 4), dtype=np.float32))


def _valid_means(values: npt.NDArray[Any], valid: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``(t, 1, 1)`` mean of each frame's valid pixels."""
    seen = np.broadcast_to(valid, values.shape).sum(axis=(1, 2), keepdims=True)
    return np.asarray(values.sum(axis=(1, 2), keepdims=True, dtype=np.float64) / np.maximum(seen, 1), np.float32)


def _taper(size: int) -> Floats:
    window = np.ones(size)
    edge = int(size * EDGE_TAPER)
    rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(edge) + 0.5) / max(edge, 1))
    window[:edge], window[size - edge :] = rise, rise[::-1]
    return window


def ring_sum(power: Tensor, spectra: Spectra) -> Tensor:
    """Sum ``(k,)`` over each ring and give every frequency its ring's value."""
    size = int(spectra.ring.max()) + 1
    zeros = torch.zeros(size, dtype=power.dtype, device=power.device)
    return zeros.index_add(0, spectra.ring, power * spectra.weight)[spectra.ring]


def ring_mean(power: Tensor, spectra: Spectra) -> Tensor:
    """Average ``(k,)`` over each ring and give every frequency its ring's value."""
    return ring_sum(power, spectra) / ring_sum(torch.ones_like(power), spectra)


def whiten(spectra: Spectra) -> Spectra:
    """Divide by the amplitude of a single frame, which at these doses is the noise's."""
    power = spectra.values.abs().square().mean(dim=0)
    amplitude = ring_mean(power, spectra).clamp(min=1e-20).sqrt()
    return spectra._replace(values=spectra.values / amplitude)


def undo_shifts(spectra: Spectra, position: Floats) -> Tensor:
    """Undo the shifts: ``(t, k)`` spectra times the phase of each frame's position."""
    where = torch.from_numpy(position.astype(np.float32)).to(spectra.values.device)
    angle = 2 * torch.pi * (where[:, :1] * spectra.ky + where[:, 1:] * spectra.kx)
    return spectra.values * torch.polar(torch.ones_like(angle), angle)
