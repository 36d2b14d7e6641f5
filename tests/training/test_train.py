"""A training ends in the same bytes whether or not it was interrupted, and says what it cannot do."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from n2n_pipeline import records
from n2n_pipeline.checkpoint import load_model, weights_digest
from n2n_pipeline.config import NetworkConfig, RunConfig, TrainConfig
from n2n_pipeline.errors import ExitCode, InputError, Stopped
from n2n_pipeline.sources.simulated import simulate_movie
from n2n_pipeline.store import References, Shifts, write_movie, write_shifts
from n2n_pipeline.sweep import sweep_windows
from n2n_pipeline.training import train_model

NETWORK = NetworkConfig(width=6, depth=2)
TRAIN = TrainConfig(window=8, steps=12, batch=2, patch_px=16, validate_every=4, save_every=5, lr=1e-3)
CONFIG = RunConfig(network=NETWORK, train=TRAIN, threads=1, device="cpu")


def told(**changes) -> RunConfig:
    return CONFIG.model_copy(update={"train": TRAIN.model_copy(update=changes)})


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    simulated = simulate_movie((16, 48, 56), dose=2.0, drift=(0.4, -0.3), seed=1)
    path = tmp_path_factory.mktemp("movie") / "movie.zarr"
    defects = np.zeros((48, 56), bool)
    defects[7, 9] = True
    write_movie(path, simulated.counts, simulated.info, References(None, None, defects))
    write_shifts(path, Shifts(simulated.shifts, np.ones(len(simulated.shifts))))
    return path


@pytest.fixture(scope="module")
def trained(movie, tmp_path_factory):
    """A training that was never interrupted."""
    output = tmp_path_factory.mktemp("trained") / "model"
    train_model([movie], output, CONFIG)
    return output


def read_metrics(output: Path) -> list[dict[str, str]]:
    with (output / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_training_leaves_what_it_promises(trained):
    denoiser = load_model(trained)
    assert denoiser.card.window == 8
    assert denoiser.card.steps == 12
    assert 1.0 < denoiser.card.mean < 2.5
    assert [row["step"] for row in read_metrics(trained)] == ["4", "8", "12"]
    assert "window: 8" in (trained / "config.yaml").read_text()
    assert len(list((trained / "validation").glob("*.png"))) == 3
    assert len(list((trained / "resume").glob("step-*.safetensors"))) == 2
    assert records.is_complete(trained)


def test_the_same_training_makes_the_same_bytes(trained, movie, tmp_path):
    train_model([movie], tmp_path / "again", CONFIG)
    assert weights_digest(tmp_path / "again") == weights_digest(trained)


def test_another_seed_makes_another_network(trained, movie, tmp_path):
    train_model([movie], tmp_path / "other", CONFIG.model_copy(update={"seed": 1}))
    assert weights_digest(tmp_path / "other") != weights_digest(trained)


def test_a_finished_training_is_not_done_again(trained, movie):
    before = (trained / "weights.safetensors").stat().st_mtime_ns
    train_model([movie], trained, CONFIG)
    assert (trained / "weights.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("stop_at", [1, 5, 7, 11])
def test_a_training_asked_to_stop_continues_to_the_same_bytes(trained, movie, tmp_path, monkeypatch, stop_at):
    calls = iter(range(1, 100))
    monkeypatch.setattr("n2n_pipeline.training.loop.stop_requested", lambda: next(calls) == stop_at)
    with pytest.raises(Stopped) as stopped:
        train_model([movie], tmp_path / "model", CONFIG)
    assert stopped.value.code == ExitCode.STOPPED
    train_model([movie], tmp_path / "model", CONFIG)
    assert weights_digest(tmp_path / "model") == weights_digest(trained)
    assert read_metrics(tmp_path / "model") == read_metrics(trained)


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[:200] + b"\x7f" + d[201:], lambda d: b""])
def test_a_damaged_state_is_passed_over_for_the_one_before(trained, movie, tmp_path, monkeypatch, caplog, damage):
    calls = iter(range(1, 100))
    monkeypatch.setattr("n2n_pipeline.training.loop.stop_requested", lambda: next(calls) == 11)
    with pytest.raises(Stopped):
        train_model([movie], tmp_path / "model", CONFIG)
    newest = max((tmp_path / "model" / "resume").glob("step-*.safetensors"))
    newest.write_bytes(damage(newest.read_bytes()))
    train_model([movie], tmp_path / "model", CONFIG)
    assert "damaged; going back to the state before it" in caplog.text
    assert weights_digest(tmp_path / "model") == weights_digest(trained)


@pytest.mark.parametrize(("where", "window"), [("risks", "auto"), ("training.stacks", 8)])
def test_a_training_is_stopped_while_it_still_looks_at_the_movie(movie, tmp_path, monkeypatch, where, window):
    monkeypatch.setattr(f"n2n_pipeline.{where}.stop_requested", lambda: True)
    with pytest.raises(Stopped):
        train_model([movie], tmp_path / "model", told(window=window))
    assert not (tmp_path / "model" / "weights.safetensors").exists()


def test_other_settings_are_refused_until_told_to_start_again(movie, tmp_path):
    train_model([movie], tmp_path / "model", told(steps=2))
    with pytest.raises(InputError, match=r"train\.steps 2 -> 3"):
        train_model([movie], tmp_path / "model", told(steps=3))
    train_model([movie], tmp_path / "model", told(steps=3), restart=True)
    assert load_model(tmp_path / "model").card.steps == 3


def test_a_learning_rate_that_blows_up_is_refused_and_no_weights_are_saved(movie, tmp_path):
    with pytest.raises(InputError, match=r"not finite; use a lower --set train\.lr"):
        train_model([movie], tmp_path / "model", told(lr=1e30, steps=60))
    assert not (tmp_path / "model" / "weights.safetensors").exists()


@pytest.mark.parametrize("rate", [1e2, 1e5, 1e9])
def test_a_learning_rate_that_learns_nothing_but_finite_numbers_is_refused_too(movie, tmp_path, rate):
    with pytest.raises(InputError, match=r"use a lower --set train\.lr") as error:
        train_model([movie], tmp_path / "model", told(lr=rate, steps=60))
    assert error.value.code == ExitCode.BAD_DATA
    assert not (tmp_path / "model" / "weights.safetensors").exists()


def test_steps_without_a_finite_gradient_are_skipped_and_counted(movie, tmp_path, monkeypatch):
    from n2n_pipeline.training import loop

    honest = loop.weighted_loss

    def sometimes_nan(kind, output, target, weight, progress):
        scale = float("nan") if 0.3 < progress < 0.6 else 1.0
        return scale * honest(kind, output, target, weight, progress)

    monkeypatch.setattr(loop, "weighted_loss", sometimes_nan)
    train_model([movie], tmp_path / "model", CONFIG)
    assert read_metrics(tmp_path / "model")[-1]["skipped_steps"] == "4"
    load_model(tmp_path / "model")  # refuses NaN


def test_a_run_of_bad_steps_goes_back_once_with_a_lower_learning_rate(movie, tmp_path, monkeypatch, caplog):
    from n2n_pipeline.training import loop

    honest = loop.weighted_loss

    def nan_at_full_rate(kind, output, target, weight, progress):
        trainer_rate = rates[-1]
        scale = float("nan") if trainer_rate > 2e-4 and progress > 0.2 else 1.0
        return scale * honest(kind, output, target, weight, progress)

    rates = []
    rate = loop.learning_rate
    monkeypatch.setattr(loop, "learning_rate", lambda peak, p: rates.append(rate(peak, p)) or rates[-1])
    monkeypatch.setattr(loop, "weighted_loss", nan_at_full_rate)
    train_model([movie], tmp_path / "model", told(steps=30))
    assert "going back to step" in caplog.text
    load_model(tmp_path / "model")


def test_a_frame_of_nans_does_not_reach_the_weights(tmp_path):
    simulated = simulate_movie((16, 32, 32), dose=2.0)
    frames = simulated.counts.astype(np.float32)
    frames[5] = np.nan
    write_movie(tmp_path / "movie.zarr", frames, simulated.info)
    train_model([tmp_path / "movie.zarr"], tmp_path / "model", CONFIG)
    assert read_metrics(tmp_path / "model")[-1]["skipped_steps"] == "0"


@pytest.mark.parametrize(
    ("frames", "config", "said"),
    [
        (np.full((16, 32, 32), 7, np.uint8), CONFIG, "all pixels equal 7; nothing to learn"),
        (np.zeros((1, 32, 32), np.uint8), CONFIG, "1 frame; pairs need at least 2"),
        (np.zeros((5, 32, 32), np.uint8), CONFIG, "5 frames, window needs 8"),
        (np.zeros((16, 3, 32), np.uint8), CONFIG, "32x3 image, the network needs 4"),
    ],
)
def test_a_movie_that_cannot_be_trained_on_is_refused(tmp_path, frames, config, said):
    write_movie(tmp_path / "movie.zarr", frames)
    with pytest.raises(InputError, match=said):
        train_model([tmp_path / "movie.zarr"], tmp_path / "model", config)


def test_a_patch_larger_than_the_movie_shrinks_to_a_multiple_of_the_stride(tmp_path, caplog):
    simulated = simulate_movie((8, 22, 40))
    write_movie(tmp_path / "movie.zarr", simulated.counts)
    train_model([tmp_path / "movie.zarr"], tmp_path / "model", told(patch_px=64, steps=2))
    assert "patches are 20 px, not 64" in caplog.text


def test_the_loss_falls_and_the_best_weights_are_kept(movie, tmp_path):
    train_model([movie], tmp_path / "model", told(steps=80, validate_every=20))
    losses = [float(row["validation_loss"]) for row in read_metrics(tmp_path / "model")]
    assert losses[-1] < losses[0]


def test_patience_ends_a_training_that_no_longer_moves(movie, tmp_path, caplog):
    caplog.set_level("INFO")
    train_model([movie], tmp_path / "model", told(steps=200, lr=1e-12, validate_every=2, patience=2))
    assert load_model(tmp_path / "model").card.steps < 200
    assert "no lower loss in 2 validations: ended after" in caplog.text


def test_a_time_budget_ends_the_training(movie, tmp_path):
    train_model([movie], tmp_path / "model", told(steps=1, time_minutes=0.02))
    assert load_model(tmp_path / "model").card.steps > 3


def test_a_training_starts_from_another_model(trained, movie, tmp_path):
    train_model([movie], tmp_path / "model", told(init=trained, lr=1e-12, steps=2))
    before, after = load_model(trained), load_model(tmp_path / "model")
    assert after.card.provenance["init"] == weights_digest(trained)
    for old, new in zip(before.network.parameters(), after.network.parameters(), strict=True):
        np.testing.assert_allclose(old.numpy(), new.numpy(), atol=1e-6)


def test_a_model_of_another_network_is_refused_as_a_start(trained, movie, tmp_path):
    config = told(init=trained).model_copy(update={"network": NetworkConfig(width=3, depth=1)})
    with pytest.raises(InputError, match="holds another network"):
        train_model([movie], tmp_path / "model", config)


def test_several_movies_train_one_network(movie, tmp_path):
    simulated = simulate_movie((8, 30, 30), dose=1.0, seed=5)
    write_movie(tmp_path / "other.zarr", simulated.counts)
    train_model([movie, tmp_path / "other.zarr"], tmp_path / "model", told(steps=2))
    assert len(load_model(tmp_path / "model").card.provenance["movies"]) == 2


def test_without_a_window_the_sweep_chooses_one(movie, tmp_path):
    train_model([movie], tmp_path / "model", told(window="auto", steps=2))
    assert load_model(tmp_path / "model").card.window == sweep_windows(movie)["window"]


def test_a_network_of_several_windows_is_trained_and_scored_on_different_frames(tmp_path):
    simulated = simulate_movie((16, 48, 56), dose=2.0, seed=1)
    simulated.counts[[4, 12]] = 60000  # a single one of these pixels would be seen in the mean
    write_movie(tmp_path / "movie.zarr", simulated.counts, simulated.info)
    train_model([tmp_path / "movie.zarr"], tmp_path / "model", told(window=(4, 8, 16), steps=4))
    card = load_model(tmp_path / "model").card
    assert 1.0 < card.mean < 2.5
    assert card.provenance["held_out_frames"] == {records.store_digest(tmp_path / "movie.zarr"): [4, 12]}
    assert card.windows == (4, 8, 16)
    assert card.window == sweep_windows(tmp_path / "movie.zarr", model=tmp_path / "model")["window"]


def test_scoring_a_network_on_frames_it_was_trained_on_is_warned_of(trained, movie, caplog):
    sweep_windows(movie, model=trained)
    assert "was trained on the frames it is scored on" in caplog.text


def test_tensorboard_that_is_not_installed_is_named(movie, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="TensorBoard is not installed") as error:
        train_model([movie], tmp_path / "model", told(tensorboard=True))
    assert error.value.code == ExitCode.UNAVAILABLE


@pytest.mark.gpu
def test_a_gpu_trains_what_a_cpu_does(movie, tmp_path):
    config = told(steps=60, precision="float32")
    for device in ("cpu", "cuda"):
        train_model([movie], tmp_path / device, config.model_copy(update={"device": device}))
    losses = [float(read_metrics(tmp_path / device)[-1]["validation_loss"]) for device in ("cpu", "cuda")]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


@pytest.mark.parametrize("counts_per_electron", [1, 206])
@pytest.mark.parametrize(
    ("loss", "dose", "warned"),
    [("l1", 0.1, True), ("l0", 0.1, True), ("l1", 1.0, False), ("l0", 1.0, False), ("l2", 0.1, False)],
)
def test_a_loss_that_learns_zero_from_few_electrons_is_warned_of(
    tmp_path, caplog, loss, dose, warned, counts_per_electron
):
    counts = counts_per_electron * simulate_movie((16, 32, 32), dose=dose).counts
    write_movie(tmp_path / "movie.zarr", counts.astype(np.uint16))
    train_model([tmp_path / "movie.zarr"], tmp_path / "model", told(loss=loss, steps=2))
    assert ("use l2" in caplog.text) == warned


def test_hits_by_x_rays_change_what_is_learned_unless_they_are_left_out(tmp_path):
    counts = simulate_movie((16, 48, 48), dose=1.0).counts
    struck = counts.copy()
    struck[[3, 8], [5, 30], [17, 40]] = 60_000
    means = {}
    for name, frames, outliers in (
        ("clean", counts, "keep"),
        ("kept", struck, "keep"),
        ("dropped", struck, "drop"),
    ):
        write_movie(tmp_path / f"{name}.zarr", frames)
        train_model([tmp_path / f"{name}.zarr"], tmp_path / name, told(outliers=outliers, steps=2))
        means[name] = load_model(tmp_path / name).card.mean
    assert means["dropped"] == pytest.approx(means["clean"], rel=0.01)
    assert means["kept"] > 2 * means["clean"]


def test_patches_by_contrast_train_and_are_repeated_to_the_bit(movie, tmp_path):
    for name in ("one", "two"):
        train_model([movie], tmp_path / name, told(detail=0.5, steps=3))
    assert weights_digest(tmp_path / "one") == weights_digest(tmp_path / "two")


def test_the_plan_outlives_a_change_of_threads(movie, tmp_path, monkeypatch, caplog):
    calls = iter(range(1, 100))
    monkeypatch.setattr("n2n_pipeline.training.loop.stop_requested", lambda: next(calls) == 3)
    with pytest.raises(Stopped):
        train_model([movie], tmp_path / "model", CONFIG)
    train_model([movie], tmp_path / "model", CONFIG.model_copy(update={"threads": 2}))
    assert json.loads((tmp_path / "model" / "resume" / "plan.json").read_text())["threads"] == 1
    assert "going on with 1 threads" in caplog.text
