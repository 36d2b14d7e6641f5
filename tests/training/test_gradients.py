"""Threads that share out the patches of a step find the gradient that one would."""

import pytest
import torch

from n2n_pipeline.config import NetworkConfig
from n2n_pipeline.model import UNet
from n2n_pipeline.training.gradients import GradientThreads


@pytest.fixture
def network():
    torch.manual_seed(0)
    return UNet(NetworkConfig(width=6, depth=2))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 1, 16, 16, generator=generator) for _ in range(2)]


def differentiate(network, batch, count):
    threads = GradientThreads(count, len(batch[0]))

    def loss(share):
        return (network(share[0]) - share[1]).square().mean()

    try:
        return threads.differentiate(loss, batch, list(network.parameters()))
    finally:
        threads.close()


@pytest.mark.parametrize("count", [2, 3, 8])  # more than patches, and not a divisor of them
def test_the_gradient_is_that_of_one_thread(network, batch, count):
    loss, gradients = differentiate(network, batch, 1)
    shared_loss, shared = differentiate(network, batch, count)
    assert float(shared_loss) == pytest.approx(float(loss), rel=1e-5)
    for one, many in zip(gradients, shared, strict=True):
        torch.testing.assert_close(many, one, rtol=1e-4, atol=1e-6)


def test_the_same_threads_find_the_same_bits_again(network, batch):
    first, again = (differentiate(network, batch, 2)[1] for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))


def test_other_threads_keep_their_number_of_cores(network, batch):
    before = torch.get_num_threads()
    differentiate(network, batch, 2)
    torch.set_num_threads(before)
    threads = GradientThreads(4, 2)
    threads.close()
    assert torch.get_num_threads() == 4
    torch.set_num_threads(before)


def test_an_error_in_a_thread_comes_out(network, batch):
    threads = GradientThreads(2, 5)

    def loss(share):
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        threads.differentiate(loss, batch, list(network.parameters()))
    threads.close()
