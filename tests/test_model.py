"""The network is the paper's, and sees as far as the layers say."""

import pytest
import torch

from n2n_pipeline.config import NetworkConfig
from n2n_pipeline.model import (
    UNet,
    as_channels_last,
    exact_halo,
    fold_pixels,
    predict_mean,
    reach,
    receptive_field,
    stride,
)

KINDS = ("unet", "unet-transpose")


def seen_pixels(config: NetworkConfig, outputs: slice, size: int) -> tuple[int, int]:
    """First and last row that a range of output rows depends on, by autograd."""
    torch.manual_seed(0)
    network = UNet(config).double()
    for layer in network.modules():
        if isinstance(layer, torch.nn.LeakyReLU):
            layer.negative_slope = 1.0  # linear, so that no gradient vanishes by chance
    image = torch.rand(1, config.in_channels, size, size, dtype=torch.float64, requires_grad=True)
    network(image)[0, 0, outputs, size // 2].sum().backward()
    rows = image.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    return int(rows.min()), int(rows.max())


def test_the_papers_network_has_its_number_of_parameters():
    assert sum(p.numel() for p in UNet(NetworkConfig()).parameters()) == 988_609


def test_the_student_projects_network_has_its_number_of_parameters():
    config = NetworkConfig(kind="unet-transpose")
    assert sum(p.numel() for p in UNet(config).parameters()) == 1_341_553


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("depth", "fold"), [(1, 1), (2, 1), (3, 1), (2, 2), (1, 4)])
def test_gradients_reach_as_far_as_was_computed_and_no_further(kind, depth, fold):
    config = NetworkConfig(kind=kind, width=3, depth=depth, fold=fold)
    step = stride(config)
    size = 16 * step
    first = 8 * step
    expected = reach(config, first, first + step - 1)
    seen = seen_pixels(config, slice(first, first + step), size)
    # Max pooling passes the gradient to one of two pixels, so by chance an end may stay unseen.
    slack = step
    assert expected.first <= seen[0] <= expected.first + slack
    assert expected.last - slack <= seen[1] <= expected.last


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fold", [1, 2])
def test_a_crop_with_the_exact_halo_gives_the_same_pixels_as_the_whole(kind, fold):
    config = NetworkConfig(kind=kind, width=3, depth=2, fold=fold)
    torch.manual_seed(0)
    network, step, halo = UNet(config), stride(config), exact_halo(config)
    image = torch.rand(1, 1, 4 * halo, 4 * halo)
    with torch.inference_mode():
        whole = network(image)
        start, stop = halo + step, 2 * halo
        tile = network(image[..., start - halo : stop + halo, :])
    torch.testing.assert_close(tile[..., halo:-halo, :], whole[..., start:stop, :], rtol=0, atol=1e-6)


def test_receptive_field_of_the_paper():
    assert receptive_field(NetworkConfig()) == 288


@pytest.mark.parametrize("channels", [1, 2])
def test_channels_last_layout_changes_no_pixel(channels):
    image = torch.rand(2, channels, 4, 6)
    relaid = as_channels_last(image)
    assert torch.equal(relaid, image)
    assert relaid.stride() == (channels * 24, 1, channels * 6, channels)


@pytest.mark.parametrize("fold", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("how", ["as they are", "cut out", "channels last"])
def test_pixels_become_channels_as_in_pixel_unshuffle(fold, channels, dtype, how):
    images = torch.randn(1, channels, 16, 24).to(dtype)
    if how == "cut out":
        images = images[..., 4:12, 8:16]
    if how == "channels last":
        images = as_channels_last(images)
    folded = fold_pixels(images, fold)
    assert torch.equal(folded, torch.nn.functional.pixel_unshuffle(images, fold))
    assert folded.stride() == as_channels_last(folded).stride()


def test_output_is_float32_under_autocast():
    network = UNet(NetworkConfig(width=3, depth=1))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(torch.rand(1, 1, 8, 8)).dtype == torch.float32


def test_an_untrained_network_can_begin_with_the_mean():
    network = UNet(NetworkConfig(width=3, depth=1, fold=2))
    image = torch.rand(1, 1, 8, 8)
    assert network(image).abs().max() > 0
    predict_mean(network)
    assert network(image).abs().max() == 0
