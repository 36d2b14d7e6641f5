"""The U-Nets, and how far they see.

Tensors are ``n c y x``. Nothing here knows where pixels come from: no storage, no movie, no normalisation.
The layers are those of Table 2 of Lehtinen et al., "Noise2Noise", ICML 2018 (arXiv:1803.04189), with the
widths scaled by ``width / 48``: all convolutions 3 x 3, leaky ReLU 0.1, the last one linear, no norm layers
(a norm over a tile would make tiles disagree). With ``fold: 2`` the same network works at half the resolution,
each 2 x 2 pixels being four channels of its input and of its output: a quarter of the work for the same width.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from n2n_pipeline.config import NetworkConfig
from n2n_pipeline.doubling import convolve_doubled

LEAK = 0.1
PAPER_NETWORK = NetworkConfig()
CPU_NETWORK = NetworkConfig(width=36, depth=4, fold=2)
"""What two cores can train in minutes: at half the resolution, with the pixels folded into channels."""


class Reach(NamedTuple):
    """First and last input pixel, along one axis, that a range of output pixels depends on."""

    first: int
    last: int

    def union(self, other: Reach) -> Reach:
        """Return the smallest range that holds both."""
        return Reach(min(self.first, other.first), max(self.last, other.last))


class UNet(nn.Module):
    """The Noise2Noise U-Net; at width 48, depth 5 and one channel it has 988 609 parameters.

    Parameters
    ----------
    config : NetworkConfig
        Kind, width, depth and input channels. The sides of an input must be multiples of `stride`.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        width, depth = config.width, config.depth
        channels = config.in_channels * config.fold**2
        self.enter = _conv(channels, width)
        self.encoders = nn.ModuleList(_conv(width, width) for _ in range(depth))
        # The student project's network goes up from its lowest level without an activation there.
        self.bottom = _conv(width, width)[: 1 if config.kind == "unet-transpose" else 2]
        self.decoders = nn.ModuleList()
        below = width
        for level in range(depth, 0, -1):
            skip = channels if level == 1 else width
            middle, out = (2 * width, 2 * width) if level > 1 else (4 * width // 3, 2 * width // 3)
            self.decoders.append(_Decoder(below, skip, (middle, out), config.kind == "unet-transpose"))
            below = out
        self.leave = nn.Conv2d(below, config.fold**2, 3, padding=1)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor:
        """Denoise ``(n, c, y, x)`` into ``(n, 1, y, x)`` float32.

        The last layer runs in float32 under autocast too: bfloat16 has too few digits for an image.
        """
        image = fold_pixels(image, self.config.fold)
        skips = [image]
        features = self.enter(image)
        for encoder in self.encoders:
            features = nn.functional.max_pool2d(encoder(features), 2)
            skips.append(features)
        features = self.bottom(skips.pop())
        for decoder in self.decoders:
            features = decoder(features, skips.pop())
        with torch.autocast(features.device.type, enabled=False):
            folded = self.leave(features.to(self.leave.weight.dtype))
        return nn.functional.pixel_shuffle(folded, self.config.fold)


class _Decoder(nn.Module):
    def __init__(self, below: int, skip: int, widths: tuple[int, int], transpose: bool) -> None:
        super().__init__()
        self.grow: nn.Module = (
            nn.ConvTranspose2d(below, below, 3, stride=2, padding=1, output_padding=1)
            if transpose
            else nn.Upsample(scale_factor=2, mode="nearest")
        )
        self.first = _conv(below + skip, widths[0])
        self.second = _conv(*widths)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        if features.device.type == "cpu" and isinstance(self.grow, nn.Upsample):
            convolve, activate = self.first
            first = activate(convolve_doubled(cast("nn.Conv2d", convolve), features, skip))
        else:
            first = self.first(torch.cat((self.grow(features), skip), dim=1))
        return self.second(first)  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(LEAK, inplace=True))


