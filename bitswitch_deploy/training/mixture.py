"""The network with its widths in a tensor: one compiled graph computes every mixture of them.

torch.compile makes code for values of Python, so a network whose layers know their widths as such is compiled anew for
each assignment, of which twenty layers at four widths have 10^12. Here each quantizer reads its range, factor and scale
from tables at its place in a tensor, and each BatchNorm its copy. They share all parameters and statistics with the
network, and compute the same numbers. What a place does not name gets gradients of zero: `forget_unused` drops these,
or an optimizer with momentum would move scales and copies that had no part.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from bitswitch_deploy.tensors import CodeRange, code_range
from bitswitch_deploy.training.execution import Execution, compiled
from bitswitch_deploy.training.layers import (
    QUANTIZED_LAYERS,
    QuantizedLayer,
    SwitchableBatchNorm,
    copied,
    replace_modules,
)
from bitswitch_deploy.training.quantizers import (
    ActivationQuantizer,
    WeightQuantizer,
    activation_range,
    dequantize,
    nearest_codes,
    positive,
    round_codes,
)


def can_mix(model: nn.Module) -> bool:
    """Whether every switchable BatchNorm is torch's own with gain, bias and running statistics by momentum."""
    return all(
        type(module).forward is SwitchableBatchNorm.forward and all(map(_is_plain, module.copies))
        for module in model.modules()
        if isinstance(module, SwitchableBatchNorm)
    )


def _is_plain(norm: nn.Module) -> bool:
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        return False
    return bool(norm.affine and norm.track_running_stats and norm.momentum is not None)


class MixtureForward:
    """What a prepared network computes in training, at the widths that its layers have when it is called.

    Args:
        model: `can_mix`, every quantizer has its scales, in one process. execution: where and how.
    """

    def __init__(self, model: nn.Module, execution: Execution) -> None:
        self._switched = list(_switched(model))
        self._places = torch.zeros(len(self._switched), dtype=torch.int64, device=execution.device)
        self._used: set[tuple[int, int]] = set()
        paths = {id(module): path for path, module in model.named_modules()}
        mixed: dict[str, nn.Module] = {}
        for index, module in enumerate(self._switched):
            mixed |= _mixed(paths[id(module)], module, self._places, index)
        twin = copied(model, shared=chain(model.parameters(), model.buffers()))
        self.network = replace_modules(twin, lambda path, _: mixed.get(path))
        self._run = execution.in_precision(compiled(self.network) if execution.fast else self.network)

    def __call__(self, inputs: Tensor) -> Tensor:
        """The output for `inputs`, float32."""
        now = [_widths(module).index(module.bits) for module in self._switched]
        self._places.copy_(torch.tensor(now))
        self._used.update(enumerate(now))
        return self._run(inputs)

    def forget_unused(self) -> None:
        """Set the gradients to None of scales and copies that no call has used since the last time."""
        for index, module in enumerate(self._switched):
            for place in range(len(_widths(module))):
                if (index, place) not in self._used:
                    for parameter in _own_parameters(module, place):
                        parameter.grad = None
        self._used.clear()


def _switched(model: nn.Module) -> Iterator[QuantizedLayer | SwitchableBatchNorm]:
    """The modules that have a width."""
    for module in model.modules():
        if isinstance(module, (*QUANTIZED_LAYERS, SwitchableBatchNorm)):
            yield module


def _widths(module: QuantizedLayer | SwitchableBatchNorm) -> tuple[int, ...]:
    return module.widths if isinstance(module, SwitchableBatchNorm) else module.input_quantizer.widths


def _own_parameters(module: QuantizedLayer | SwitchableBatchNorm, place: int) -> list[nn.Parameter]:
    """What belongs to one width alone."""
    if isinstance(module, SwitchableBatchNorm):
        return list(module.copies[place].parameters())
    return list(module.input_quantizer.scales)[place : place + 1]


