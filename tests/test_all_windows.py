"""A network of a ladder: what it is taught with and what it is given, and that neither shares a frame."""

import json

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import load_file, save_file

from n2n_pipeline.averages import read_ladder
from n2n_pipeline.checkpoint import METADATA_KEY, Denoiser, ModelCard, load_model, save_model, weights_digest
from n2n_pipeline.config import DenoiseConfig, NetworkConfig, RunConfig, TileConfig, TrainConfig
from n2n_pipeline.corrections import CorrectedMovie
from n2n_pipeline.errors import InputError, Stopped
from n2n_pipeline.evaluation.evaluate import evaluate_store
from n2n_pipeline.evaluation.report import write_report
from n2n_pipeline.evaluation.samples import deal_copies
from n2n_pipeline.geometry import Tiling, plan_tiles
from n2n_pipeline.inference import denoise
from n2n_pipeline.inference.border import choose_border
from n2n_pipeline.inference.denoise import denoise_store
from n2n_pipeline.inference.forward import denoise_frames
from n2n_pipeline.inference.inputs import inputs_for
from n2n_pipeline.ladder import level_frames
from n2n_pipeline.layout import round_mantissa
from n2n_pipeline.model import PAPER_NETWORK, UNet, start_from_last
from n2n_pipeline.placing import move
from n2n_pipeline.sources.simulated import simulate_movie
from n2n_pipeline.store import Shifts, open_store, write_movie, write_shifts
from n2n_pipeline.training import train_model
from n2n_pipeline.training.patches import PatchSampler, Recipe
from n2n_pipeline.training.plan import window_to_use
from n2n_pipeline.training.pool import Pool
from n2n_pipeline.training.stacks import Stack

LADDER = (3, 5, 9)
NETWORK = NetworkConfig(width=6, depth=2)
TRAIN = TrainConfig(window="all", steps=8, batch=2, patch_px=16, validate_every=4, save_every=3, lr=1e-3)
CONFIG = RunConfig(network=NETWORK, train=TRAIN, threads=1, device="cpu")
PLAIN = DenoiseConfig(augment="off", tile=TileConfig(core_px=24, halo_px="exact"))


class CodedFrames:
    """Frame t is ``2 ** t`` everywhere, so that a sum tells which frames it holds."""

    typical_value, n_frames, shape = 1.0, 20, (24, 24)

    def read_stack(self, region, group_size):
        sums = 2.0 ** np.array(region.frames, np.float64)
        stack = np.broadcast_to(sums[:, None, None], (len(sums), len(region.rows), len(region.cols)))
        return Stack(stack.astype(np.float32), np.ones(stack.shape, np.uint16))


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    monkeypatch.setattr("n2n_pipeline.checkpoint.autocast_dtype", lambda device: None)


def frames_in(average, count):
    total = round(float(average) * float(count))
    return {bit for bit in range(total.bit_length()) if total >> bit & 1}


def test_a_sample_has_every_level_on_one_side_and_the_nearest_frames_on_the_other():
    recipe = Recipe(0, (5, 9, 17), "random", 8, target=5)
    batch = PatchSampler(Pool([CodedFrames()], recipe.windows, 0, 2**30), recipe, [()]).draw_batch(3, range(200))
    middles = set()
    for values, counts, target, weight in zip(*batch, strict=True):
        levels = [frames_in(v[0, 0], c[0, 0]) for v, c in zip(values, counts, strict=True)]
        wanted = frames_in(target[0, 0], round(2.5 * float(weight[0, 0])))
        assert levels[0] <= levels[1] <= levels[2]
        assert not levels[2] & wanted
        near = {t for t in range(20) if levels[0] | wanted == set(level_frames(20, t, 5))}
        middles |= near
        assert near, "the shortest level and the target are the two sides of the same frames"
    assert middles == set(range(20))


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    simulated = simulate_movie((16, 48, 56), dose=2.0, drift=(0.4, -0.3), seed=1)
    path = tmp_path_factory.mktemp("movie") / "movie.zarr"
    write_movie(path, simulated.counts, simulated.info)
    write_shifts(path, Shifts(simulated.shifts, np.ones(len(simulated.shifts))))
    return path


