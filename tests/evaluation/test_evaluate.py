import json
import re
import shutil

import numpy as np
import pytest
import torch

from n2n_pipeline.checkpoint import load_model, save_model
from n2n_pipeline.config import DenoiseConfig, NetworkConfig, RunConfig, TrainConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.evaluation.evaluate import evaluate_store
from n2n_pipeline.files import to_json
from n2n_pipeline.inference.denoise import denoise_store
from n2n_pipeline.metrics.quality import score_movie
from n2n_pipeline.sources.simulated import Detector, simulate_movie
from n2n_pipeline.store import open_store, write_movie
from n2n_pipeline.training.train import train_model

SHAPE, DOSE, WINDOW = (48, 128, 128), 0.5, 24
CHECKS = {
    "output", "error", "detail", "contrast", "residual", "halves", "fixed_pattern", "camera", "seams", "motion",
}  # fmt: skip
PLAIN = DenoiseConfig(augment="off")


def train(movie, output, steps):
    config = RunConfig(
        device="cpu",
        network=NetworkConfig(width=12, depth=3),
        train=TrainConfig(steps=steps, window=WINDOW, patch_px=64, batch=4, lr=2e-3, validate_every=1000),
    )
    return train_model([movie], output, config).parent


@pytest.fixture(scope="module")
def simulated():
    return simulate_movie(SHAPE, dose=DOSE, seed=3)


@pytest.fixture(scope="module")
def run(simulated, tmp_path_factory):
    """A folder with a movie, its truth, a trained network and what it made of the movie."""
    folder = tmp_path_factory.mktemp("run")
    write_movie(folder / "movie.zarr", simulated.counts, simulated.info)
    write_movie(folder / "truth.zarr", simulated.truth)
    train(folder / "movie.zarr", folder / "model", steps=200)
    denoise_store(folder / "movie.zarr", folder / "model", folder / "denoised.zarr", PLAIN, device="cpu")
    return folder


@pytest.fixture(scope="module")
def evaluated(run):
    return evaluate_store(run / "denoised.zarr", device="cpu")


def verdict_of(result, check):
    return next(verdict for verdict in result["verdicts"] if verdict["check"] == check)


def changed_movie(run, counts, name):
    """Denoise another movie with the same network."""
    store, output = run / f"{name}.zarr", run / f"{name}-denoised.zarr"
    write_movie(store, counts)
    denoise_store(store, run / "model", output, PLAIN, device="cpu")
    return evaluate_store(output, device="cpu")


def changed_network(run, change, name):
    """Denoise the same movie with a network whose last layer was changed."""
    denoiser = load_model(run / "model")
    with torch.no_grad():
        change(denoiser.network.leave)
    save_model(run / name, denoiser.network, denoiser.card)
    output = run / f"{name}-denoised.zarr"
    denoise_store(run / "movie.zarr", run / name, output, PLAIN, device="cpu")
    return evaluate_store(output, device="cpu")


def test_a_clean_run_is_not_called_out(evaluated):
    assert {verdict["check"] for verdict in evaluated["verdicts"]} == CHECKS
    assert [v for v in evaluated["verdicts"] if v["verdict"] != "pass"] == []
    assert evaluated["verdict"] == "pass"


def test_the_result_is_json_with_the_names_that_programs_rely_on(evaluated):
    assert json.loads(to_json(evaluated)) == evaluated
    assert {"upsnr_db", "umse", "frc", "verdicts"} <= evaluated.keys()
    assert not {"snr_db", "psnr_db", "ssim", "truth"} & evaluated.keys()
    for verdict in evaluated["verdicts"]:
        assert verdict.keys() == {"check", "verdict", "sentence"}
        assert re.fullmatch(r"[A-Z].*\.", verdict["sentence"])


