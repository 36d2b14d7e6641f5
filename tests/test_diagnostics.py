"""What is wrong with a movie is named; a movie with nothing wrong raises no warning."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.diagnostics import diagnose
from n2n_pipeline.sources.simulated import Detector, simulate_movie
from n2n_pipeline.store import References, Shifts, write_movie, write_shifts


@pytest.fixture
def diagnosed(tmp_path):
    """Levels and sentences by check, for a movie in memory."""

    def run(counts, info, references=None, shifts=None, window=16):
        path = write_movie(tmp_path / "movie.zarr", counts, info, references).path
        if shifts is not None:
            write_shifts(path, Shifts(shifts, np.ones(len(shifts))))
        from n2n_pipeline.store import open_store

        return {verdict.check: verdict for verdict in diagnose(CorrectedMovie(open_store(path)), window)}

    return run


def simulated(**options):
    return simulate_movie((32, 160, 160), dose=1.0, seed=6, **options)


@pytest.mark.parametrize(
    "options", [{}, {"drift": (0.5, 0.3)}, {"detector": Detector(gain_spread=0.1, hot_pixels=5)}], ids=str
)
def test_a_movie_with_exact_references_raises_no_warning(diagnosed, options):
    movie = simulated(**options)
    references = References(gain=movie.gain_reference, defects=movie.defects)
    found = diagnosed(movie.counts, movie.info, references, movie.shifts)
    assert {verdict.verdict for verdict in found.values()} == {"pass"}


def test_detector_lag_of_15_percent_is_named(diagnosed):
    movie = simulated()
    lagged = movie.counts.astype(np.float32)
    lagged[1:] += 0.15 * movie.counts[:-1]
    halves = diagnosed(lagged, movie.info)["halves"]
    assert halves.verdict == "look"
    assert "detector lag" in halves.sentence


def test_an_uncorrected_gain_pattern_is_named(diagnosed):
    movie = simulated(detector=Detector(gain_spread=0.15))
    pattern = diagnosed(movie.counts, movie.info)["fixed_pattern"]
    assert pattern.verdict != "pass"
    assert "--gain" in pattern.sentence


def test_motion_that_was_not_undone_is_named(diagnosed):
    movie = simulated(drift=(0.6, 0.0))
    motion = diagnosed(movie.counts, movie.info)["motion"]
    assert motion.verdict == "look"
    assert "run align" in motion.sentence


@pytest.mark.parametrize(("spoil", "words"), [(5, "same as the one before"), (None, "brighter or darker")])
def test_a_frame_stored_twice_or_blank_is_named(diagnosed, spoil, words):
    movie = simulated()
    counts = movie.counts.copy()
    counts[6] = 0 if spoil is None else counts[spoil]
    assert words in diagnosed(counts, movie.info)["frames"].sentence


def test_the_dose_of_a_window_is_told_where_it_is_known(diagnosed):
    movie = simulated()
    info = dataclasses.replace(movie.info, dose_per_frame=0.5, pixel_size=2.0)
    assert "8 electrons per Å², 32 electrons per pixel" in diagnosed(movie.counts, info)["dose"].sentence
