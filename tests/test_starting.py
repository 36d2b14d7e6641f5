"""The starting weights are a start: they fit any movie, see nothing where nothing is, and are named where used."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from n2n_pipeline.checkpoint import load_model, weights_digest
from n2n_pipeline.config import DenoiseConfig, NetworkConfig, RunConfig, TrainConfig
from n2n_pipeline.errors import InputError
from n2n_pipeline.evaluation.evaluate import evaluate_store
from n2n_pipeline.evaluation.start import Start, judge_start
from n2n_pipeline.inference.denoise import denoise_store
from n2n_pipeline.metrics.bootstrap import Interval
from n2n_pipeline.sources.simulated import simulate_movie
from n2n_pipeline.starting import FOLDER, NETWORKS, STARTING, describe_training, starting_weights
from n2n_pipeline.store import open_store, write_movie
from n2n_pipeline.training import train_model

MOST_BYTES = 6_000_000
FRAMES, SIDE = 16, 128
QUICK = TrainConfig(steps=1, batch=2, patch_px=32, window=4)


def expose(path, scene, dose, seed=0):
    write_movie(path, np.random.default_rng(seed).poisson(dose * scene, (FRAMES, *scene.shape)).astype(np.uint16))
    return path


def preview(store):
    """Denoise the middle frame with no training; return it and the average of all frames."""
    output = store.with_name("preview.zarr")
    t = FRAMES // 2
    denoise_store(store, STARTING, output, DenoiseConfig(frames=(t, t + 1), window=FRAMES))
    return open_store(output).read(slice(0, 1))[0], open_store(store).read(slice(None)).mean(axis=0)


def blob(y, x):
    rows, cols = np.mgrid[:SIDE, :SIDE]
    return 0.5 * np.exp(-((rows - y) ** 2 + (cols - x) ** 2) / 50)


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    path = tmp_path_factory.mktemp("starting") / "movie.zarr"
    write_movie(path, simulate_movie((8, 64, 64), dose=1.0, seed=3).counts)
    return path


@pytest.mark.parametrize("name", NETWORKS)
def test_the_package_holds_weights_of_either_network_with_a_card(name):
    model = load_model(FOLDER / f"{name}.safetensors")
    assert model.card.network == NETWORKS[name]
    assert model.card.is_start
    told = model.card.provenance
    shown = {"scenes"} if model.card.ladder else {"movies", "validated_on"}
    assert {"purpose", "data", "never_shown", "limits", "settings", "seed"} | shown <= told.keys()
    assert model.card.ladder or not told["movies"].keys() & told["validated_on"].keys()


@pytest.mark.parametrize("for_all_windows", [False, True])
def test_the_starting_weights_of_a_kind_are_small_together(for_all_windows):
    files = [file for file in Path(FOLDER).iterdir() if file.stem.endswith("-all") == for_all_windows]
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES


def test_a_training_starts_from_them_and_says_so(movie, tmp_path):
    train_model([movie], tmp_path / "model", RunConfig(device="cpu", train=QUICK.model_copy(update={"lr": 1e-12})))
    before, after = load_model(starting_weights(NETWORKS["cpu"])), load_model(tmp_path / "model")
    for old, new in zip(before.network.parameters(), after.network.parameters(), strict=True):
        np.testing.assert_allclose(old.numpy(), new.numpy(), atol=1e-6)
    assert not after.card.is_start
    assert describe_training(after.card).startswith("1 steps from the package's starting weights")


def test_a_training_on_all_windows_starts_from_weights_of_its_own(movie, tmp_path):
    config = QUICK.model_copy(update={"lr": 1e-12, "window": "all"})
    train_model([movie], tmp_path / "model", RunConfig(device="cpu", train=config))
    before, after = load_model(FOLDER / "cpu-all.safetensors"), load_model(tmp_path / "model")
    for old, new in zip(before.network.parameters(), after.network.parameters(), strict=True):
        np.testing.assert_allclose(old.numpy(), new.numpy(), atol=1e-6)
    assert after.card.ladder == before.card.ladder
    assert describe_training(after.card).startswith("1 steps from the package's starting weights")


def test_with_init_none_a_training_starts_from_random_weights(movie, tmp_path):
    config = QUICK.model_copy(update={"init": "none", "lr": 1e-12})
    train_model([movie], tmp_path / "model", RunConfig(device="cpu", train=config))
    model = load_model(tmp_path / "model")
    assert model.card.provenance["init"] is None
    assert describe_training(model.card) == "1 steps from random weights"
    np.testing.assert_allclose(model.network.leave.weight.numpy(), 0, atol=1e-6)  # begins by predicting the mean


def test_a_network_without_starting_weights_starts_from_random_ones_for_longer(movie, tmp_path):
    config = RunConfig(device="cpu", network=NetworkConfig(width=4, depth=1), train=QUICK)
    train_model([movie], tmp_path / "model", config)
    assert load_model(tmp_path / "model").card.provenance["init"] is None
    plans = {}
    for name, init in (("warm", "starting"), ("cold", "none")):
        train = QUICK.model_copy(update={"steps": None, "time_minutes": 1e-6, "init": init})
        train_model([movie], tmp_path / name, RunConfig(device="cpu", train=train))
        plans[name] = json.loads((tmp_path / name / "resume" / "plan.json").read_text())["steps"]
    assert 0 < plans["warm"] <= plans["cold"] / 2


@pytest.mark.parametrize("dose", [0.05, 0.2, 0.8, 3.0])
def test_a_blank_movie_comes_out_flat(dose, tmp_path):
    image, average = preview(expose(tmp_path / "movie.zarr", np.ones((SIDE, SIDE)), dose))
    low = [ndimage.gaussian_filter(part, 8, mode="mirror").std() for part in (image, average)]
    assert low[0] < 1.5 * low[1]
    assert image.std() < average.std()


def test_a_particle_that_was_erased_does_not_come_back(tmp_path):
    shown = 1 - blob(40, 40)
    both, _ = preview(expose(tmp_path / "both" / "movie.zarr", shown - blob(90, 88), 0.4))
    one, _ = preview(expose(tmp_path / "one" / "movie.zarr", shown, 0.4, seed=1))
    contrast = [float(np.median(image) - image[85:96, 83:94].mean()) for image in (both, one)]
    noise = (one - ndimage.gaussian_filter(one, 8))[:, 64:].std()
    assert contrast[0] > 0.08  # of 0.4 electrons: half of what the particle takes away there
    assert abs(contrast[1]) < 2 * noise
    assert abs(contrast[1]) < 0.2 * contrast[0]


def test_a_preview_is_in_the_movie_s_units_whatever_the_camera_makes_of_an_electron(tmp_path):
    scene = 1 - blob(60, 60)
    few, _ = preview(expose(tmp_path / "few" / "movie.zarr", scene, 0.5))
    counts = open_store(tmp_path / "few" / "movie.zarr").read(slice(None))
    write_movie(tmp_path / "many" / "movie.zarr", (counts * np.uint16(40) + np.uint16(300)).astype(np.uint16))
    many, _ = preview(tmp_path / "many" / "movie.zarr")
    np.testing.assert_allclose(many, 40 * few + 300, rtol=2e-3)


def test_a_preview_is_called_one_by_the_evaluation(tmp_path):
    store = expose(tmp_path / "movie.zarr", 1 - blob(60, 60), 0.5)
    denoise_store(store, STARTING, tmp_path / "denoised.zarr")
    verdict = next(v for v in evaluate_store(tmp_path / "denoised.zarr")["verdicts"] if v["check"] == "start")
    assert verdict["verdict"] == "look"
    assert "This is a preview" in verdict["sentence"]


def test_a_preview_of_the_same_movie_is_continued_not_refused(tmp_path):
    store = expose(tmp_path / "movie.zarr", np.ones((64, 64)), 0.5)
    first = denoise_store(store, STARTING, tmp_path / "denoised.zarr")
    digest = weights_digest(tmp_path / "preview_model")
    assert first > 0
    assert denoise_store(store, STARTING, tmp_path / "denoised.zarr") == 0
    assert weights_digest(tmp_path / "preview_model") == digest


def test_starting_weights_are_refused_for_what_is_no_movie(tmp_path):
    write_movie(tmp_path / "one.zarr", np.ones((1, 64, 64), np.uint8))
    with pytest.raises(InputError, match="holds one frame"):
        denoise_store(tmp_path / "one.zarr", STARTING, tmp_path / "out.zarr")
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="is no movie"):
        denoise_store(tmp_path / "images", STARTING, tmp_path / "out")
    with pytest.raises(InputError, match="no such"):
        denoise_store(tmp_path / "missing.zarr", STARTING, tmp_path / "out.zarr")


def test_what_training_made_of_the_start_is_measured(movie, tmp_path):
    train_model([movie], tmp_path / "model", RunConfig(device="cpu", train=QUICK.model_copy(update={"steps": 3})))
    denoise_store(movie, tmp_path / "model", tmp_path / "denoised.zarr")
    found = evaluate_store(tmp_path / "denoised.zarr")
    assert 0 < found["start"]["moved"] < 2
    assert found["start"]["farthest"] > 0
    assert any(verdict["check"] == "start" for verdict in found["verdicts"])


@pytest.mark.parametrize(
    ("start", "is_preview", "level", "words"),
    [
        (None, True, "look", "never trained on this movie"),
        (Start(0.2, 2.0, True, 4, 30, 50, Interval(1, 0.5, 2)), False, "pass", "lowered its error"),
        (Start(0.2, 2.0, True, 4, 30, 50, None), False, "pass", "side with the result"),
        (Start(0.2, 2.0, True, 4, 30, 50, Interval(-1, -2, -0.5)), False, "look", "larger than before"),
        (Start(0.9, 40.0, False, 4, 30, 50, Interval(1, 0.5, 2)), False, "look", "around y 30, x 50 of frame 4"),
    ],
)
def test_the_start_is_judged_in_words(start, is_preview, level, words):
    verdict = judge_start(start, is_preview)
    assert verdict.verdict == level
    assert words in verdict.sentence


def test_a_training_from_random_weights_has_no_verdict_on_its_start():
    assert judge_start(None, False) is None