def test_the_estimated_error_holds_the_true_one(run, simulated, evaluated):
    """The truth is in the movie's own units here, so that no fit is needed."""
    output = open_store(run / "denoised.zarr").read(slice(None))
    frames = evaluated["sampled"]["frames"]
    true = np.mean((output[frames] - simulated.truth[frames]) ** 2)
    assert evaluated["umse_low"] < true < evaluated["umse_high"]
    assert evaluated["umse"] == pytest.approx(true, rel=0.25)  # 128² pixels are few: 3 % is shown on 512²


def test_the_correlation_with_the_signal_agrees_with_the_true_one(run, simulated, evaluated):
    frc = evaluated["frc"]
    told = np.array([value is not None for value in frc["r_denoised"]])
    assert told.sum() >= 5
    found, error = (np.array(frc[key], dtype=float)[told] for key in ("r_denoised", "r_denoised_error"))
    assert np.all(found > 0.7)
    assert np.all(error < 0.3)


def test_photon_transfer_finds_an_electron_per_count(evaluated):
    camera = evaluated["camera"]
    assert camera["gain_counts_per_electron"] == pytest.approx(1, abs=3 * camera["gain_error"])
    assert camera["gain_error"] < 0.15


def test_five_steps_of_training_fail_in_words(run):
    train(run / "movie.zarr", run / "five", steps=5)
    output = run / "five-denoised.zarr"
    denoise_store(run / "movie.zarr", run / "five", output, PLAIN, device="cpu")
    result = evaluate_store(output, device="cpu")
    assert result["verdict"] == "fail"
    error = verdict_of(result, "error")
    assert error["verdict"] == "fail"
    assert "5 steps" in error["sentence"]
    assert "Do not use" in error["sentence"]


def test_a_planted_seam_is_called_out_where_it_is(run):
    clean = open_store(run / "denoised.zarr")
    pixels = clean.read(slice(None))
    pixels[:, :, 64:] += 0.3 * pixels.std()
    write_movie(run / "seam-denoised.zarr", pixels, clean.info, provenance=clean.provenance)
    result = evaluate_store(run / "seam-denoised.zarr", device="cpu")
    assert (result["seams"][0]["axis"], result["seams"][0]["position_px"]) == ("x", 64)
    assert verdict_of(result, "seams")["verdict"] != "pass"
    assert verdict_of(result, "output")["verdict"] == "fail"  # nor is it what the network gives


def test_structure_that_leaks_into_the_residual_is_called_out(run):
    def flatten(layer):
        layer.weight *= 0.5
        layer.bias *= 0.5

    result = changed_network(run, flatten, "flat")
    assert verdict_of(result, "contrast")["verdict"] != "pass"
    assert "too flat" in verdict_of(result, "contrast")["sentence"]
    assert verdict_of(result, "residual")["verdict"] != "pass"
    assert result["residual"]["leakage_low"] > 0


def test_contrast_that_the_data_do_not_support_is_called_out(run):
    def exaggerate(layer):
        layer.weight *= 2
        layer.bias *= 2

    result = changed_network(run, exaggerate, "strong")
    assert "too strong" in verdict_of(result, "contrast")["sentence"]
    assert verdict_of(result, "error")["verdict"] == "fail"


def test_a_wrong_brightness_is_called_out(run):
    result = changed_network(run, lambda layer: layer.bias.add_(1.0), "bright")
    assert "brighter" in verdict_of(result, "output")["sentence"]


def test_a_gain_pattern_is_called_out(run, simulated):
    rng = np.random.default_rng(0)
    gain = np.maximum(1 + 0.4 * rng.standard_normal(SHAPE[1:]), 0.1)
    result = changed_movie(run, rng.poisson(simulated.truth * gain).astype(np.uint16), "pattern")
    verdict = verdict_of(result, "fixed_pattern")
    assert verdict["verdict"] != "pass"
    assert "--gain" in verdict["sentence"]


def test_a_detector_that_lags_is_called_out(run):
    lagging = simulate_movie(SHAPE, dose=DOSE, seed=3, detector=Detector(lag=0.3))
    assert verdict_of(changed_movie(run, lagging.counts, "lag"), "halves")["verdict"] != "pass"


