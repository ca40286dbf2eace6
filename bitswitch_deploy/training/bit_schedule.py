"""RFQuant's bit-width scheduler (arXiv 2401.01543): layers with restless weights rest from their lowest width.

How restless layer l with candidate widths B_l is, w its weights and s_b the step at b bits:

    U_l = 1/|B_l| * sum over b of frac_b / b
    frac_b: share of weights whose w / s_b lies less than 1/8 from a boundary between two codes

At the epochs of `is_event` the first int(L * share) of L layers, most restless first, lose their lowest width; all
others have all widths again. Counts and epochs are those of the authors' scripts, for a run of E epochs (they take
150). Their steps are learned for each width; here s_b = s_h * 2^(h-b), as one master has one scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bitswitch_deploy.tensors import code_range
from bitswitch_deploy.training.layers import QuantizedLayer

_REACH = 0.125  # of a step, to each side of a boundary
_FIRST, _EARLY_SHARE, _EARLY_PERIOD, _LATE_PERIOD = 5, 0.72, 2, 15


def is_event(epoch: int, epochs: int) -> bool:
    """Whether layers are chosen anew at the start of `epoch`, counted from 0."""
    period = _EARLY_PERIOD if epoch <= _EARLY_SHARE * epochs else _LATE_PERIOD
    return epoch > _FIRST and (epoch + 1) % period == 0


def resting_share(epoch: int, epochs: int) -> float:
    """Share of the layers that rest after the event of `epoch`: from 0.5 down to 0.2."""
    return 0.2 + 0.15 * (1.0 + math.cos(math.pi * ((epoch - _FIRST) // 2) / (epochs / 2)))


def near_boundaries(x: Tensor, bits: int) -> float:
    """Share of `x` = weights / step, any shape, that lies near a boundary between two codes of `bits` bits."""
    codes = code_range(bits, signed=True)
    boundary = torch.floor(x) + 0.5
    is_inner = (boundary > codes.low) & (boundary < codes.high)
    return float((is_inner & ((x - boundary).abs() < _REACH)).float().mean())


@torch.no_grad()
def restlessness(layer: QuantizedLayer, candidates: Sequence[int]) -> float:
    """U of one layer."""
    quantizer = layer.weight_quantizer
    scale = quantizer.broadcast_scale(layer.weight)
    shares = (near_boundaries(layer.weight / (scale * 2.0 ** (quantizer.bits - b)), b) / b for b in candidates)
    return math.fsum(shares) / len(candidates)


def resting_layers(
    layers: Mapping[str, QuantizedLayer], candidates: Mapping[str, Sequence[int]], *, share: float
) -> tuple[str, ...]:
    """The int(len(layers) * share) most restless layers at their present candidates; of equals the earlier ones."""
    restless = {path: restlessness(layer, candidates[path]) for path, layer in layers.items()}
    ordered = sorted(restless, key=lambda path: -restless[path])
    return tuple(ordered[: int(len(layers) * share)])
