"""The network with its widths in tensors: one compiled graph computes every mixture of them.

torch.compile makes code for values of Python, so a network whose layers know their widths as such is compiled anew for
each assignment, of which twenty layers at four widths have 10^12. Here each quantizer reads range and factor from
tensors, and what belongs to one width, a scale or a BatchNorm, is put in its place before the network is called: for
torch.compile these are inputs like all parameters, and code is the same for any of them.
"""

from __future__ import annotations

from itertools import chain

import torch
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


class MixtureForward:
    """What a prepared network computes, at the widths that its layers have when it is called, with its own parameters.

    Args:
        model: every quantizer has its scales; in one process. execution: where and how.
    """

    def __init__(self, model: nn.Module, execution: Execution) -> None:
        self._model = model
        self._layers: list[tuple[QuantizedLayer, _Quantizer]] = []
        self._norms: list[tuple[SwitchableBatchNorm, _CurrentNorm]] = []
        mixed: dict[str, nn.Module] = {}
        for path, module in model.named_modules():
            if isinstance(module, SwitchableBatchNorm):
                norm = mixed[path] = _CurrentNorm(module)
                self._norms.append((module, norm))
            elif isinstance(module, QUANTIZED_LAYERS):
                for name, quantizer in _quantizers(module, execution.device).items():
                    mixed[f"{path}.{name}"] = quantizer
                    self._layers.append((module, quantizer))
        twin = copied(model, shared=chain(model.parameters(), model.buffers()))
        self.network = replace_modules(twin, lambda path, _: mixed.get(path))
        self._run = execution.in_precision(compiled(self.network) if execution.fast else self.network)

    def __call__(self, inputs: Tensor) -> Tensor:
        """The output for `inputs`, float32."""
        if self.network.training != self._model.training:
            self.network.train(self._model.training)
        for layer, quantizer in self._layers:
            quantizer.take(layer.bits)
        for original, norm in self._norms:
            norm.current = original.current()
        return self._run(inputs)


def _quantizers(layer: QuantizedLayer, device: torch.device) -> dict[str, _Quantizer]:
    """What takes the place of a layer's quantizers, by name."""
    widths = layer.input_quantizer.widths
    found: dict[str, _Quantizer] = {"weight_quantizer": _Weights(layer.weight_quantizer, widths, device)}
    if isinstance(layer.input_quantizer, ActivationQuantizer):
        found["input_quantizer"] = _Activations(layer.input_quantizer, device)
    return found


class _Quantizer(nn.Module):
    """A quantizer of which the numbers of a width are tensors, scalars on the device."""

    def __init__(self, numbers: dict[int, dict[str, float]], device: torch.device) -> None:
        super().__init__()
        self._numbers = {
            bits: {name: torch.tensor(float(number), device=device) for name, number in named.items()}
            for bits, named in numbers.items()
        }
        for name, tensor in next(iter(self._numbers.values())).items():
            self.register_buffer(name, tensor, persistent=False)

    def take(self, bits: int) -> None:
        """Compute at this width from now on."""
        for name, tensor in self._numbers[bits].items():
            setattr(self, name, tensor)


class _Activations(_Quantizer):
    """An `ActivationQuantizer`."""

    low: Tensor
    high: Tensor

    def __init__(self, quantizer: ActivationQuantizer, device: torch.device) -> None:
        is_signed, container = quantizer.is_signed, quantizer.container
        super().__init__(
            {bits: _ends(activation_range(bits, signed=is_signed, container=container)) for bits in quantizer.widths},
            device,
        )
        self._scales = dict(zip(quantizer.widths, quantizer.scales, strict=True))
        self.scale = self._scales[quantizer.widths[0]]

    def take(self, bits: int) -> None:
        super().take(bits)
        self.scale = self._scales[bits]

    def forward(self, x: Tensor, _: int) -> Tensor:
        x, scale = x.float(), positive(self.scale)
        with torch.no_grad():
            codes = torch.round(x / scale).clamp_(self.low, self.high)
        return dequantize(x, scale, codes, self.low, self.high)


class _Weights(_Quantizer):
    """A `WeightQuantizer`. factor: from codes of the highest width to those of this one."""

    low: Tensor
    high: Tensor
    factor: Tensor

    def __init__(self, quantizer: WeightQuantizer, widths: tuple[int, ...], device: torch.device) -> None:
        super().__init__(
            {
                bits: {**_ends(code_range(bits, signed=True)), "factor": 2.0 ** (bits - quantizer.bits)}
                for bits in widths
            },
            device,
        )
        self.quantizer = quantizer

    def forward(self, weight: Tensor, _: int) -> Tensor:
        own = self.quantizer
        scale = own.in_shape_of(weight, positive(own.scale))
        with torch.no_grad():
            highest = nearest_codes(weight, scale, code_range(own.bits, signed=True))
            # at the highest width the factor is 1, and nothing changes
            codes = round_codes(highest * self.factor, own.rounding).clamp_(self.low, self.high)
        return dequantize(weight, scale / self.factor, codes, self.low, self.high)


def _ends(codes: CodeRange) -> dict[str, float]:
    return {"low": codes.low, "high": codes.high}


class _CurrentNorm(nn.Module):
    """The BatchNorm of the width in use of a `SwitchableBatchNorm`."""

    def __init__(self, norm: SwitchableBatchNorm) -> None:
        super().__init__()
        self.current = norm.current()

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.current(input)
        return result
