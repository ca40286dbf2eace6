"""BatchNorm statistics of every width taken anew at the end of training (Wu and Johnson, arXiv 2105.07576).

Running averages lag behind weights that move, and at low widths a small move changes many codes; between two updates of
one width's averages the weights are updated at all the others. Means over mini-batches of the finished network do not.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bitswitch_deploy.training.prepare import set_width


class _EveryWidth(nn.Module):
    """A prepared network that computes each input at every width."""

    def __init__(self, model: nn.Module, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.widths = model, widths

    def forward(self, x: Tensor) -> Tensor:
        """The output at the lowest width."""
        for bits in self.widths:
            set_width(self.model, bits)
            result: Tensor = self.model(x)
        return result


def settle_batchnorm(model: nn.Module, widths: tuple[int, ...], inputs: Iterable[Tensor]) -> None:
    """Replace the running statistics of a prepared network, in place, by their means over `inputs`, at each width.

    Args:
        model: left in its mode, at the highest width. inputs: mini-batches [n, ...] on the device of the model.
    """
    update_bn(inputs, _EveryWidth(model, widths))
    set_width(model, widths[0])
