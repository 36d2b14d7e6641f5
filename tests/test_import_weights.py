"""Weights of the student project give what its own network gives, and a pickle's code never runs."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from n2n_pipeline.checkpoint import load_model
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.old_weights import import_weights


def up(channels):
    return nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1, output_padding=1)


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def act():
    return nn.LeakyReLU(0.1)


class StudentNetwork(nn.Module):
    """The student project's network, by its own names."""

    def __init__(self, w=48, channels=1):
        super().__init__()
        self.encode1 = nn.Sequential(conv(channels, w), act(), conv(w, w), act(), nn.MaxPool2d(2))
        for level in (2, 3, 4, 5):
            self.add_module(f"encode{level}", nn.Sequential(conv(w, w), act(), nn.MaxPool2d(2)))
        self.encode6 = nn.Sequential(conv(w, w), up(w))
        for level, inputs in ((1, 2 * w), (2, 3 * w), (3, 3 * w), (4, 3 * w)):
            layers = (conv(inputs, 2 * w), act(), conv(2 * w, 2 * w), act(), up(2 * w))
            self.add_module(f"decode{level}", nn.Sequential(*layers))
        middle, last = 4 * w // 3, 2 * w // 3
        self.decode5 = nn.Sequential(conv(2 * w + channels, middle), act(), conv(middle, last), act())
        self.output_layer = conv(last, channels)

    def forward(self, x):
        pools = [x]
        for level in range(1, 6):
            pools.append(getattr(self, f"encode{level}")(pools[-1]))
        x = self.encode6(pools.pop())
        for level in range(1, 6):
            x = getattr(self, f"decode{level}")(torch.cat((x, pools.pop()), dim=1))
        return self.output_layer(x)


@pytest.fixture
def student():
    torch.manual_seed(0)
    return StudentNetwork(w=6)


@pytest.mark.parametrize("width", [6, 48])
def test_imported_weights_give_the_same_output_on_an_image_from_0_to_1(tmp_path, width):
    torch.manual_seed(1)
    network = StudentNetwork(width)
    torch.save(network.state_dict(), tmp_path / "denoise_epoch_100.pth")
    import_weights(tmp_path / "denoise_epoch_100.pth", tmp_path / "model")
    denoiser = load_model(tmp_path / "model")
    image = np.random.default_rng(0).random((1, 64, 96), np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(image)[:, None])[:, 0].numpy()
    precise = type(denoiser)(denoiser.network, denoiser.card, denoiser.device)
    np.testing.assert_allclose(precise(image, np.ones_like(image)), expected, rtol=0, atol=1e-5)


def test_counts_of_8_bit_files_are_scaled_as_the_student_project_did(tmp_path, student):
    torch.save(student.state_dict(), tmp_path / "m.pth")
    import_weights(tmp_path / "m.pth", tmp_path / "model", scale=255)
    card = load_model(tmp_path / "model").card
    assert (card.mean, card.scale) == (0.0, 255.0)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return type(self.marker).touch, (self.marker,)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("hidden", [True, False], ids=["beside tensors", "alone"])
def test_a_pickle_with_a_payload_is_refused_and_never_run(tmp_path, student, legacy, hidden):
    marker = tmp_path / "marker"
    content = {**student.state_dict(), "extra": Payload(marker)} if hidden else Payload(marker)
    if legacy:
        (tmp_path / "m.pth").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / "m.pth")
    with pytest.raises(InputError) as error:
        import_weights(tmp_path / "m.pth", tmp_path / "model")
    assert error.value.code == ExitCode.REFUSED
    assert not marker.exists()
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: d.pop("decode3.2.bias"), "'decode3.2.bias' is missing"),
        (lambda d: d.update({"decode6.0.bias": torch.zeros(3)}), "'decode6.0.bias' is not one of that network"),
        (lambda d: d.update({"output_layer.bias": torch.zeros(3)}), r"'output_layer.bias' is \[3\]"),
        (lambda d: d.pop("encode1.0.weight"), "not a state dict of the student project"),
        (lambda d: d.update({"output_layer.bias": torch.full((1,), torch.nan)}), "NaN or Inf"),
    ],
)
def test_a_state_dict_that_is_not_exactly_that_networks_is_refused(tmp_path, student, edit, said):
    weights = dict(student.state_dict())
    edit(weights)
    torch.save(weights, tmp_path / "m.pth")
    with pytest.raises(InputError, match=said):
        import_weights(tmp_path / "m.pth", tmp_path / "model")


def test_weights_for_colour_images_are_refused(tmp_path):
    torch.save(StudentNetwork(6, channels=3).state_dict(), tmp_path / "m.pth")
    with pytest.raises(InputError, match="one-channel"):
        import_weights(tmp_path / "m.pth", tmp_path / "model")


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "m.pth").write_bytes(content)
    with pytest.raises(InputError):
        import_weights(tmp_path / "m.pth", tmp_path / "model")
