"""How far a trained network really sees, and the smallest halo that this allows.

What a network could see, by its layers, is several times what it has learnt to use. Cut a piece out of an image,
compare its output with what the whole gives there, and the difference tells, by the distance from the cut, what
is lost with a halo of so many pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline.checkpoint import Denoiser
from n2n_pipeline.geometry import Range, Span, Tile, round_up
from n2n_pipeline.inference.forward import run_network
from n2n_pipeline.inference.inputs import Half
from n2n_pipeline.model import exact_halo, stride

Floats = npt.NDArray[np.float32]

SAFETY = 3.0  # the largest difference in a movie is larger than the largest in a sample of it
NOISE_SEED = 0


class MeasuredHalo(NamedTuple):
    """The smallest halo that keeps tiled and untiled as close as asked."""

    halo: int
    """Pixels on each side of a core."""
    error: float | None
    """Largest difference found at this halo, in standard deviations of the output's noise, if looked at."""


def measure_halo(
    denoiser: Denoiser, samples: Sequence[Tile], read: Callable[[int, Tile], Sequence[Half]], tolerance: float
) -> MeasuredHalo:
    """Find the halo that keeps the difference from the untiled network below a share of the output's noise.

    Parameters
    ----------
    denoiser : Denoiser
        The trained network.
    samples : sequence of Tile
        Places to look at, as `sample_tiles` cuts them.
    read : callable
        Given the number of a sample and its tile, returns its halves.
    tolerance : float
        Largest difference allowed anywhere, in standard deviations of the output's noise.

    Returns
    -------
    MeasuredHalo
        A multiple of half the stride, at most the halo that makes tiles exact.
    """
    exact, step = exact_halo(denoiser.card.network), max(stride(denoiser.card.network) // 2, 1)
    curves = [_measure_sample(denoiser, tile, read(i, tile), exact) for i, tile in enumerate(samples)]
    worst = np.max(curves, axis=0)
    for halo in range(0, exact, step):
        if worst[halo] * SAFETY <= tolerance:
            return MeasuredHalo(halo, float(worst[halo]))
    return MeasuredHalo(exact, 0.0)


def sample_tiles(shape: tuple[int, int], network_stride: int, exact: int, n_samples: int = 3) -> list[Tile]:
    """Choose places of an image, along its diagonal, at which to compare tiled with untiled.

    Returns
    -------
    list of Tile
        Each keeps a core of at most twice the exact halo a side, on the stride, and reads that halo around it.
    """
    places = [(i + 1) / (n_samples + 1) for i in range(n_samples)]
    return [Tile(*(_sample_span(size, place, network_stride, exact) for size in shape)) for place in places]


def _sample_span(size: int, place: float, step: int, exact: int) -> Span:
    extent = round_up(size, step)
    side = min(max(2 * exact, step), max(extent // 2 // step * step, step))
    start = int((extent - side) * place) // step * step
    read = Range(max(start - exact, 0), min(start + side + exact, extent))
    return Span(read, Range(start, start + side))


def _measure_sample(denoiser: Denoiser, tile: Tile, halves: Sequence[Half], exact: int) -> npt.NDArray[np.float64]:
    """Return, for each distance from a cut, the largest difference there or further in, over the output's noise.

    ``(exact,)``; infinite at distances that the sample does not have.
    """
    cuts = tuple(span.core.within(span.read.start) for span in tile)
    whole = [run_network(denoiser, *half) for half in halves]
    pieces = [run_network(denoiser, half.values[:, *cuts], half.counts[:, *cuts]) for half in halves]
    expected = [image[:, *cuts] for image in whole]
    difference = np.abs(np.mean(pieces, axis=0) - np.mean(expected, axis=0)).max(axis=0)
    distance = np.minimum(*np.meshgrid(*map(_distance_from_cuts, tile), indexing="ij"))
    at_distance = np.zeros(int(distance.max()) + 1)
    np.maximum.at(at_distance, distance.ravel(), difference.ravel().astype(np.float64))
    further_in = np.maximum.accumulate(at_distance[::-1])[::-1] / _output_noise(denoiser, halves, whole)
    return np.pad(further_in, (0, max(exact - len(further_in), 0)), constant_values=np.inf)[:exact]


def _distance_from_cuts(span: Span) -> npt.NDArray[np.int64]:
    """Return how many pixels of a core lie between each of them and the nearest end that is not the image's."""
    inside = np.arange(span.core.size)
    far = np.full(span.core.size, span.core.size)
    left = inside if span.core.start > span.read.start else far
    right = inside[::-1] if span.core.stop < span.read.stop else far
    return np.minimum(left, right)


def _output_noise(denoiser: Denoiser, halves: Sequence[Half], denoised: list[Floats]) -> float:
    """Estimate the noise that is left in what comes out.

    The halves have independent noise, so that half their difference has the noise of their mean. A single image
    is given new noise instead: its own residual with random signs, twice.
    """
    if len(halves) == 1:
        signs = np.random.default_rng(NOISE_SEED).choice(np.array([-1, 1], np.float32), (2, *denoised[0].shape))
        residual = halves[0].values - denoised[0]
        denoised = [run_network(denoiser, denoised[0] + sign * residual, halves[0].counts) for sign in signs]
    averaged = 1 if len(halves) == 1 else 2
    noise = float(np.std(denoised[0] - denoised[1])) / math.sqrt(2 * averaged)
    return max(noise, float(np.finfo(np.float32).tiny))