def test_motion_within_a_window_is_called_out(run):
    drifting = simulate_movie(SHAPE, dose=DOSE, seed=3, drift=(0.4, 0.2))  # never aligned: no shifts in the store
    verdict = verdict_of(changed_movie(run, drifting.counts, "motion"), "motion")
    assert verdict["verdict"] == "look"
    assert "align" in verdict["sentence"]


def test_a_truth_adds_its_scores_and_changes_nothing_else(run, simulated, evaluated):
    result = evaluate_store(run / "denoised.zarr", truth=run / "truth.zarr", device="cpu")
    output = open_store(run / "denoised.zarr").read(slice(None))
    expected = score_movie(zip(output, simulated.truth, strict=True))
    assert (result.pop("snr_db"), result.pop("psnr_db"), result.pop("ssim")) == pytest.approx(expected)
    assert result.pop("truth") == "truth.zarr"
    assert result == evaluated


def test_a_truth_of_16_bit_floats_is_read(run, simulated):
    mrcfile = pytest.importorskip("mrcfile")
    with mrcfile.new(run / "truth.mrc") as mrc:
        mrc.set_data(simulated.truth.astype(np.float16))
        mrc.set_image_stack()
    found = evaluate_store(run / "denoised.zarr", truth=run / "truth.mrc", device="cpu")
    exact = evaluate_store(run / "denoised.zarr", truth=run / "truth.zarr", device="cpu")
    assert found["snr_db"] == pytest.approx(exact["snr_db"], abs=0.01)


@pytest.mark.parametrize("cut", [np.s_[:-1], np.s_[:, 8:-8, 8:-8]])  # other frames, another field of view
def test_a_truth_of_something_else_is_refused_in_one_line(run, simulated, tmp_path, cut):
    write_movie(tmp_path / "other.zarr", simulated.truth[cut])
    with pytest.raises(InputError, match="a truth must show the same frames and field of view") as refused:
        evaluate_store(run / "denoised.zarr", truth=tmp_path / "other.zarr")
    assert "\n" not in str(refused.value)
    assert refused.value.code == ExitCode.BAD_DATA


def test_a_lost_movie_is_asked_for(run, tmp_path):
    output = tmp_path / "denoised.zarr"
    shutil.copytree(run / "denoised.zarr", output)
    with pytest.raises(InputError, match="--movie") as asked:
        evaluate_store(output)
    assert asked.value.code == ExitCode.NO_INPUT
    result = evaluate_store(output, movie=run / "movie.zarr", model=run / "model", device="cpu")
    assert result["verdict"] == "pass"
    scores = evaluate_store(output, truth=run / "truth.zarr")
    assert scores["snr_db"] > 0
    assert scores["verdict"] == "look"


def test_a_single_frame_says_that_it_cannot_be_checked(run, simulated):
    result = changed_movie(run, simulated.counts[:1], "single")
    assert result["verdict"] == "look"
    assert "one frame" in result["verdicts"][0]["sentence"]


@pytest.mark.parametrize("frames", [2, 3, 5])  # too few for three copies, for differences, for a whole window
def test_a_very_short_movie_is_evaluated_as_far_as_it_goes(run, simulated, frames):
    result = changed_movie(run, simulated.counts[:frames], f"short{frames}")
    assert {verdict["check"] for verdict in result["verdicts"]} == CHECKS
    json.loads(to_json(result))


def test_a_part_of_a_movie_is_held_against_that_part(run):
    config = PLAIN.model_copy(update={"frames": (8, 40), "region": (0, 128, 16, 128)})
    denoise_store(run / "movie.zarr", run / "model", run / "part.zarr", config, device="cpu")
    result = evaluate_store(run / "part.zarr", device="cpu")
    assert verdict_of(result, "output")["verdict"] == "pass"
