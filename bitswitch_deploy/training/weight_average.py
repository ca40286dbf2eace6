"""An exponential moving average of a network: parameters and BatchNorm statistics, often better than the last step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class WeightAverage:
    """average <- decay * average + (1 - decay) * network, after each mini-batch; the first one is copied.

    What holds no floating-point numbers (counters, the signs of input codes) is taken over from the network.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._averaged = AveragedModel(model, multi_avg_fn=self._mix, use_buffers=True)

    @property
    def model(self) -> nn.Module:
        """The averaged network."""
        module: nn.Module = self._averaged.module
        return module

    def update(self, model: nn.Module) -> None:
        """Take in the network after a step."""
        self._averaged.update_parameters(model)

    @torch.no_grad()
    def _mix(self, averaged: Sequence[Tensor], current: Sequence[Tensor], _: object) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(list(averaged), list(current), 1.0 - self._decay)
        else:
            torch._foreach_copy_(list(averaged), list(current))
