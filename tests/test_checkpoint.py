"""What is saved loads to the same bits; what is damaged or hostile is refused in one line."""

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from n2n_pipeline.checkpoint import (
    METADATA_KEY,
    WEIGHTS,
    Denoiser,
    ModelCard,
    load_model,
    save_model,
    weights_digest,
)
from n2n_pipeline.config import NetworkConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.model import UNet

NETWORK = NetworkConfig(width=3, depth=2)
CARD = ModelCard(network=NETWORK, mean=2.5, scale=0.5, window=8, provenance={"movie": "abc"})


@pytest.fixture
def network():
    torch.manual_seed(0)
    return UNet(NETWORK)


@pytest.fixture
def weights(tmp_path, network):
    return save_model(tmp_path / "model", network, CARD)


class Identity(UNet):
    """Returns its first channel."""

    def forward(self, image):
        return image[:, :1]


def rewrite(path: Path, edit) -> None:
    """Replace a safetensors file's header by an edited one, as bytes."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = edit(data[8 : 8 + length])
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])


def test_a_model_loads_as_it_was_saved(weights, network):
    denoiser = load_model(weights.parent)
    assert denoiser.card.model_copy(update={"tensors_sha256": ""}) == CARD
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, denoiser.network.state_dict()[name])


def test_the_same_model_is_saved_as_the_same_bytes(tmp_path, weights, network):
    again = save_model(tmp_path / "again", network, CARD)
    assert weights_digest(again) == weights_digest(weights.parent)


def test_nothing_is_left_beside_the_weights(weights):
    assert [p.name for p in weights.parent.iterdir()] == [WEIGHTS]


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 61, 67), (1, 64, 64)])
def test_a_network_that_changes_nothing_returns_the_movie_in_its_own_units(shape):
    unchanging = Denoiser(Identity(NETWORK), CARD, torch.device("cpu"))
    values = np.random.default_rng(0).normal(2.5, 0.5, shape).astype(np.float32)
    out = unchanging(values, np.ones_like(values))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, values, rtol=1e-6)


def test_the_second_channel_tells_the_share_of_frames_that_contributed():
    card = CARD.model_copy(update={"network": NetworkConfig(width=3, depth=2, in_channels=2)})
    denoiser = Denoiser(UNet(card.network), card, torch.device("cpu"))
    counts = np.full((1, 4, 4), 4, np.float32)
    counts[0, 0, 0] = 1
    channels = denoiser.prepare(np.full((1, 4, 4), 3.0, np.float32), counts)
    assert channels.shape == (1, 2, 4, 4)
    assert torch.equal(channels[0, 0], torch.full((4, 4), 1.0))  # (3.0 - 2.5) / 0.5
    assert channels[0, 1, 0, 0] == 0.25
    assert channels[0, 1, 1, 1] == 1.0


def test_counts_that_are_one_number_for_all_pixels_are_taken_without_a_warning():
    counts = np.broadcast_to(np.float32(4), (1, 4, 4))
    values = np.full((1, 4, 4), 3.0, np.float32)
    values.flags.writeable = False
    assert Denoiser(Identity(NETWORK), CARD, torch.device("cpu"))(values, counts).shape == (1, 4, 4)


def test_an_image_smaller_than_the_stride_is_refused(weights):
    with pytest.raises(InputError, match="3x3 image: the network needs 4 pixels"):
        load_model(weights)(np.zeros((1, 3, 3), np.float32), np.ones((1, 3, 3), np.float32))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, network, value):
    with torch.no_grad():
        network.leave.weight[0, 0, 0, 0] = value
    with pytest.raises(InputError, match="NaN or Inf"):
        save_model(tmp_path / "bad", network, CARD)
    assert not (tmp_path / "bad").exists()


def test_weights_that_are_not_finite_are_not_loaded(tmp_path, network, monkeypatch):
    with torch.no_grad():
        network.leave.weight[0, 0, 0, 0] = float("nan")
    with monkeypatch.context() as unguarded:
        unguarded.setattr("n2n_pipeline.checkpoint._check_finite", lambda path, weights: None)
        path = save_model(tmp_path, network, CARD)
    with pytest.raises(InputError, match="NaN or Inf"):
        load_model(path)


class Payload:
    """Leaves a marker where it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.ckpt", "m.sav", "m.safetensors", WEIGHTS])
@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_is_refused_and_never_run(tmp_path, name, legacy):
    marker, path = tmp_path / "marker", tmp_path / name
    if legacy:
        path.write_bytes(pickle.dumps(Payload(marker)))
    else:
        torch.save(Payload(marker), path)
    with pytest.raises(
        InputError, match="pickle files are refused; convert with n2n-pipeline import-weights"
    ) as e:
        load_model(path)
    assert e.value.code == ExitCode.REFUSED
    assert not marker.exists()


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file") as error:
        load_model(tmp_path / "nowhere")
    assert error.value.code == ExitCode.NO_INPUT


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:5],  # not even a length
        lambda data: data[:100],  # header cut
        lambda data: data[:-1],  # weights cut
        lambda data: data + b"x",  # something hidden behind
        lambda data: struct.pack("<Q", 2**63) + data[8:],  # header larger than the file
        lambda data: data[:8] + b"[" * 20 + data[28:],  # no JSON
        lambda data: b"",
    ],
    ids=["cut to 5", "cut to 100", "one byte less", "one byte more", "lying length", "no JSON", "empty"],
)
def test_a_damaged_file_is_refused(weights, damage):
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(InputError):
        load_model(weights)


@pytest.mark.parametrize("place", [-1, -1000, -2500])
def test_a_flipped_bit_is_noticed(weights, place):
    data = bytearray(weights.read_bytes())
    data[place] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match="not those that were saved"):
        load_model(weights)


def test_a_key_that_stands_twice_is_refused(weights):
    def repeat(header: bytes) -> bytes:
        entry = json.dumps(json.loads(header)["leave.bias"])
        return header.rstrip()[:-1] + f', "leave.bias": {entry}}}'.encode()

    rewrite(weights, repeat)
    with pytest.raises(InputError, match="one name twice"):
        load_model(weights)


def edit_card(**changes):
    def edit(header: bytes) -> bytes:
        parsed = json.loads(header)
        card = json.loads(parsed["__metadata__"][METADATA_KEY]) | changes
        parsed["__metadata__"][METADATA_KEY] = json.dumps(card)
        return json.dumps(parsed).encode()

    return edit


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema_version": 3}, "made by schema 3, this is 2"),
        ({"network": {"width": 6, "depth": 2}}, "the network has"),
        ({"network": {"width": 3, "depth": 3}}, "is missing"),
        ({"network": {"width": 10**9, "depth": 2}}, "damaged model card"),
        ({"network": {"width": 3, "depth": 10**9}}, "damaged model card"),
        ({"scale": 0}, "damaged model card"),
        ({"mean": "NaN"}, "damaged model card"),
        ({"surprise": 1}, "damaged model card"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(weights, changes, said):
    rewrite(weights, edit_card(**changes))
    with pytest.raises(InputError, match=said):
        load_model(weights)


def test_a_file_of_another_program_is_refused(tmp_path, network):
    path = tmp_path / "other.safetensors"
    path.write_bytes(save(network.state_dict()))
    with pytest.raises(InputError, match="not how to use them"):
        load_model(path)


def test_tensors_of_another_type_are_refused_before_they_are_read(tmp_path, network):
    path = tmp_path / WEIGHTS
    path.write_bytes(save(network.half().state_dict(), {METADATA_KEY: CARD.model_dump_json()}))
    with pytest.raises(InputError, match="is F16"):
        load_model(path)
