"""The gradient of a step, on a CPU by several threads of which each takes some of the patches.

Every thread runs the whole network on patches of its own (see `device.NetworkThreads`), and the gradients are
added up, always in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from n2n_pipeline.device import NetworkThreads

Loss = Callable[[Sequence[Tensor]], Tensor]
"""From some of a step's patches to the mean loss of their pixels."""


class GradientThreads:
    """Threads that share out the patches of each step.

    Parameters
    ----------
    count : int
        How many; one, this one, where the device is no CPU.
    patches : int
        Most patches of a step, of which a thread takes one at least.
    """

    def __init__(self, count: int, patches: int) -> None:
        self._count = max(min(count, patches), 1)
        self._threads = NetworkThreads(self._count, count)

    def differentiate(
        self, loss: Loss, batch: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the mean loss of all patches, and its gradient.

        Parameters
        ----------
        loss : callable
            Mean loss of some patches.
        batch : sequence of torch.Tensor
            Parts of a step's patches, which lie along the first axis of each.
        parameters : sequence of torch.Tensor
            What the gradient is with respect to.
        """
        if self._count == 1:
            whole = loss(batch)
            return whole.detach(), _differentiate(whole, parameters)
        n_patches = len(batch[0])

        def differentiate_share(first: int) -> tuple[Tensor, list[Tensor]]:
            share = [part[first :: self._count] for part in batch]
            value = loss(share) * (len(share[0]) / n_patches)
            return value.detach(), _differentiate(value, parameters)

        values, gradients = zip(*self._threads.map(differentiate_share, range(self._count)), strict=True)
        for others in gradients[1:]:
            for total, other in zip(gradients[0], others, strict=True):
                total.add_(other)
        return torch.stack(values).sum(), gradients[0]

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()


def _differentiate(value: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return gradients laid out in memory as their parameters are: a fused optimiser takes that for granted."""
    gradients = torch.autograd.grad(value, parameters)
    return [
        gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)
        for gradient, parameter in zip(gradients, parameters, strict=True)
    ]
