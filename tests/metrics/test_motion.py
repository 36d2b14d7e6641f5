import numpy as np
import pytest
from scipy import ndimage

from n2n_pipeline.metrics.motion import displacement


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (0.5, 1.25), (-7.3, 4.6)])
def test_a_planted_shift_is_found_through_noise(shift):
    rng = np.random.default_rng(0)
    scene = ndimage.gaussian_filter(rng.standard_normal((224, 224)), 4) * 14
    moved = ndimage.shift(scene, shift, order=3, mode="wrap")
    first, second = (image[16:-16, 16:-16] + rng.standard_normal((192, 192)) for image in (scene, moved))
    assert displacement(first, second) == pytest.approx(shift, abs=0.3)


def test_images_without_structure_have_not_moved():
    assert displacement(np.zeros((64, 64)), np.zeros((64, 64))) == (0, 0)