def _mixed(path: str, module: QuantizedLayer | SwitchableBatchNorm, places: Tensor, index: int) -> dict[str, nn.Module]:
    """What takes the place of a module, or of its quantizers, by path."""
    if isinstance(module, SwitchableBatchNorm):
        return {path: _MixedBatchNorm(module, places, index)}
    weights = _MixedWeights(module.weight_quantizer, _widths(module), places, index)
    found: dict[str, nn.Module] = {f"{path}.weight_quantizer": weights}
    if isinstance(module.input_quantizer, ActivationQuantizer):
        found[f"{path}.input_quantizer"] = _MixedActivations(module.input_quantizer, places, index)
    return found


class _Placed(nn.Module):
    """A module that reads tables at one number of `places`, int64 [modules]."""

    places: Tensor

    def __init__(self, places: Tensor, index: int) -> None:
        super().__init__()
        self.register_buffer("places", places, persistent=False)
        self.index = index

    def keep(self, name: str, numbers: list[float]) -> None:
        """Make `numbers`, one for each width, a table of this name."""
        self.register_buffer(name, torch.tensor(numbers, device=self.places.device), persistent=False)

    def at(self, table: Tensor) -> Tensor:
        """The row of a table [widths, ...]."""
        return table.index_select(0, self.places[self.index : self.index + 1])[0]


class _Quantizer(_Placed):
    low: Tensor
    high: Tensor

    def __init__(self, ranges: list[CodeRange], places: Tensor, index: int) -> None:
        super().__init__(places, index)
        self.keep("low", [float(each.low) for each in ranges])
        self.keep("high", [float(each.high) for each in ranges])


class _MixedActivations(_Quantizer):
    """An `ActivationQuantizer` whose width is a place."""

    def __init__(self, quantizer: ActivationQuantizer, places: Tensor, index: int) -> None:
        is_signed, container = quantizer.is_signed, quantizer.container
        ranges = [activation_range(bits, signed=is_signed, container=container) for bits in quantizer.widths]
        super().__init__(ranges, places, index)
        self.scales = quantizer.scales

    def forward(self, x: Tensor, _: int) -> Tensor:
        x = x.float()
        scale, low, high = positive(self.at(torch.stack([*self.scales]))), self.at(self.low), self.at(self.high)
        with torch.no_grad():
            codes = torch.round(x / scale).clamp_(low, high)
        return dequantize(x, scale, codes, low, high)


class _MixedWeights(_Quantizer):
    """A `WeightQuantizer` whose width is a place."""

    factor: Tensor
    growth: Tensor

    def __init__(self, quantizer: WeightQuantizer, widths: tuple[int, ...], places: Tensor, index: int) -> None:
        super().__init__([code_range(bits, signed=True) for bits in widths], places, index)
        self.keep("factor", [2.0 ** (bits - quantizer.bits) for bits in widths])
        self.keep("growth", [2.0 ** (quantizer.bits - bits) for bits in widths])
        self.quantizer = quantizer

    def forward(self, weight: Tensor, _: int) -> Tensor:
        own, low, high = self.quantizer, self.at(self.low), self.at(self.high)
        scale = own.in_shape_of(weight, positive(own.scale))
        with torch.no_grad():
            highest = nearest_codes(weight, scale, code_range(own.bits, signed=True))
            # at the highest width the factor is 1, and nothing changes
            codes = round_codes(highest * self.at(self.factor), own.rounding).clamp_(low, high)
        return dequantize(weight, scale * self.at(self.growth), codes, low, high)


class _MixedBatchNorm(_Placed):
    """A `SwitchableBatchNorm` in training whose copy is a place."""

    def __init__(self, norm: SwitchableBatchNorm, places: Tensor, index: int) -> None:
        super().__init__(places, index)
        self.copies = norm.copies

    def forward(self, x: Tensor) -> Tensor:
        copies = [*self.copies]
        mean, variance, weight, bias = (
            self.at(torch.stack([getattr(each, name) for each in copies]))
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        first = copies[0]
        result = F.batch_norm(x, mean, variance, weight, bias, True, first.momentum, first.eps)
        with torch.no_grad():
            for place, each in enumerate(copies):
                is_used = self.places[self.index] == place
                each.running_mean.copy_(torch.where(is_used, mean, each.running_mean))
                each.running_var.copy_(torch.where(is_used, variance, each.running_var))
                each.num_batches_tracked.add_(is_used)
        return result
