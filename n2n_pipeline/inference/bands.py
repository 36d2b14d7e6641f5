"""The network over an image of any height, in the memory of a band of rows, with nothing computed twice.

Rows enter at the top and run through all layers as far as they can. A 3 x 3 convolution holds back the two rows
that its next outputs need, a pooling layer the odd row, and what skips to a decoder waits until the deep features
of its rows arrive. The result is that of the whole image in one piece: no halo along y, wherever bands are cut.

Rows are written where the next layer reads them, so that bands cost no more time than the whole.
"""

from __future__ import annotations

from typing import TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from n2n_pipeline.doubling import add_places, small_kernels
from n2n_pipeline.geometry import round_up
from n2n_pipeline.model import LEAK, UNet, as_channels_last, fold_pixels, stride

BAND_PX = 2**18  # pixels of a band; fewer cost speed, more cost memory
LEAST_ROWS = 64


def forward(network: nn.Module, images: Tensor, band_rows: int | None = None) -> Tensor:
    """Return ``network(images)``, computed band by band where that saves memory: on a CPU, for a U-Net.

    Parameters
    ----------
    network : torch.nn.Module
        The network, its weights laid out channels last.
    images : torch.Tensor
        ``(n, c, y, x)``, sides multiples of the network's stride.
    band_rows : int, optional
        Rows that enter at once, rounded up to the stride; by default as many as make `BAND_PX` pixels.

    Returns
    -------
    torch.Tensor
        ``(n, 1, y, x)`` float32.
    """
    height, width = images.shape[2:]
    if not works_in_bands(network, images.device):
        return network(images)  # type: ignore[no-any-return]
    step = round_up(band_rows, stride(network.config)) if band_rows else rows_of_band(network, width)
    if height <= step:
        return network(images)  # type: ignore[no-any-return]
    denoised = images.new_empty((len(images), 1, height, width), dtype=torch.float32)
    for image, written in zip(images, denoised, strict=True):
        _forward_one(network, image[None], step, written[None])
    return denoised


def works_in_bands(network: nn.Module, device: torch.device) -> TypeGuard[UNet]:
    """Tell whether a network can be computed band by band, and memory be saved by it."""
    return device.type == "cpu" and isinstance(network, UNet) and network.config.kind == "unet"


