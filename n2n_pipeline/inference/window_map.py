"""How many frames a network of a ladder averages at each pixel: which windows its choice falls on.

Noise tells. A frame's noise reaches the output with the weight that the network gives the windows it is in, which
is a derivative: one pass backwards, from outputs of random signs, gives at every pixel the derivatives by each
level, and their mean squares around it do not depend on the signs (Hutchinson's estimate). As many frames of equal
weight as let through as much noise are the effective number of frames,

    n = (sum of weights)² / (sum of squared weights), over the frames of all levels.

A network that uses its longest window alone has its length; one that uses the shortest alone has that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from n2n_pipeline.checkpoint import Denoiser, stack_channels
from n2n_pipeline.geometry import Range, Tiling, plan_tiles
from n2n_pipeline.inference.forward import Canvas, gather
from n2n_pipeline.inference.inputs import Inputs
from n2n_pipeline.model import stride

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.number[Any]]

CORE_PX = 256  # derivatives keep all that the network computes
HALO_PX = 32
SMOOTHING_PX = 4.0  # standard deviation of the neighbourhood that mean squares are taken over
SEED = 0


def effective_frames(denoiser: Denoiser, values: Numbers, counts: Floats) -> Floats:
    """Return how many of a half's frames are averaged at each pixel.

    Parameters
    ----------
    denoiser : Denoiser
        A network of a ladder.
    values, counts : numpy.ndarray
        ``(n, level, y, x)`` averages of one half in the movie's units, and the frames that each holds; sides are
        multiples of the network's stride.

    Returns
    -------
    numpy.ndarray
        ``(n, y, x)`` number of frames, from 1 to those of the longest level.
    """
    shape = (values.shape[-2], values.shape[-1])
    plan = plan_tiles(shape, _tiling(denoiser))
    canvas = Canvas(plan, len(values))
    for tile in plan.tiles:
        parts = (gather(image, tile, shape, (0, 0)) for image in (values, counts))
        canvas.blend(tile, [np.stack([_of_frame(denoiser, *one) for one in zip(*parts, strict=True)])])
    return canvas.image


def map_frames(denoiser: Denoiser, inputs: Inputs, t: int, region: tuple[slice, slice]) -> Floats:
    """Return how many frames of both halves are averaged at each pixel of a region of frame ``t``.

    Returns
    -------
    numpy.ndarray
        ``(y, x)``.
    """
    rows, columns = (Range(part.start, part.stop) for part in region)
    plan = plan_tiles(inputs.shape, _tiling(denoiser), (rows, columns))
    canvas = Canvas(plan, 1)
    for tile in plan.tiles:
        halves = inputs.read(range(t, t + 1), tile)
        frames = np.sum([_of_frame(denoiser, h.values[0], h.counts[0]) for h in halves], axis=0)
        canvas.blend(tile, [frames[None]])
    return np.asarray(canvas.image[0], np.float32)


def _tiling(denoiser: Denoiser) -> Tiling:
    step = stride(denoiser.card.network)
    return Tiling(step, max(CORE_PX // step, 1) * step, -(-HALO_PX // step) * step)


def _of_frame(denoiser: Denoiser, values: Numbers, counts: Floats) -> Floats:
    slopes = _derivatives(denoiser, values[None], counts[None])[0]
    per_frame = slopes / np.maximum(counts, 1)
    # A frame of a ring is in its own level and in all longer ones.
    weights = np.cumsum(per_frame[::-1], axis=0)[::-1]
    ring = np.diff(counts, axis=0, prepend=0)
    power = ndimage.gaussian_filter(weights**2, (0, SMOOTHING_PX, SMOOTHING_PX), mode="mirror")
    total = (ring * np.sqrt(power)).sum(axis=0)
    frames = total**2 / np.maximum((ring * power).sum(axis=0), np.finfo(np.float32).tiny)
    return np.asarray(np.clip(frames, 1, np.maximum(counts[-1], 1)), np.float32)


def _derivatives(denoiser: Denoiser, values: Numbers, counts: Floats) -> Floats:
    """Return the ``(n, level, y, x)`` derivatives of the outputs' sum, each with a random sign."""
    with torch.enable_grad():
        levels, frames = (
            torch.from_numpy(np.array(part, np.float32)).to(denoiser.device) for part in (values, counts)
        )
        output = denoiser.network(stack_channels(levels.requires_grad_(), frames, denoiser.card))
        signs = np.random.default_rng(SEED).choice(np.array([-1, 1], np.float32), output.shape)
        output.backward(torch.from_numpy(signs).to(output.device))
    slopes: Floats = levels.grad.to("cpu", torch.float32).numpy()  # type: ignore[union-attr]
    return slopes
