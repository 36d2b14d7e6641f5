"""What training minimises: per pixel, weighted by how much is known of the target.

Noise2Noise learns what minimises the expected loss against noisy targets: their mean (L2), median (L1), mode
(annealed L0), or something between (Huber). Only the mean of counts is the dose.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from n2n_pipeline.config import Loss

L0_EPSILON = 1e-8
CELL_PX = 4
CHANGE_CELLS = 5
"""Side, in cells, of the squares over which levels of a ladder are compared: faint changes show in many pixels."""


def weighted_loss(kind: Loss, output: Tensor, target: Tensor, weight: Tensor, progress: float) -> Tensor:
    """Return the mean over all pixels of ``weight`` times the loss of ``output - target``.

    Parameters
    ----------
    kind : str
        ``l2``, ``l1``, ``huber`` (quadratic up to one, the scale of the inputs) or ``l0``.
    output, target, weight : torch.Tensor
        Of one shape; normalised units.
    progress : float
        From 0 to 1 over the training; L0's exponent falls from 2 to 0 with it.

    References
    ----------
    Lehtinen et al. (2018), Noise2Noise, ICML, arXiv:1803.04189, sections 2 and 3.4 (annealed L0).
    """
    error = output - target
    return (weight * _penalty(kind, error, progress)).mean()


def find_changes(inputs: Tensor) -> Tensor:
    """Return how far the levels of a ladder differ around a pixel, 1 on average over an image (0 if none do).

    One pixel in a hundred may see something come or go, and a loss over all pixels hardly asks what is made of it.
    A weight that depends on nothing but the network's input asks more, and moves nothing: given that input, what
    minimises the expected loss stays what it was.

    Parameters
    ----------
    inputs : torch.Tensor
        ``(n, level, y, x)`` of `stack_channels`: differences between levels, then the longest level.

    Returns
    -------
    torch.Tensor
        ``(n, y, x)``: differences, averaged over `CHANGE_CELLS` about every cell, squared, in units of the
        squares' mean over the image; of all levels that differ at all, the mean.
    """
    cells = avg_pool2d(inputs[:, :-1], CELL_PX, ceil_mode=True)
    squares = avg_pool2d(cells, CHANGE_CELLS, 1, CHANGE_CELLS // 2, count_include_pad=False).square()
    sizes = squares.mean((2, 3), keepdim=True)
    relative = squares / sizes.where(sizes > 0, 1.0)
    found = relative.sum(1, keepdim=True) / (sizes > 0).sum(1, keepdim=True).clamp(min=1)
    return interpolate(found, inputs.shape[2:])[:, 0]


def _penalty(kind: Loss, error: Tensor, progress: float) -> Tensor:
    magnitude = error.abs()
    if kind == "l1":
        return magnitude
    if kind == "huber":
        inside = magnitude.clamp(max=1.0)
        return inside * (magnitude - inside / 2)
    if kind == "l0":
        return (magnitude + L0_EPSILON) ** (2 * (1 - progress))
    return error.square()
