"""The noise that is left in what comes out, and whether a lower precision stays well below it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from n2n_pipeline.checkpoint import Denoiser
from n2n_pipeline.inference.forward import run_network
from n2n_pipeline.inference.inputs import Half

Floats = npt.NDArray[np.float32]

NOISE_SEED = 0
ROUNDING = 0.1  # of the noise; costs 0.04 dB


def output_noise(denoiser: Denoiser, halves: Sequence[Half], denoised: Sequence[Floats]) -> float:
    """Estimate the standard deviation of the noise that is left in the mean of both denoised halves.

    The halves have independent noise, so that half their difference has the noise of their mean. A single image
    is given new noise instead: its own residual with random signs, twice.

    Parameters
    ----------
    denoiser : Denoiser
        The network.
    halves : sequence of Half
        One or two averages of the same scene.
    denoised : sequence of numpy.ndarray
        ``(n, y, x)`` what the network made of each.

    Returns
    -------
    float
        In the movie's units; never 0.
    """
    if len(halves) == 1:
        signs = np.random.default_rng(NOISE_SEED).choice(np.array([-1, 1], np.float32), (2, *denoised[0].shape))
        residual = halves[0].values - denoised[0]
        denoised = [run_network(denoiser, denoised[0] + sign * residual, halves[0].counts) for sign in signs]
    noise = float(np.std(denoised[0] - denoised[1])) / math.sqrt(2 * len(halves))
    return max(noise, float(np.finfo(np.float32).tiny))


def is_precise(denoiser: Denoiser, halves: Sequence[Half]) -> bool:
    """Tell whether the denoiser's precision changes what comes out by far less than its noise."""
    if denoiser.dtype is None:
        return True
    exactly = replace(denoiser, dtype=None)
    exact = [run_network(exactly, *half) for half in halves]
    rounded = [run_network(denoiser, *half) for half in halves]
    difference = float(np.std(np.mean(rounded, axis=0) - np.mean(exact, axis=0)))
    return difference <= ROUNDING * output_noise(exactly, halves, exact)
