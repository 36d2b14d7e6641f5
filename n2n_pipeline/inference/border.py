"""Whether the network is shown mirrored pixels beyond the image's ends.

Mirrored noise agrees with the noise that it mirrors, which a network takes for structure. One that was trained for
long, on patches that end where the image does, has learnt to do without; one that has not loses more without. What
is mirrored has to be denoised too, half as many pixels again in a small image: it must be surely better.
"""

from __future__ import annotations

import numpy as np

from n2n_pipeline.checkpoint import Denoiser
from n2n_pipeline.geometry import Range, Span, Tile, round_up, spread_evenly
from n2n_pipeline.inference.forward import gather, run_network
from n2n_pipeline.inference.inputs import Half, Inputs
from n2n_pipeline.metrics.bootstrap import standard_error
from n2n_pipeline.model import stride

EDGE_PX = 8  # from the ends: beyond, what lies outside hardly counts
SIDE_PX = 256
FRAMES = 6
SURE = 3.0  # standard errors, which few frames tell badly


def choose_border(denoiser: Denoiser, inputs: Inputs) -> int:
    """Try both at a corner of some frames, and mirror where that surely predicts the other half better.

    Returns
    -------
    int
        Pixels to be mirrored at each end: none, or a stride of the network, also where there are no halves to ask.
    """
    mirrored = stride(denoiser.card.network)
    if not inputs.has_pairs:
        return mirrored
    frames = spread_evenly(inputs.movie.store.info.shape[0], FRAMES)
    gain = np.array([_gain(denoiser, inputs, t, mirrored) for t in frames])
    return mirrored if gain.mean() > SURE * standard_error(gain) else 0


def _gain(denoiser: Denoiser, inputs: Inputs, t: int, border: int) -> float:
    """Return by how much less a frame's halves differ from what predicts them, in its corner, with a border."""
    side = round_up(SIDE_PX, border)
    halves = inputs.read_halves(range(t, t + 1), (slice(0, side), slice(0, side)))
    plain, with_border = (_predict_other_halves(denoiser, halves, inputs.shape, one) for one in (0, border))
    return plain - with_border


def _predict_other_halves(
    denoiser: Denoiser, corners: tuple[Half, Half], shape: tuple[int, int], border: int
) -> float:
    """Return the mean square by which each half, denoised, differs from the other along two ends of an image."""
    tile = Tile(*(_span(size, border, stride(denoiser.card.network)) for size in shape))
    halves = [
        Half(gather(values, tile, shape, (0, 0)), gather(counts, tile, shape, (0, 0)))
        for values, counts in corners
    ]
    rows, columns = (span.core.within(span.read.start) for span in tile)
    denoised = [run_network(denoiser, *half)[0, rows, columns] for half in halves]
    # Of a ladder the shortest level is nearest to the moment.
    others = [half.values.reshape(-1, *half.values.shape[-2:])[0, rows, columns] for half in reversed(halves)]
    at_end = np.ones(denoised[0].shape, bool)
    at_end[EDGE_PX:, EDGE_PX:] = False
    return float(
        np.mean([np.square(one - other)[at_end].mean() for one, other in zip(denoised, others, strict=True)])
    )


def _span(size: int, border: int, step: int) -> Span:
    read = Range(-border, min(round_up(size + border, step), round_up(SIDE_PX, step)))
    return Span(read, Range(0, min(size, read.stop)))
