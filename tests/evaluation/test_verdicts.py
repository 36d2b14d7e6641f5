import numpy as np
import pytest

from n2n_pipeline.diagnostics import Motion, Pattern, judge_halves, judge_motion, judge_pattern, worst
from n2n_pipeline.evaluation.measure import Agreement, Camera, Errors, Residuals, Seams
from n2n_pipeline.evaluation.verdicts import (
    judge_agreement,
    judge_camera,
    judge_contrast,
    judge_detail,
    judge_error,
    judge_residual,
    judge_seams,
)
from n2n_pipeline.metrics.artefacts import Seam
from n2n_pipeline.metrics.bootstrap import Interval
from n2n_pipeline.metrics.frc import TrueCorrelation
from n2n_pipeline.metrics.noise import FixedPattern, Independence, PhotonTransfer
from n2n_pipeline.metrics.residuals import Calibration


def around(value, width=0.1):
    return Interval(value, value - width, value + width)


def errors(output, gaussian, width=0.1):
    excess = around(output - gaussian, width)
    return Errors(around(output), around(9.0), around(gaussian), 2.0, excess, 10.0, around(20.0), 50.0)


def detail(denoised, raw=0.8, error=0.02, rings=20):
    frequency = np.arange(rings) / 64
    full = np.full(rings, 1.0)
    return TrueCorrelation(frequency, denoised * full, error * full, raw * full, raw**2 * full, 0.2 * full)


def residuals(slope=1.0, leak=0.0, left=0.0, ratio=1.0, width=0.02):
    lags = np.zeros(9)
    return Residuals(around(leak, 0.01), Calibration(around(slope, width), 0.0), left, lags, lags, ratio)


def camera(gain=1.0, gain_error=0.1):
    found = PhotonTransfer(gain, 0.1, gain_error, np.ones(4), np.ones(4))
    return Camera(found, found)


@pytest.mark.parametrize(
    ("verdict", "level", "words"),
    [
        (judge_error(errors(2.0, 4.0), 600), "pass", "at least 2.7 dB below that of a Gaussian filter of 2 px"),
        (judge_error(errors(4.0, 4.02), 600), "look", "no better than"),  # the interval holds 0
        (judge_error(errors(5.0, 4.0), 600), "look", "no better than"),  # worse, but not uselessly so
        (judge_error(errors(9.0, 4.0), 600), "fail", "600 steps"),
        (judge_error(errors(-0.1, 4.0), 600), "pass", "at least 16.1 dB"),  # too small to be measured
        (judge_error(None, 600), "look", "too few frames"),
        (judge_detail(detail(0.95), 2.0), "pass", "6.74 Å"),
        (judge_detail(detail(0.95), None), "pass", "3.37 px"),
        (judge_detail(detail(0.70), 2.0), "look", "detail is lost"),
        (judge_detail(detail(0.30), 2.0), "fail", "Do not use"),
        (judge_detail(detail(np.nan, np.nan), 2.0), "look", "share nothing"),
        (judge_contrast(residuals(1.0)), "pass", "agrees"),
        (judge_contrast(residuals(1.3, width=0.3)), "pass", "as far as noise lets tell"),
        (judge_contrast(residuals(1.3)), "look", "too flat"),
        (judge_contrast(residuals(0.7)), "look", "too strong"),
        (judge_contrast(residuals(2.0)), "fail", "too flat"),
        (judge_residual(residuals()), "pass", "looks like the camera's noise"),
        (judge_residual(residuals(leak=0.1)), "look", "structure"),
        (judge_residual(residuals(leak=-0.1)), "look", "structure"),
        (judge_residual(residuals(left=0.1)), "look", "structure"),
        (judge_halves(Independence(0.001, -0.5, 9.0)), "pass", "independent"),  # sure, but harmless
        (judge_halves(Independence(0.05, -0.5, 3.0)), "pass", "independent"),  # large, but chance
        (judge_halves(Independence(0.05, -0.45, 9.0)), "look", "correlated"),
        (judge_halves(Independence(0.4, -0.1, 90.0)), "fail", "correlated"),
        (judge_halves(None), "look", "fewer than 4 frames"),
        (judge_pattern(Pattern(FixedPattern(0.0, 0.0, 0.0), 0.0), True), "pass", "No pattern"),
        (judge_pattern(Pattern(FixedPattern(0.2, 20.0, 1.0), 0.3), True), "look", "belong to it"),
        (judge_pattern(Pattern(FixedPattern(0.2, 20.0, 1.0), 0.3), False), "look", "--dark and --gain"),
        (judge_pattern(Pattern(FixedPattern(0.7, 90.0, 9.0), 3.0), False), "fail", "--dark and --gain"),
        (judge_pattern(None, False), "look", "One frame"),
        (judge_camera(camera(), residuals()), "pass", "1 counts per electron"),
        (judge_camera(camera(), residuals(ratio=2.0)), "look", "signal was missed"),
        (judge_camera(camera(), residuals(ratio=0.5)), "look", "not independent"),
        (judge_camera(camera(gain_error=1.0), residuals(ratio=2.0)), "pass", "too little contrast"),
        (judge_seams(Seams([], 0.0)), "pass", "No seams"),
        (judge_seams(Seams([Seam("x", 64, 0.5)], 0.5)), "look", "column 64"),
        (judge_seams(Seams([Seam("y", 32, 2.0), Seam("x", 64, 0.5)], 0.5)), "fail", "row 32 and 1 more"),
        (judge_motion(Motion(0.5, 0.1, 16)), "pass", "0.5 px"),
        (judge_motion(Motion(2.0, 1.0, 16)), "pass", "2.0 px"),  # not known any better
        (judge_motion(Motion(3.0, 0.5, 16)), "look", "run align"),
        (judge_agreement(Agreement(0.001, True, 0.0)), "pass", "what this model makes"),
        (judge_agreement(Agreement(0.1, True, 0.0)), "look", "not what this model makes"),
        (judge_agreement(Agreement(0.5, True, 0.0)), "fail", "not what this model makes"),
        (judge_agreement(Agreement(0.001, True, 0.2)), "look", "brighter"),
        (judge_agreement(Agreement(0.001, True, -0.8)), "fail", "darker"),
        (judge_agreement(Agreement(np.nan, False, np.nan)), "fail", "not numbers"),
    ],
)
def test_a_verdict_says_what_was_seen(verdict, level, words):
    assert verdict.verdict == level
    assert words in verdict.sentence


def test_the_worst_verdict_counts():
    good, bad = judge_seams(Seams([], 0.0)), judge_error(errors(9.0, 4.0), 5)
    assert worst([good, bad]) == "fail"
    assert worst([good]) == "pass"
