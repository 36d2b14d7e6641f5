"""How far a trained network really sees, and the smallest halo that this allows.

What a network could see, by its layers, is several times what it has learnt to use. Cut a piece out of an image,
compare its output with what the whole gives there, and the difference tells, by the distance from the cut, what
is lost with a halo of so many pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from n2n_pipeline.checkpoint import Denoiser
from n2n_pipeline.geometry import Range, Span, Tile, round_up
from n2n_pipeline.inference.forward import run_network
from n2n_pipeline.inference.inputs import Half
from n2n_pipeline.inference.noise import output_noise
from n2n_pipeline.model import exact_halo, stride

Floats = npt.NDArray[np.float32]

SAFETY = 5.0  # the largest difference in a movie is larger than the largest in a sample of it


class MeasuredHalo(NamedTuple):
    """The smallest halo that keeps tiled and untiled as close as asked."""

    halo: int
    """Pixels on each side of a core."""
    error: float | None
    """Largest difference found at this halo, in standard deviations of the output's noise, if looked at."""


class Sample(NamedTuple):
    """A place of an image, as `sample_tiles` cuts it, and its halves."""

    tile: Tile
    halves: Sequence[Half]


def measure_halo(denoiser: Denoiser, samples: Sequence[Sample], tolerance: float) -> MeasuredHalo:
    """Find the halo that keeps the difference from the untiled network below a share of the output's noise.

    Parameters
    ----------
    denoiser : Denoiser
        The trained network.
    samples : sequence of Sample
        Where to look.
    tolerance : float
        Largest difference allowed anywhere, in standard deviations of the output's noise.

    Returns
    -------
    MeasuredHalo
        A multiple of half the stride, at most the halo that makes tiles exact.
    """
    exact, step = exact_halo(denoiser.card.network), max(stride(denoiser.card.network) // 2, 1)
    curves = [_measure_sample(denoiser, sample, exact) for sample in samples]
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


def _measure_sample(denoiser: Denoiser, sample: Sample, exact: int) -> npt.NDArray[np.float64]:
    """Return, for each distance from a cut, the largest difference there or further in, over the output's noise.

    ``(exact,)``; infinite at distances that the sample does not have.
    """
    tile, halves = sample
    rows, columns = (span.core.within(span.read.start) for span in tile)
    whole = [run_network(denoiser, *half) for half in halves]
    pieces = [
        run_network(denoiser, half.values[..., rows, columns], half.counts[..., rows, columns]) for half in halves
    ]
    expected = [image[:, rows, columns] for image in whole]
    difference = np.abs(np.mean(pieces, axis=0) - np.mean(expected, axis=0)).max(axis=0)
    distance = np.minimum(*np.meshgrid(*map(_distance_from_cuts, tile), indexing="ij"))
    at_distance = np.zeros(int(distance.max()) + 1)
    np.maximum.at(at_distance, distance.ravel(), difference.ravel().astype(np.float64))
    further_in = np.maximum.accumulate(at_distance[::-1])[::-1] / output_noise(denoiser, halves, whole)
    return np.pad(further_in, (0, max(exact - len(further_in), 0)), constant_values=np.inf)[:exact]


def _distance_from_cuts(span: Span) -> npt.NDArray[np.int64]:
    """Return how many pixels of a core lie between each of them and the nearest end that is not the image's."""
    inside = np.arange(span.core.size)
    far = np.full(span.core.size, span.core.size)
    left = inside if span.core.start > span.read.start else far
    right = inside[::-1] if span.core.stop < span.read.stop else far
    return np.minimum(left, right)
