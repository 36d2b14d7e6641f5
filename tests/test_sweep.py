"""Windows chosen without a truth, held against the truth of simulated movies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr
from scipy import ndimage

from n2n_pipeline.averages import read_pairs
from n2n_pipeline.config import IngestConfig, SweepConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.drift import align_store
from n2n_pipeline.errors import InputError
from n2n_pipeline.geometry import spread_evenly
from n2n_pipeline.halving import window_frames
from n2n_pipeline.ingest import ingest_movie
from n2n_pipeline.metrics.quality import fit_to_truth
from n2n_pipeline.risks import FILTERS_PX, Risks, combine_estimates, filter_mean, measure_risks
from n2n_pipeline.sources.movie import MovieInfo
from n2n_pipeline.sources.simulated import simulate_movie
from n2n_pipeline.store import MovieStore, References, Shifts, open_store, write_movie, write_shifts
from n2n_pipeline.sweep import choose_window, default_windows, sweep_windows


def _stored_in_memory(counts):
    chunks = (4, *counts.shape[1:])
    array = zarr.create_array(zarr.storage.MemoryStore(), data=counts, chunks=chunks)
    info = MovieInfo(counts.shape, counts.dtype, "array")
    return MovieStore(Path("memory"), info, array, References(), None, {})


@pytest.fixture
def stored(tmp_path):
    def store(movie):
        return write_movie(tmp_path / "movie.zarr", movie.counts, movie.info).path

    return store


def true_errors(movie, windows, shifts=None):
    """Mean squared error of the best filtered average of each window, against the truth."""
    errors = []
    for window in windows:
        by_filter = []
        for sigma in FILTERS_PX:
            error = []
            for t in range(0, len(movie.counts), 3):
                members = window_frames(len(movie.counts), t, window)
                average = np.mean([movie.counts[f] for f in members], axis=0)
                smooth = ndimage.gaussian_filter(average, sigma, mode="mirror") if sigma else average
                error.append(np.mean((smooth - movie.truth[t]) ** 2))
            by_filter.append(np.mean(error))
        errors.append(min(by_filter))
    return np.array(errors)


def _store_sharp_edges(path, drift, dose):
    rows, cols = (np.arange(128) - moved[:, None] for moved in drift.T)
    edges = np.tanh(3 * np.sin(rows / 5))[:, :, None] * np.tanh(3 * np.sin(cols / 7))[:, None]  # 3 px wide
    return write_movie(path, np.random.default_rng(0).poisson(dose * (1 + edges / 2)).astype(np.uint16)).path


def test_sharp_edges_that_drifted_slowly_and_were_aligned_are_best_averaged_over_all_frames(tmp_path):
    """Where whole pixels of drift put them, some twenty frames lie half a pixel from the next."""
    drift = np.outer(np.arange(32), (0.06, 0.04))
    store = _store_sharp_edges(tmp_path / "movie.zarr", drift, dose=20)
    assert sweep_windows(store)["window"] < 16
    write_shifts(store, Shifts(drift, np.ones(32)))
    assert sweep_windows(store)["window"] == 32


def test_that_filters_weighed_together_sharpen_is_no_reason_for_all_windows_at_once(tmp_path):
    drift = np.outer(np.arange(32), (0.31, 0.21))
    store = _store_sharp_edges(tmp_path / "movie.zarr", drift, dose=4)
    assert sweep_windows(store)["use"] == "all"
    write_shifts(store, Shifts(drift, np.ones(32)))
    assert sweep_windows(store)["use"] == 32


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("still", {}),
        ("drifting", {"drift": (0.6, 0.3)}),
        ("locally moving", {"sway": 4.0}),
    ],
)
def test_the_chosen_window_is_nearly_as_good_as_the_one_picked_with_the_truth(stored, what, options):
    movie = simulate_movie((32, 128, 128), dose=0.5, seed=3, **options)
    result = sweep_windows(stored(movie))
    windows = default_windows(32)
    errors = true_errors(movie, windows)
    lost_db = 10 * np.log10(errors[windows.index(result["window"])] / errors.min())
    assert lost_db < 0.3
    if what == "still":
        assert result["window"] == 32
    else:
        assert result["window"] < 32


def test_what_moves_is_given_a_shorter_window_than_what_stands_still(stored, tmp_path):
    still, moving = (simulate_movie((32, 128, 192), dose=1.0, seed=3, drift=(0, v)) for v in (0.0, 1.0))
    still.counts[:, :, 128:] = moving.counts[:, :, 128:]
    result = sweep_windows(stored(still), output=tmp_path / "window.json")
    assert len(result["fields"]) == 6
    for field in result["fields"]:
        assert field["window"] == (8 if field["x"][0] == 128 else 32)
    assert (tmp_path / "window.png").read_bytes().startswith(b"\x89PNG")


def test_undoing_the_drift_allows_a_longer_window(stored):
    movie = simulate_movie((32, 128, 128), dose=0.5, drift=(0.6, 0.3), seed=3)
    path = stored(movie)
    before = sweep_windows(path)["window"]
    write_shifts(path, Shifts(movie.shifts, np.ones(32)))
    assert sweep_windows(path)["window"] > before


def test_the_risk_of_a_still_movie_is_the_variance_of_the_average():
    """Flat scene, Poisson noise: without a filter the risk of a mean of W frames is variance / W."""
    rng = np.random.default_rng(0)
    dose, n_frames = 4.0, 24
    counts = rng.poisson(dose, (n_frames, 96, 96)).astype(np.uint16)
    movie = CorrectedMovie(_stored_in_memory(counts))
    risks = measure_risks(movie, (2, 8), range(24), [filter_mean(movie, 0.0)])
    unfiltered = risks.risk[:, :, 0].mean(axis=0) + risks.signal.mean()
    np.testing.assert_allclose(unfiltered, [dose / 2, dose / 8], rtol=0.1)


def test_a_held_out_frame_is_in_no_average_that_predicts_it(stored):
    """One frame is bright; only its own prediction may be dark."""
    movie = simulate_movie((9, 32, 32), dose=1.0)
    counts = np.zeros_like(movie.counts)
    counts[4] = 1000
    store = CorrectedMovie(write_movie(stored(movie).parent / "bright.zarr", counts))
    from n2n_pipeline.risks import _growing_sums, _split_nearest

    whole = (slice(0, 32), slice(0, 32))
    for t, expected in ((4, 0.0), (3, 1000.0)):
        spans = [window_frames(9, t, window + 1) for window in (2, 4, 8)]
        for total, count in _growing_sums(store, t, spans, whole, _split_nearest(9, t)):
            assert total.sum(axis=0).max() == expected
            assert count.sum(axis=0).min() in (2, 4, 8)
            assert abs(int(count[0].min()) - int(count[1].min())) <= 2


def test_scores_are_ordered_and_the_interval_of_the_best_is_its_own():
    rng = np.random.default_rng(0)
    common = rng.normal(0, 5, (20, 1, 1))  # what a frame adds to all windows cancels
    risk = common + np.array([3.0, 1.0, 1.01])[None, :, None] + rng.normal(0, 0.02, (20, 3, 1))
    risk = np.repeat(risk, len(FILTERS_PX), axis=2)
    field = (slice(0, 64), slice(0, 64))
    result = choose_window(Risks(risk, np.zeros(20), [field], risk[..., None]), (2, 4, 8))
    assert result["window"] == 4
    assert result["fields"] == [{"y": [0, 64], "x": [0, 64], "window": 4}]
    assert result["as_good"] == [4, 8]
    for score in result["scores"]:
        assert score["low"] <= score["risk"] <= score["high"]


def test_the_result_is_written_as_json(stored, tmp_path):
    file = tmp_path / "window.json"
    result = sweep_windows(stored(simulate_movie((8, 32, 32))), SweepConfig(windows=(2, 4)), file)
    assert json.loads(file.read_text()) == result
    assert [score["window"] for score in result["scores"]] == [2, 4]


def test_all_windows_at_once_predict_better_where_one_part_moves_and_another_does_not(stored):
    still, moving = (simulate_movie((32, 96, 192), dose=1.0, seed=3, drift=(0, v)) for v in (0.0, 1.0))
    still.counts[:, :, 96:] = moving.counts[:, :, 96:]
    result = sweep_windows(stored(still))
    assert result["use"] == "all"
    assert result["all"]["high"] < min(score["risk"] for score in result["scores"])


@pytest.mark.parametrize(("better_by", "use"), [(0.02, 4), (1.0, "all"), (-1.0, 4)])
def test_all_windows_at_once_are_used_only_where_they_surely_predict_better(better_by, use):
    rng = np.random.default_rng(0)
    risk = np.array([3.0, 1.0])[None, :, None] + rng.normal(0, 0.2, (20, 2, 1))
    at_once = risk[:, 1, 0] - better_by + rng.normal(0, 0.2, 20)
    field = (slice(0, 64), slice(0, 64))
    found = choose_window(
        Risks(np.repeat(risk, len(FILTERS_PX), axis=2), np.zeros(20), [field], risk[..., None]),
        (2, 4),
        at_once=at_once,
    )
    assert (found["window"], found["use"]) == (4, use)


def test_the_risk_of_a_weighted_sum_is_that_of_the_estimate_itself():
    """One estimate, fitted to frames that it predicts: its risk by moments is the one by pixels."""
    movie = CorrectedMovie(_stored_in_memory(np.random.default_rng(0).poisson(50.0, (24, 96, 96)).astype("u2")))
    risks = measure_risks(movie, (8,), range(24), [filter_mean(movie, 0.0)])
    direct, combined = risks.risk[:, 0, 0].mean(), combine_estimates(risks).mean()
    noise = 50.0
    assert direct + risks.signal.mean() == pytest.approx(noise / 8, rel=0.1)
    assert abs(combined + risks.signal.mean()) < 0.01 * noise  # a flat scene's best estimate is its mean


def test_a_single_held_out_frame_has_no_score_of_all_windows_at_once(stored):
    result = sweep_windows(stored(simulate_movie((9, 32, 32))), SweepConfig(sample_frames=1))
    assert result["all"] is None
    assert result["use"] == result["window"]


def test_a_network_of_a_ladder_is_not_shown_the_frame_that_it_predicts(stored):
    from n2n_pipeline.risks import score_ladder

    class Mean:
        """Returns its longest window."""

        card = SimpleNamespace(ladder=(3, 5))

        def __call__(self, values, counts):
            assert values.shape == counts.shape == (2, 2, 32, 32)
            return values[:, 1]

    counts = np.zeros((9, 32, 32), np.uint16)
    counts[4] = 1000
    store = CorrectedMovie(_stored_in_memory(counts))
    assert score_ladder(store, Mean(), [4])[0] == 0  # 0² - 2 · 0 · 1000
    # One of the four frames about frame 3, in one of two halves: a guess of 250 of a frame of 0.
    np.testing.assert_allclose(score_ladder(store, Mean(), [3]), [250.0**2])
    store = CorrectedMovie(_stored_in_memory(counts[4:6]))
    # Of two frames one half sees nothing, and is filled with what is typical.
    np.testing.assert_allclose(score_ladder(store, Mean(), [1]), [((1000 + store.typical_value) / 2) ** 2])


def test_too_few_frames_are_refused(stored):
    path = stored(simulate_movie((5, 32, 32)))
    with pytest.raises(InputError, match="5 frames, window needs 8"):
        sweep_windows(path, SweepConfig(windows=(8, 16)))


def test_a_network_can_be_scored_in_place_of_a_filter(stored, tmp_path):
    import torch

    from n2n_pipeline.checkpoint import ModelCard, save_model
    from n2n_pipeline.config import NetworkConfig
    from n2n_pipeline.model import UNet

    path = stored(simulate_movie((9, 32, 32), dose=1.0))
    config = NetworkConfig(width=6, depth=1)
    network = UNet(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.leave.bias.fill_(0.0)  # predicts the card's mean everywhere
    save_model(tmp_path / "model", network, ModelCard(network=config, mean=0.0, scale=1.0, window=4))
    windows = SweepConfig(windows=(2, 4))
    result = sweep_windows(path, windows, model=tmp_path / "model")
    assert result["filter_px"] is None
    risks = [score["risk"] for score in result["scores"]]
    assert risks[0] == pytest.approx(risks[1])  # a constant estimate does not depend on the window


def filtered_snr_db(movie, truth, window, filters):
    """SNR of some frames' filtered averages against the truth, by filter."""
    inside = (slice(16, -16), slice(16, -16))
    scores = []
    for t in spread_evenly(len(truth), 12):
        pair = read_pairs(movie, range(t, t + 1), (slice(None), slice(None)), window)
        average, wanted = (pair.even[0] + pair.odd[0]) / 2, truth[t].astype(np.float64)[inside]
        smooth = (
            ndimage.gaussian_filter(average, sigma, mode="mirror") if sigma else average for sigma in filters
        )
        errors = [np.mean((wanted - fit_to_truth(image[inside], wanted)) ** 2) for image in smooth]
        scores.append(10 * np.log10(wanted.var() / np.array(errors)))
    return np.mean(scores, axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vesicles", "drifting", "apoferritin"])
def test_on_a_camera_s_twin_no_window_picked_with_the_truth_is_0_3_db_better(example_movies, tmp_path, name):
    import mrcfile

    for file in (example_movies / name).glob("*.mrc"):
        shutil.copy(file, tmp_path)
    (tmp_path / "truth.mrc").write_bytes(b"poison")  # whoever reads it fails
    (tmp_path / "meta.json").write_text("poison")
    given = {part: tmp_path / f"{part}.mrc" for part in ("dark", "gain") if (tmp_path / f"{part}.mrc").exists()}
    store = ingest_movie(tmp_path / "movie.mrc", tmp_path / "movie.zarr", IngestConfig(**given))
    align_store(store)
    result = sweep_windows(store)
    truth, movie = mrcfile.read(example_movies / name / "truth.mrc"), CorrectedMovie(open_store(store))
    best = max(filtered_snr_db(movie, truth, score["window"], FILTERS_PX).max() for score in result["scores"])
    found = filtered_snr_db(movie, truth, result["window"], [result["filter_px"]])[0]
    assert found > best - 0.3