def rows_of_band(network: UNet, width: int) -> int:
    """Return how many rows of so many pixels make a band: a multiple of the network's stride."""
    return round_up(max(BAND_PX // width, LEAST_ROWS), stride(network.config))


def _forward_one(network: UNet, image: Tensor, step: int, denoised: Tensor) -> None:
    bands, done = Bands(network), 0
    height = image.shape[2]
    for row in range(0, height, step):
        rows = bands.push(image[:, :, row : row + step], row + step >= height)
        denoised[:, :, done : done + rows.shape[2]] = rows
        done += rows.shape[2]


class Bands:
    """A U-Net into which an image's rows are pushed from the top; features are activated as a layer takes them.

    Parameters
    ----------
    network : UNet
        One that `works_in_bands`.
    """

    def __init__(self, network: UNet) -> None:
        self._fold = network.config.fold
        self._enter, self._bottom = _convolution_of(network.enter), _convolution_of(network.bottom)
        self._encoders = [(_convolution_of(encoder), _Pool()) for encoder in network.encoders]
        self._skips = [_Skip(LEAK if level else 1.0) for level in range(len(network.encoders))]
        self._decoders = [
            (
                _Doubled(_first_layer(decoder.get_submodule("first"))),
                _convolution_of(decoder.get_submodule("second")),
            )
            for decoder in network.decoders
        ]
        self._leave = _convolution_of(network.leave)

    def push(self, rows: Tensor, is_last: bool) -> Tensor:
        """Take ``(1, c, y, x)`` rows, a multiple of the stride, and return what denoised ones can be had by now.

        Returns
        -------
        torch.Tensor
            ``(1, 1, y, x)`` float32, next to those that were returned before; perhaps none.
        """
        rows = fold_pixels(rows, self._fold)
        self._skips[0].put(rows)
        features = self._enter.take(rows, slope=1.0).run(is_last)
        for level, (encoder, pool) in enumerate(self._encoders, start=1):
            features = pool.shrink(encoder.take(features).run(is_last))
            if level < len(self._skips):
                self._skips[level].put(features)
        features = self._bottom.take(features).run(is_last)
        for (first, second), skip in zip(self._decoders, reversed(self._skips), strict=True):
            features = second.take(first.run(features, skip, is_last)).run(is_last)
        with torch.autocast(rows.device.type, enabled=False):
            folded = self._leave.take(features.float()).run(is_last)
        return functional.pixel_shuffle(folded, self._fold)


def _first_layer(block: nn.Module) -> nn.Conv2d:
    """Return a convolution, or the one that a block begins with."""
    return cast("nn.Conv2d", next(iter(block.children()), block))


def _convolution_of(block: nn.Module) -> _Convolution:
    layer = _first_layer(block)
    return _Convolution(layer.weight, layer.bias)


class _Convolution:
    """A convolution that is handed rows as they come, between zeros all around them.

    Parameters
    ----------
    kernels : torch.Tensor
        ``(e, c, 3, 3)`` or ``(e, c, 2, 2)``.
    bias : torch.Tensor or None
        ``(e,)``.
    """

    def __init__(self, kernels: Tensor, bias: Tensor | None) -> None:
        self._kernels, self._bias = kernels, bias
        self._rows: Tensor | None = None
        self._held, self._columns = 1, 0  # the row of zeros above the image is held from the start

    def take(self, features: Tensor, slope: float = LEAK) -> _Convolution:
        """Hold the activation of new rows; with a slope of 1 it is the rows themselves."""
        _, _, rows, self._columns = features.shape
        if rows:
            _activate(features, slope, self._make_room(rows, features.dtype))
        return self

    def take_kept(self, skip: _Skip, shape: tuple[int, int], dtype: torch.dtype) -> _Convolution:
        """Hold so many rows and columns of what was kept."""
        rows, self._columns = shape
        if rows:
            skip.move_to(self._make_room(rows, dtype))
        return self

    def run(self, is_last: bool) -> Tensor:
        """Return ``(1, c, y, x)`` all outputs whose rows are held."""
        if is_last:
            self._make_room(1, torch.float32).zero_()
        size = self._kernels.shape[2]
        if self._rows is None or self._held < size:
            return torch.empty((1, len(self._kernels), 0, self._columns))
        held = self._rows[:, :, : self._held]
        features = functional.conv2d(held, self._kernels, self._bias, padding=(0, 1))
        self._held = size - 1
        self._rows[:, :, : self._held] = held[:, :, -self._held :].clone()
        return features

    def _make_room(self, rows: int, dtype: torch.dtype) -> Tensor:
        """Return where to write new rows, after those that are held."""
        needed = self._held + rows
        if self._rows is None or self._rows.shape[2] < needed:
            shape = (1, self._kernels.shape[1], needed + 1, self._columns)
            longer = as_channels_last(torch.empty(shape, dtype=dtype, memory_format=torch.channels_last))
            longer[:, :, : self._held] = 0 if self._rows is None else self._rows[:, :, : self._held]
            self._rows = longer
        room = self._rows[:, :, self._held : needed]
        self._held = needed
        return room


class _Doubled:
    """A 3 x 3 convolution of rows at twice their size, and of what was kept for the same rows; see `doubling`.

    Parameters
    ----------
    layer : torch.nn.Conv2d
        Of as many input channels as there are in both.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        self._layer = layer
        self._parts: tuple[_Convolution, _Convolution] | None = None
        self._has_begun = False

    def run(self, deeper: Tensor, skip: _Skip, is_last: bool) -> Tensor:
        """Take ``(1, c, y, x)`` rows and return ``(1, e, y, 2 x)`` all outputs that can be had by now."""
        _, channels, rows, columns = deeper.shape
        if self._parts is None:
            kernels, others = self._layer.weight[:, :channels], self._layer.weight[:, channels:]
            self._parts = (_Convolution(small_kernels(kernels), None), _Convolution(others, self._layer.bias))
        small = self._parts[0].take(deeper).run(is_last)
        wide = self._parts[1].take_kept(skip, (2 * rows, 2 * columns), deeper.dtype).run(is_last)
        if not wide.shape[2]:
            return wide
        add_places(wide, small, not self._has_begun, is_last)
        self._has_begun = True
        return wide


class _Pool:
    """The largest of 2 x 2, of rows that may come in odd numbers."""

    def __init__(self) -> None:
        self._odd: Tensor | None = None

    def shrink(self, features: Tensor) -> Tensor:
        """Return all rows that can be had; which is largest does not depend on the activation, which rises."""
        if self._odd is not None and features.shape[2]:
            features, self._odd = torch.cat((self._odd, features), dim=2), None
        even = features.shape[2] // 2 * 2
        if even < features.shape[2]:
            self._odd = features[:, :, even:].clone()
        if not even:
            return features[:, :, :0, ::2]
        return functional.max_pool2d(features[:, :, :even], 2)


class _Skip:
    """Rows that wait for the deep features of the same rows.

    Parameters
    ----------
    slope : float
        Of the activation they get when they leave; 1 for none.
    """

    def __init__(self, slope: float) -> None:
        self._slope = slope
        self._rows: Tensor | None = None

    def put(self, rows: Tensor) -> None:
        """Keep rows."""
        if rows.shape[2]:
            self._rows = rows if self._rows is None else torch.cat((self._rows, rows), dim=2)

    def move_to(self, room: Tensor) -> None:
        """Write as many of the oldest rows as there is room for."""
        if self._rows is not None:
            _activate(self._rows[:, :, : room.shape[2]], self._slope, room)
            self._rows = self._rows[:, :, room.shape[2] :]


def _activate(features: Tensor, slope: float, room: Tensor) -> None:
    """Write the leaky ReLU of features where the next layer reads them."""
    if slope == 1:
        room.copy_(features)
    else:
        torch.ops.aten.leaky_relu.out(features, slope, out=room)