@pytest.fixture(scope="module")
def trained(movie, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "model"
    train_model([movie], output, CONFIG)
    return output


@pytest.fixture
def model(tmp_path):
    """An untrained network of a ladder, whose output is far from constant."""
    torch.manual_seed(3)
    config = NETWORK.model_copy(update={"in_channels": len(LADDER)})
    card = ModelCard(
        network=config, mean=2.0, scale=1.0, window=9, ladder=LADDER, level_scales=(1.5, 1.0, 0.7), target=3
    )
    save_model(tmp_path / "model", UNet(config), card)
    return tmp_path / "model"


def test_training_leaves_a_model_that_knows_its_ladder(trained):
    card = load_model(trained).card
    assert card.ladder == (5, 9, 17, 33, 95)
    assert card.network.in_channels == len(card.level_scales) == 5
    assert card.target in card.ladder[:-1]
    assert "window: all" in (trained / "config.yaml").read_text()


def test_what_a_network_of_a_ladder_sees_are_its_longest_level_and_what_the_others_have_over_it(model):
    levels = np.random.default_rng(0).normal(2, 1, (2, 3, 8, 8)).astype(np.float32)
    images = load_model(model).prepare(levels, np.ones_like(levels)).numpy()
    np.testing.assert_allclose(images[:, 2], (levels[:, 2] - 2.0) / 0.7, rtol=1e-5)
    np.testing.assert_allclose(images[:, 0], (levels[:, 0] - levels[:, 1]) / 1.5, rtol=1e-5, atol=1e-6)


def test_an_untrained_network_of_a_ladder_begins_with_the_longest_level_alone():
    network = UNet(NetworkConfig(width=6, depth=2, fold=2, in_channels=3))
    start_from_last(network)
    images = torch.randn(1, 3, 16, 16)
    changed = images.clone()
    changed[:, :2] = torch.randn(1, 2, 16, 16)
    torch.testing.assert_close(network(images), network(changed))
    changed[:, 2] = 0
    assert not torch.allclose(network(images), network(changed))


@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_a_training_asked_to_stop_continues_to_the_same_bytes(trained, movie, tmp_path, monkeypatch, stop_at):
    calls = iter(range(1, 100))
    monkeypatch.setattr("n2n_pipeline.training.loop.stop_requested", lambda: next(calls) == stop_at)
    with pytest.raises(Stopped):
        train_model([movie], tmp_path / "model", CONFIG)
    train_model([movie], tmp_path / "model", CONFIG)
    assert weights_digest(tmp_path / "model") == weights_digest(trained)


def test_a_window_left_to_the_sweep_is_all_of_them_where_these_are_better(tmp_path):
    still, moving = (simulate_movie((32, 96, 192), dose=1.0, seed=3, drift=(0, v)) for v in (0.0, 1.0))
    still.counts[:, :, 96:] = moving.counts[:, :, 96:]
    store = write_movie(tmp_path / "movie.zarr", still.counts, still.info).path
    config = RunConfig(train=TrainConfig(steps=1, batch=1, patch_px=32), threads=1, device="cpu")
    assert load_model(train_model([store], tmp_path / "model", config)).card.ladder


def test_a_network_is_shown_all_windows_unasked_only_if_it_can_be(trained, tmp_path):
    found = {"window": 8, "use": "all"}
    one_window = save_model(tmp_path / "one", UNet(NETWORK), ModelCard(network=NETWORK, mean=0, scale=1, window=4))
    starts = {"starting": "all", "none": "all", trained: "all", one_window: 8}
    for init, expected in starts.items():
        assert window_to_use(found, RunConfig(train=TrainConfig(init=init))) == expected
    assert window_to_use(found, RunConfig(network=PAPER_NETWORK)) == "all"
    assert window_to_use(found, RunConfig(network=NETWORK)) == 8
    assert window_to_use({"window": 8, "use": 8}, RunConfig()) == 8


def test_a_target_that_is_no_level_and_a_start_of_another_kind_are_refused(movie, trained, tmp_path):
    wrong = CONFIG.model_copy(update={"train": TRAIN.model_copy(update={"target": 7})})
    with pytest.raises(InputError, match="7 is not one of 5, 9, 17, 33, 95 frames"):
        train_model([movie], tmp_path / "model", wrong)
    other = CONFIG.model_copy(
        update={"network": None, "train": TRAIN.model_copy(update={"init": trained, "window": 8})}
    )
    with pytest.raises(InputError, match="was trained on a ladder of 5, 9, 17, 33, 95 frames"):
        train_model([movie], tmp_path / "other", other)


def test_every_frame_is_the_mean_of_both_halves_through_the_network_untiled(movie, model, tmp_path):
    denoise_store(movie, model, tmp_path / "out.zarr", PLAIN, device="cpu")
    pair = read_ladder(CorrectedMovie(open_store(movie)), range(16), (slice(0, 48), slice(0, 56)), LADDER)
    denoiser = load_model(model)
    inputs = inputs_for(CorrectedMovie(open_store(movie)), denoiser.card)
    border = choose_border(denoiser, inputs)
    plan = plan_tiles((48, 56), Tiling(stride=4, core=64, halo=4, border=border))
    halves = [
        denoise_frames(Denoiser(denoiser.network, denoiser.card, denoiser.device), values, counts, plan)
        for values, counts in ((pair.even, pair.even_count), (pair.odd, pair.odd_count))
    ]
    offsets = [np.mean(inputs.list_offsets(t), axis=0) for t in range(16)]
    mean = (halves[0] + halves[1]) / 2
    expected = round_mantissa(np.stack([move(frame, by) for frame, by in zip(mean, offsets, strict=True)]))
    np.testing.assert_allclose(np.asarray(zarr.open_group(tmp_path / "out.zarr")["0"]), expected, rtol=2e-3)


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [0, 5])
def test_a_denoising_that_died_ends_in_the_same_bytes(movie, model, tmp_path, monkeypatch, after):
    denoise_store(movie, model, tmp_path / "whole" / "out.zarr", PLAIN, device="cpu")
    calls, real = iter(range(1000)), denoise.run_network

    def die(*args):
        if next(calls) == after:
            raise Killed
        return real(*args)

    monkeypatch.setattr(denoise, "run_network", die)
    with pytest.raises(Killed):
        denoise_store(movie, model, tmp_path / "died" / "out.zarr", PLAIN, device="cpu")
    denoise_store(movie, model, tmp_path / "died" / "out.zarr", PLAIN, device="cpu")
    whole, died = ((tmp_path / name / "out.zarr" / "0").rglob("*") for name in ("whole", "died"))
    assert [p.read_bytes() for p in sorted(whole) if p.is_file()] == [
        p.read_bytes() for p in sorted(died) if p.is_file()
    ]


