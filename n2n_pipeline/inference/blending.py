"""Weights with which overlapping cores are blended.

A weight is separable: one taper along y, one along x. Along each axis the tapers of all tiles add up to one at
every pixel that comes out, so tiles that agree are blended without a trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from n2n_pipeline.geometry import Span

Floats = npt.NDArray[np.float32]


def taper_axis(spans: Sequence[Span]) -> list[Floats]:
    """Weigh each core along one axis: a raised cosine where it overlaps a neighbour, one elsewhere.

    Parameters
    ----------
    spans : sequence of Span
        All tiles along the axis, in order; their cores leave no gap.

    Returns
    -------
    list of numpy.ndarray
        ``(core,)`` weights per span, adding up to one over all spans.
    """
    first, last = spans[0].core.start, spans[-1].core.stop
    tapers = [np.ones(span.core.size) for span in spans]
    for left, right in pairwise(range(len(spans))):
        shared = max(spans[left].core.stop - spans[right].core.start, 0)
        rise = np.sin(np.pi / 2 * (np.arange(shared) + 0.5) / max(shared, 1)) ** 2
        tapers[right][:shared] *= rise
        tapers[left][len(tapers[left]) - shared :] *= rise[::-1]
    total = np.zeros(last - first)
    for span, taper in zip(spans, tapers, strict=True):
        total[span.core.within(first)] += taper
    return [
        (taper / total[span.core.within(first)]).astype(np.float32)
        for span, taper in zip(spans, tapers, strict=True)
    ]
