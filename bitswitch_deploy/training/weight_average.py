"""An exponential moving average of a network: parameters and BatchNorm statistics, often better than the last step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from bitswitch_deploy.training.layers import copied, is_scale
from bitswitch_deploy.training.quantizers import ActivationQuantizer, positive


class WeightAverage:
    """average <- decay * average + (1 - decay) * network, after each mini-batch; the first one is copied.

    Of a quantization scale its size is averaged, which is what it acts by: an optimizer takes the parameter across
    zero, and numbers of both signs would cancel. A scale whose width has seen no batch in the average is copied.
    What holds no floating-point numbers (counters, the signs of input codes) is taken over from the network.

    model: the averaged network.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._is_empty = True
        self.model = copied(model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the network after a step."""
        unseen = _unseen_scales(self.model)
        averaged: list[Tensor] = []
        current: list[Tensor] = []
        for (name, average), (_, value) in zip(_tensors(self.model), _tensors(model), strict=True):
            size = positive(value) if is_scale(name) else value
            if self._is_empty or name in unseen or not average.is_floating_point():
                average.copy_(size)
            else:
                averaged.append(average)
                current.append(size)
        if averaged:
            torch._foreach_lerp_(averaged, current, 1.0 - self._decay)
        self._is_empty = False


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


def _unseen_scales(model: nn.Module) -> set[str]:
    """Names of the input scales that no training batch has set."""
    return {
        f"{path}.scales.{index}"
        for path, module in model.named_modules()
        if isinstance(module, ActivationQuantizer)
        for index, seen in enumerate(module.seen)
        if not seen
    }