def test_a_map_of_the_frames_averaged_is_kept_when_asked_for(movie, trained, tmp_path):
    settings = PLAIN.model_copy(update={"window_map": True, "frames": (3, 8)})
    denoise_store(movie, trained, tmp_path / "out.zarr", settings, device="cpu")
    denoise_store(movie, trained, tmp_path / "plain.zarr", PLAIN, device="cpu")
    frames = np.asarray(zarr.open_group(tmp_path / "out.zarr")["window"])
    assert frames.shape == (5, 48, 56)
    assert frames.min() >= 1
    assert frames.max() <= 16
    plain, mapped = (np.asarray(zarr.open_group(tmp_path / name)["0"]) for name in ("plain.zarr", "out.zarr"))
    np.testing.assert_array_equal(mapped, plain[3:8])


def test_a_map_of_a_single_window_is_refused(movie, tmp_path):
    torch.manual_seed(3)
    save_model(tmp_path / "model", UNet(NETWORK), ModelCard(network=NETWORK, mean=2.0, scale=1.0, window=8))
    settings = PLAIN.model_copy(update={"window_map": True})
    with pytest.raises(InputError, match="averages 8 frames everywhere"):
        denoise_store(movie, tmp_path / "model", tmp_path / "out.zarr", settings, device="cpu")


