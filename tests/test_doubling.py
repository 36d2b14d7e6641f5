import pytest
import torch
from torch.nn import functional

from n2n_pipeline.config import NetworkConfig
from n2n_pipeline.doubling import convolve_doubled
from n2n_pipeline.model import UNet
from n2n_pipeline.training.gradients import GradientThreads


@pytest.mark.parametrize(
    ("channels", "others", "height", "width"),
    [
        (3, 2, 4, 6),
        (1, 1, 1, 1),  # all of it is border
        (5, 1, 1, 9),
        (2, 4, 7, 3),
    ],
)
def test_a_doubled_convolution_is_that_of_the_larger_image_and_so_are_its_gradients(
    channels, others, height, width
):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(channels + others, 3, 3, padding=1, dtype=torch.double)
    features = torch.randn(2, channels, height, width, dtype=torch.double, requires_grad=True)
    beside = torch.randn(2, others, 2 * height, 2 * width, dtype=torch.double, requires_grad=True)
    larger = layer(torch.cat((functional.interpolate(features, scale_factor=2), beside), dim=1))
    found = convolve_doubled(layer, features, beside)
    torch.testing.assert_close(found, larger)
    above, leaves = torch.randn_like(larger), [features, beside, *layer.parameters()]
    for one, other in zip(
        torch.autograd.grad(found, leaves, above), torch.autograd.grad(larger, leaves, above), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_lie_in_memory_as_their_parameters_do(threads):
    # a fused optimiser adds numbers up in the order of memory, and would mix them up
    network = UNet(NetworkConfig(width=6, depth=2)).to(memory_format=torch.channels_last)
    parameters = list(network.parameters())
    pool = GradientThreads(threads, 2)
    _, gradients = pool.differentiate(
        lambda batch: network(batch[0]).square().mean(), [torch.randn(2, 1, 16, 16)], parameters
    )
    pool.close()
    assert [one.stride() for one in gradients] == [one.stride() for one in parameters]
