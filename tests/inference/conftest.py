import pytest
import torch

from n2n_pipeline.checkpoint import Denoiser, ModelCard
from n2n_pipeline.config import NetworkConfig
from n2n_pipeline.model import UNet


@pytest.fixture(scope="session")
def make_denoiser():
    """Make an untrained network in float32, whose output is far from constant."""

    def make(**network):
        torch.manual_seed(3)
        network_config = NetworkConfig(**{"width": 6, "depth": 2} | network)
        card = ModelCard(network=network_config, mean=10.0, scale=2.0, window=4)
        network = UNet(network_config).eval().requires_grad_(False)
        return Denoiser(network, card, torch.device("cpu"))

    return make