def test_the_report_shows_the_windows_that_the_network_chose(movie, trained, tmp_path):
    denoise_store(movie, trained, tmp_path / "out.zarr", PLAIN, device="cpu")
    page = write_report(tmp_path / "out.zarr", tmp_path / "report.html").read_text()
    assert "Windows it chose" in page
    assert "It saw windows of 5, 9, 17, 33, 95 frames at once" in page
    assert "all at once" in page


def test_a_single_frame_and_a_single_window_are_refused(movie, model, tmp_path):
    write_movie(tmp_path / "montage.zarr", np.ones((1, 40, 40), np.uint8))
    with pytest.raises(InputError, match="sees windows of 3, 5, 9 frames at once, this is a single frame"):
        denoise_store(tmp_path / "montage.zarr", model, tmp_path / "out.zarr", PLAIN, device="cpu")
    with pytest.raises(InputError, match="not 8 alone"):
        denoise_store(movie, model, tmp_path / "out.zarr", PLAIN.model_copy(update={"window": 8}), device="cpu")


def test_what_judges_a_half_was_shown_to_it_at_no_level(movie, trained):
    inputs = inputs_for(CorrectedMovie(open_store(movie)), load_model(trained).card)
    for t in range(16):
        halves, seen = inputs.list_pair(t), inputs.list_seen(t)
        members = sorted(halves[0] + halves[1])
        for half in (0, 1):
            assert set(halves[half]) <= set(seen[half])
            assert not set(halves[half]) & set(seen[1 - half])
            copies = deal_copies(16, members, halves[1 - half], seen[half])
            assert copies is None or not {f for copy in copies for f in copy} & set(seen[half])
        pair = inputs.read_pair(range(t, t + 1), (slice(20, 30), slice(20, 30)))
        assert float(pair.even_count.max()) == len(halves[0])


def test_the_output_can_be_judged(movie, trained, tmp_path):
    denoise_store(movie, trained, tmp_path / "out.zarr", PLAIN, device="cpu")
    result = evaluate_store(tmp_path / "out.zarr", movie=movie, model=trained, device="cpu")
    by_check = {verdict["check"]: verdict["verdict"] for verdict in result["verdicts"]}
    assert len(by_check) == 10
    assert by_check["seams"] == by_check["halves"] == "pass"
    assert np.isfinite(result["umse"])


def test_a_model_of_the_schema_before_ladders_loads(tmp_path):
    network = UNet(NETWORK)
    card = ModelCard(network=NETWORK, mean=1.0, scale=2.0, window=8)
    path = save_model(tmp_path, network, card)
    saved = json.loads(card.model_dump_json())
    saved |= {"schema_version": 1, "tensors_sha256": load_model(tmp_path).card.tensors_sha256}
    old = {
        key: value for key, value in saved.items() if key not in ("ladder", "level_scales", "target", "windows")
    }
    save_file(load_file(path), path, metadata={METADATA_KEY: json.dumps(old)})
    assert load_model(tmp_path).card.ladder == ()


@pytest.mark.parametrize(
    "changes",
    [{"ladder": (4, 8, 16)}, {"level_scales": (1.0, 1.0)}, {"target": 7}, {"ladder": (3, 5)}],
    ids=["even windows", "a scale too few", "target no level", "a level too few"],
)
def test_a_card_whose_ladder_does_not_fit_is_refused(changes):
    good = {"ladder": LADDER, "level_scales": (1.5, 1.0, 0.7), "target": 3}
    network = NETWORK.model_copy(update={"in_channels": 3})
    ModelCard(network=network, mean=0, scale=1, window=9, **good)
    with pytest.raises(ValueError, match="windows"):
        ModelCard(network=network, mean=0, scale=1, window=9, **good | changes)