def _initialise(layer: nn.Module) -> None:
    """Draw a layer's weights; not those without memory, which would only make PyTorch load its compiler."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and not layer.weight.is_meta:
        nn.init.kaiming_normal_(layer.weight, a=LEAK)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def predict_mean(network: UNet) -> None:
    """Let an untrained network begin by predicting the mean everywhere.

    Random weights predict noise of the input's size, a hundred times the variance of a faint signal; not having to
    unlearn it is worth a third of a decibel after 600 steps.
    """
    nn.init.zeros_(network.leave.weight)


def start_from_last(network: UNet) -> None:
    """Let an untrained network begin by looking at the last of its images alone, and learn what the others tell.

    Their weights begin at zero, and grow where the gradient asks for it again and again.
    """
    last = network.config.fold**2
    others = (network.config.in_channels - 1) * last
    first = cast("nn.Conv2d", network.enter[0])
    skip = cast("nn.Conv2d", cast("_Decoder", network.decoders[-1]).first[0])
    begin = skip.in_channels - others - last
    with torch.no_grad():
        first.weight[:, :others] = 0
        skip.weight[:, begin : begin + others] = 0


def fold_pixels(images: Tensor, fold: int) -> Tensor:
    """Make channels of ``fold`` by ``fold`` pixels, as `torch.nn.functional.pixel_unshuffle` does, channels last.

    They come in autocast's type where there is one, as every layer would ask for it. On a CPU the neighbours in a
    row, which stay together, are moved as one number: several times as fast.
    """
    device = images.device.type
    if torch.is_autocast_enabled(device):
        images = images.to(torch.get_autocast_dtype(device))
    joined = {4: torch.int32, 8: torch.int64}.get(fold * images.itemsize)
    if fold == 1 or joined is None or device != "cpu" or images.requires_grad:
        return as_channels_last(nn.functional.pixel_unshuffle(images, fold))
    n, channels, height, width = images.shape
    rows = images.reshape(-1).view(joined).view(n, channels, height // fold, fold, width // fold)
    rows = rows.transpose(1, 2).reshape(n, height // fold, channels * fold, width // fold)
    return rows.transpose(2, 3).contiguous().view(images.dtype).permute(0, 3, 1, 2)


def as_channels_last(images: Tensor) -> Tensor:
    """Return the same pixels laid out with the channel last in memory, also when there is only one.

    PyTorch takes one channel for either layout, and then falls back to the slow one where channels are joined.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = images.shape
    return images.as_strided(images.shape, (channels * height * width, 1, channels * width, channels))


def stride(config: NetworkConfig) -> int:
    """Return what the sides of an input, and the origins of tiles, must be multiples of, in px."""
    return config.fold << config.depth


def reach(config: NetworkConfig, first: int, last: int) -> Reach:
    """Walk the layers backwards from output pixels ``first`` to ``last`` along one axis.

    Returns
    -------
    Reach
        The input pixels (which may lie outside the image) that these outputs depend on.

    Examples
    --------
    >>> reach(NetworkConfig(), 0, 31)
    Reach(first=-128, last=159)
    """
    folded = _reach_decoder(config, 1, Reach(first // config.fold - 1, last // config.fold + 1))
    return Reach(folded.first * config.fold, (folded.last + 1) * config.fold - 1)


def receptive_field(config: NetworkConfig) -> int:
    """Return the largest number of input pixels, along one axis, that one output pixel depends on.

    Examples
    --------
    >>> receptive_field(NetworkConfig())
    288
    """
    spans = (reach(config, phase, phase) for phase in range(stride(config)))
    return max(last - first + 1 for first, last in spans)


def exact_halo(config: NetworkConfig) -> int:
    """Return the context in px that makes tiles exact, for cores on multiples of `stride`.

    Examples
    --------
    >>> exact_halo(NetworkConfig()), exact_halo(NetworkConfig(kind="unet-transpose"))
    (128, 160)
    """
    step = stride(config)
    first, last = reach(config, 0, step - 1)
    needed = max(-first, last - step + 1)
    return -(-needed // step) * step


def _reach_decoder(config: NetworkConfig, level: int, outputs: Reach) -> Reach:
    wanted = Reach(outputs.first - 2, outputs.last + 2)
    if config.kind == "unet-transpose":
        # Output 2i takes input i; output 2i + 1 takes i and i + 1 (kernel 3, stride 2, padding 1).
        below = Reach(wanted.first // 2, (wanted.last + 1) // 2)
    else:
        below = Reach(wanted.first // 2, wanted.last // 2)
    if level == config.depth:
        deeper = _reach_encoder(level, Reach(below.first - 1, below.last + 1))
    else:
        deeper = _reach_decoder(config, level + 1, below)
    return deeper.union(_reach_encoder(level - 1, wanted))


def _reach_encoder(level: int, pooled: Reach) -> Reach:
    for remaining in range(level, 0, -1):
        convs = 2 if remaining == 1 else 1
        pooled = Reach(2 * pooled.first - convs, 2 * pooled.last + 1 + convs)
    return pooled
