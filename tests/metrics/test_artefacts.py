import numpy as np
import pytest
from scipy import ndimage

from n2n_pipeline.metrics.artefacts import Seam, find_seams, seam_metric


@pytest.fixture
def movie():
    return ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((3, 256, 192)), (0, 2, 2))


def test_a_clean_movie_has_no_seams(movie):
    assert find_seams(movie) == []


@pytest.mark.parametrize(("axis", "name", "position"), [(1, "y", 128), (2, "x", 64), (2, "x", 101)])
def test_a_planted_step_is_found_where_it_was_planted(movie, axis, name, position):
    after = np.arange(movie.shape[axis]) >= position
    step = 0.5 * movie.std() * after
    seams = find_seams(movie + (step[:, None] if axis == 1 else step))
    assert [(seam.axis, seam.position) for seam in seams] == [(name, position)]
    assert isinstance(seams[0], Seam)


def test_the_metric_is_the_relative_excess_across_the_border():
    ramp = np.broadcast_to(np.arange(64.0), (1, 32, 64)).copy()
    ramp[:, :, 32:] += 0.5  # a step of 1.5 where the others are 1
    assert seam_metric(ramp, 2, [32]) == pytest.approx(0.5)
    assert seam_metric(ramp, 2, [16]) == 0
    assert seam_metric(ramp, 2, []) == 0


def test_an_edge_of_the_object_is_no_seam(movie):
    with_edge = movie.copy()
    with_edge[:, 60:140, 80:] += 3 * movie.std()
    assert find_seams(with_edge) == []
    assert seam_metric(with_edge, 1, [60]) > 0.5  # it is where it runs to that tells the two apart
