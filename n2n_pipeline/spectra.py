"""Frames of a movie in Fourier space: binned, band-limited and whitened, as drift is found from them.

The frequencies are kept in the order of their radius, so that a coarser band is the first of them. The spectra are
kept in a nameless file in the movie's folder and met a few frames at a time: memory does not grow with the movie.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from n2n_pipeline.config import AlignConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.files import require_space
from n2n_pipeline.progress import progress

Floats = npt.NDArray[np.float64]

SPECTRA_BYTES = 2**30  # budget of the kept spectra; larger movies are binned more
PIECE = 64  # frames that are in memory at a time
SMALLEST_SIDE_PX = 256  # binning stops here
EDGE_TAPER = 1 / 8  # share of each side over which a frame fades out, against the cross of its own borders


class Spectra(NamedTuple):
    """Frames in Fourier space: half a plane, band-limited, divided by the noise's own amplitude."""

    values: Tensor
    """``(t, k)`` complex64, in the host's memory or mapped from a file."""
    ky: Tensor
    """``(k,)`` cycles per binned pixel, on the device that computes, as all that follow."""
    kx: Tensor
    weight: Tensor
    """``(k,)`` 2 where the other half-plane holds a mirror image, else 1."""
    ring: Tensor
    """``(k,)`` number of the ring a frequency lies in; it never falls."""
    bin: int
    """Camera pixels per binned pixel."""
    shape: tuple[int, int]
    """``(y, x)`` binned pixels of a frame."""
    folder: Path
    """Where what is as large as the values is kept."""

    def within(self, band: float) -> Spectra:
        """Return the frequencies up to one, in cycles per binned pixel."""
        count = int((torch.hypot(self.ky, self.kx) <= band).sum())
        cut = {name: getattr(self, name)[..., :count] for name in ("values", "ky", "kx", "weight", "ring")}
        return self._replace(**cut)


def read_spectra(movie: CorrectedMovie, config: AlignConfig, device: torch.device) -> Spectra:
    """Read every frame once and keep its whitened spectrum, up to the highest frequency of the settings.

    Whitened is divided by the root mean power of single frames over a ring, which at these doses is the noise's.

    Raises
    ------
    InputError
        If the disk that the movie is on has no room for the spectra.
    """
    n_frames, *sides = movie.store.info.shape
    binning = choose_bin(n_frames, tuple(sides), config.max_frequency_per_px)
    height, width = (side // binning for side in sides)
    ky, kx = (part.ravel() for part in np.meshgrid(np.fft.fftfreq(height), np.fft.rfftfreq(width), indexing="ij"))
    radius = np.hypot(ky, kx)
    order = np.argsort(radius, kind="stable")
    order = order[(radius[order] > 0) & (radius[order] <= config.max_frequency_per_px)]
    taper = torch.from_numpy(np.outer(_taper(height), _taper(width))).float().to(device)
    kept = torch.from_numpy(order).to(device)
    values = keep_on_disk(movie.store.path, (n_frames, len(order)))
    power = torch.zeros(len(order), device=device)
    step = movie.store.array.shards[0] if movie.store.array.shards else 1
    with progress("align: reading", n_frames, "frames") as advance:
        for start in range(0, n_frames, step):
            frames = movie.read(slice(start, min(start + step, n_frames)), slice(None), slice(None))
            filled = np.where(frames.valid, frames.values, _valid_means(*frames))
            binned = torch.from_numpy(_bin(filled, binning)).to(device)
            binned = (binned - binned.mean(dim=(1, 2), keepdim=True)) * taper
            spectra = torch.fft.rfft2(binned).flatten(start_dim=1)[:, kept]
            values[start : start + len(binned)] = spectra.cpu()
            power += spectra.abs().square().sum(dim=0)
            advance(len(binned))
    weight, ring = np.where(kx > 0, 2.0, 1.0), np.rint(radius * min(height, width))
    y, x, weights, rings = (
        torch.from_numpy(part[order].astype(np.float32)).to(device) for part in (ky, kx, weight, ring)
    )
    found = Spectra(values, y, x, weights, rings.long(), binning, (height, width), movie.store.path)
    amplitude = ring_mean(power / n_frames, found).clamp(min=1e-20).sqrt().cpu()
    for piece in cut_frames(n_frames):
        values[piece] /= amplitude
    return found


def keep_on_disk(folder: Path, shape: tuple[int, int]) -> Tensor:
    """Return zeros, complex64, mapped from a file in a folder that goes when the tensor does.

    Raises
    ------
    InputError
        If the folder's disk has no room.
    """
    n_bytes = math.prod(shape) * np.dtype(np.complex64).itemsize
    require_space(folder, n_bytes)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, n_bytes)  # a full disk is an error here, and a crash when written
        return torch.from_numpy(np.memmap(file, np.complex64, "r+", shape=shape))


def cut_frames(n_frames: int) -> list[slice]:
    """Cut a movie into pieces of frames, about as long as each other, that fit in memory.

    Examples
    --------
    >>> cut_frames(100)
    [slice(0, 50, None), slice(50, 100, None)]
    """
    n_pieces = max(-(-n_frames // PIECE), 1)
    ends = [n_frames * number // n_pieces for number in range(n_pieces + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


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


def undo_shifts(spectra: Spectra, position: Floats, frames: slice) -> Tensor:
    """Undo the shifts of some frames: ``(t, k)`` spectra times the phase of each one's position."""
    device = spectra.ky.device
    where = torch.from_numpy(position[frames].astype(np.float32)).to(device)
    angle = 2 * torch.pi * (where[:, :1] * spectra.ky + where[:, 1:] * spectra.kx)
    return torch.polar(torch.ones_like(angle), angle).mul_(spectra.values[frames].to(device))
