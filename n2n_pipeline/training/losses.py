"""What training minimises: per pixel, weighted by how much is known of the target.

Noise2Noise learns what minimises the expected loss against noisy targets: their mean (L2), median (L1), mode
(annealed L0), or something between (Huber). Only the mean of counts is the dose.
"""

from __future__ import annotations

from torch import Tensor

from n2n_pipeline.config import Loss

L0_EPSILON = 1e-8


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
