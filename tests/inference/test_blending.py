import numpy as np
import pytest

from n2n_pipeline.geometry import Tiling, plan_tiles
from n2n_pipeline.inference.blending import taper_axis


@pytest.mark.parametrize(
    ("core", "overlap"),
    [
        (64, 0),  # cores that only touch
        (64, 16),
        (32, 16),  # every pixel is near a seam
        (8, 4),  # cores shorter than the stride
    ],
)
def test_tapers_add_up_to_one_at_every_pixel(core, overlap):
    spans = plan_tiles((203, 1), Tiling(16, core, 16, overlap)).rows
    total = np.zeros(203)
    for span, taper in zip(spans, taper_axis(spans), strict=True):
        total[span.core.start : span.core.stop] += taper
    np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_a_taper_falls_smoothly_from_one_to_zero():
    spans = plan_tiles((200, 1), Tiling(8, 100, 8, overlap=40)).rows
    falling = taper_axis(spans)[0][-40:]
    assert np.all(np.diff(falling) < 0)
    assert falling[0] > 0.999
    assert falling[-1] < 0.001
