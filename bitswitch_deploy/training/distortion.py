"""RFQuant's loss against information distortion (arXiv 2401.01543): layers at their lowest width keep what they say.

    loss = sum over layers at the lowest of their candidate widths of mean((y - y_max)^2)

y is what the BatchNorm of a layer puts out, y_max the same on the same mini-batch with all layers at their highest
width, without gradient. Layers whose output no switchable BatchNorm reads have no part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from bitswitch_deploy.training.layers import SwitchableBatchNorm


class NormOutputs:
    """Keeps what the BatchNorms of the quantized layers put out last, by layer. Hooks stay in `model`."""

    def __init__(self, model: nn.Module) -> None:
        self._last: dict[str, Tensor] = {}
        self._target: dict[str, Tensor] = {}
        for norm in model.modules():
            if isinstance(norm, SwitchableBatchNorm) and norm.reads_partner and norm.partner is not None:
                norm.register_forward_hook(
                    lambda _m, _i, output, layer=norm.partner: self._last.update({layer: output})
                )

    def take_as_target(self) -> None:
        """What was kept last is what the next passes are compared with."""
        self._target = {layer: output.detach() for layer, output in self._last.items()}

    def distortion(self, layers: Sequence[str]) -> Tensor | None:
        """The loss over `layers`, a scalar; None when none of them has a BatchNorm."""
        parts = [F.mse_loss(self._last[layer], self._target[layer]) for layer in layers if layer in self._target]
        return torch.stack(parts).sum() if parts else None

    def clear(self) -> None:
        """Let go of the tensors."""
        self._last, self._target = {}, {}
