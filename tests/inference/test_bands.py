import pytest
import torch

from n2n_pipeline.config import NetworkConfig
from n2n_pipeline.device import autocast
from n2n_pipeline.inference.bands import forward
from n2n_pipeline.model import UNet, exact_halo


def make_network(**settings):
    torch.manual_seed(0)
    network = UNet(NetworkConfig(width=6, **settings)).eval().requires_grad_(False)
    for bias in (weights for name, weights in network.named_parameters() if name.endswith("bias")):
        bias.uniform_(-1, 1)  # so that a row of zeros in the wrong place shows
    return network.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize(
    ("settings", "height", "band_rows"),
    [
        ({"depth": 3}, 64, 8),  # as little as can enter at once
        ({"depth": 3}, 72, 16),  # the last band is short
        ({"depth": 3}, 8, 8),  # one band
        ({"depth": 5}, 160, 32),  # deep levels get less than a row per band
        ({"depth": 1}, 50, 2),
        ({"depth": 3, "in_channels": 2}, 48, 16),
        ({"depth": 2, "fold": 2}, 64, 8),
        ({"depth": 2, "kind": "unet-transpose"}, 32, 4),  # not done in bands
    ],
)
def test_bands_give_what_the_whole_gives(settings, height, band_rows, precision):
    network = make_network(**settings)
    images = torch.randn(2, settings.get("in_channels", 1), height, 64)
    with torch.inference_mode(), autocast(images.device, precision):
        whole, in_bands = network(images), forward(network, images, band_rows)
    assert in_bands.dtype == torch.float32
    assert in_bands.shape == whole.shape
    assert (in_bands - whole).abs().max() <= (1e-5 if precision is None else 1e-2) * whole.std()


def test_a_band_takes_no_more_memory_in_a_taller_image(monkeypatch):
    network, at_once = make_network(depth=2), []
    real = torch.nn.functional.conv2d

    def count_rows(rows, *rest, **more):
        at_once.append(rows.shape[2])
        return real(rows, *rest, **more)

    monkeypatch.setattr(torch.nn.functional, "conv2d", count_rows)
    with torch.inference_mode():
        forward(network, torch.randn(1, 1, 400, 16), 16)
    assert max(at_once) <= 16 + 2 + exact_halo(network.config)  # the last band brings all that waited
