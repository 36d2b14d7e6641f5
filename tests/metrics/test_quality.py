import numpy as np
import pytest
from skimage.metrics import structural_similarity

from n2n_pipeline.metrics.quality import score_frame, score_movie


@pytest.fixture
def truth():
    y, x = np.mgrid[0:96, 0:80]
    return np.sin(y / 7.0) * np.cos(x / 5.0) + 3


def test_an_image_with_a_known_error_scores_that_error(truth):
    inside = truth[16:-16, 16:-16]
    noise = np.random.default_rng(0).normal(0, 0.1, truth.shape)
    noise_in = noise[16:-16, 16:-16]
    # what the affine fit could explain is taken out beforehand, so that the fit changes nothing
    design = np.stack([np.ones(inside.size), inside.ravel()], axis=1)
    left = noise_in.ravel() - design @ np.linalg.lstsq(design, noise_in.ravel(), rcond=None)[0]
    wanted = inside + left.reshape(inside.shape)
    image = truth.copy()
    image[16:-16, 16:-16] = wanted
    slope = np.cov(wanted.ravel(), inside.ravel(), bias=True)[0, 1] / wanted.var()
    mse = np.mean((inside - inside.mean() - slope * (wanted - wanted.mean())) ** 2)
    scores = score_frame(image, truth)
    assert scores.snr_db == pytest.approx(10 * np.log10(inside.var() / mse))
    assert scores.psnr_db == pytest.approx(10 * np.log10(np.ptp(inside) ** 2 / mse))
    fitted = slope * (wanted - wanted.mean()) + inside.mean()
    assert scores.ssim == pytest.approx(structural_similarity(inside, fitted, data_range=np.ptp(inside)))


def test_brightness_and_contrast_do_not_change_a_score(truth):
    image = truth + np.random.default_rng(1).normal(0, 0.3, truth.shape)
    assert score_frame(-206 * image + 5000, truth) == pytest.approx(score_frame(image, truth))


def test_the_border_is_left_out(truth):
    image = truth + np.random.default_rng(2).normal(0, 0.3, truth.shape)
    spoilt = image.copy()
    spoilt[:16] = spoilt[-16:] = spoilt[:, :16] = spoilt[:, -16:] = 1e6
    assert score_frame(spoilt, truth) == score_frame(image, truth)


def test_a_blank_image_explains_nothing(truth):
    assert score_frame(np.full(truth.shape, 7.0), truth).snr_db == pytest.approx(0, abs=1e-9)


def test_a_movie_scores_the_mean_of_its_frames_in_decibels(truth):
    rng = np.random.default_rng(3)
    frames = [(truth + rng.normal(0, noise, truth.shape), truth) for noise in (0.1, 0.5, 1.0)]
    singles = [score_frame(*frame) for frame in frames]
    assert score_movie(iter(frames)) == pytest.approx(tuple(np.mean(singles, axis=0)))


@pytest.mark.parametrize(
    ("values", "truth"),
    [
        ((64, 64), (64, 60)),  # another field of view
        ((32, 64), (32, 64)),  # nothing inside the border
    ],
)
def test_shapes_that_cannot_be_scored_are_refused(values, truth):
    with pytest.raises(ValueError, match="must be of one shape"):
        score_frame(np.zeros(values), np.zeros(truth))
