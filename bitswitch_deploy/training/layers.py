"""Layers that compute at a width: quantized convolutions and linear layers, switchable BatchNorm.

Each keeps the parameter names of the torch layer that it replaces (`weight`, `bias`), so a skeleton of the float
network names them alike. The width is state of the layer and is set for a whole network by `prepare.set_width`.

State names beside torch's own: `<layer>.weight_quantizer.scale`, `<layer>.input_quantizer.scales.<i>`, `.initialised`,
`.signed`, `<layer>.trained_as.decisions`; `<batchnorm>.copies.<i>.weight`, `.bias`, `.running_mean`, ...; <i> counts
the trained widths, highest first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bitswitch_deploy.master.spec import Container
from bitswitch_deploy.tensors import MAX_BITS, Granularity, Rounding, WidthAssignment
from bitswitch_deploy.training.quantizers import (
    ActivationQuantizer,
    FloatInput,
    WeightQuantizer,
    activation_range,
)

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerQuantization:
    """How one layer is quantized.

    name: module path. widths: trained widths, highest first. rounding: tie rule of derived weights.
    container: how far unsigned 8-bit codes reach. granularity: of the weight scale.
    signed: of the input codes; None lets the first training batch decide.
    weight_only: the input stays float. calls: how often one run of the network calls the layer.
    """

    name: str
    widths: tuple[int, ...]
    rounding: Rounding
    container: Container
    granularity: Granularity
    signed: bool | None
    weight_only: bool = False
    calls: int = 1


class TrainedAs(nn.Module):
    """What the numbers of a layer's state mean, so that another network does not take them for its own.

    decisions: int64 [2 + widths]: place of the tie rule in `Rounding`, greatest unsigned code at 8 bits, the widths. A
    state that lacks it, as of an older version, is taken for one of the same.
    """

    decisions: Tensor

    def __init__(self, settings: LayerQuantization) -> None:
        super().__init__()
        rule = list(Rounding).index(settings.rounding)
        reach = activation_range(MAX_BITS, signed=False, container=settings.container).high
        # int64: Gloo, which sends the buffers of replicas, knows no int16
        self.register_buffer("decisions", torch.tensor([rule, reach, *settings.widths], dtype=torch.int64))

    @staticmethod
    def text(decisions: Tensor) -> str:
        """The decisions in words."""
        rule, reach, *widths = decisions.tolist()
        rules = [each.value for each in Rounding]
        named = rules[rule] if 0 <= rule < len(rules) else f"rule {rule}"
        return f"widths {', '.join(map(str, widths))}, rounding {named}, unsigned 8-bit codes to {reach}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(f"{prefix}decisions", self.decisions)
        super()._load_from_state_dict(state_dict, prefix, *args)


class _QuantConv(nn.modules.conv._ConvNd):
    """Convolution on quantized input [n, in, ...] with a quantized weight [out, in/groups, ...]."""

    input_quantizer: ActivationQuantizer | FloatInput
    weight_quantizer: WeightQuantizer
    trained_as: TrainedAs
    bits: int

    def forward(self, input: Tensor) -> Tensor:
        """[n, in, ...] to [n, out, ...] at `self.bits`."""
        x = self.input_quantizer(input, self.bits)
        weight = self.weight_quantizer(self.weight, self.bits)
        return self._conv_forward(x, weight, self.bias)


class QuantConv1d(_QuantConv, nn.Conv1d):
    """Conv1d on [n, in, l]."""


class QuantConv2d(_QuantConv, nn.Conv2d):
    """Conv2d on [n, in, h, w]."""


class QuantConv3d(_QuantConv, nn.Conv3d):
    """Conv3d on [n, in, d, h, w]."""


class QuantConvTranspose2d(nn.ConvTranspose2d):
    """ConvTranspose2d on quantized input [n, in, h, w] with a quantized weight [in, out/groups, kh, kw]."""

    input_quantizer: ActivationQuantizer | FloatInput
    weight_quantizer: WeightQuantizer
    trained_as: TrainedAs
    bits: int

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """[n, in, h, w] to [n, out, h', w'] at `self.bits`."""
        x = self.input_quantizer(input, self.bits)
        weight = self.weight_quantizer(self.weight, self.bits)
        stride, kernel, dilation = self.stride, self.kernel_size, self.dilation
        padding = cast("tuple[int, ...]", self.padding)
        extra = self._output_padding(x, output_size, [*stride], [*padding], [*kernel], 2, [*dilation])
        return F.conv_transpose2d(x, weight, self.bias, stride, padding, tuple(extra), self.groups, dilation)


class QuantLinear(nn.Linear):
    """Linear on quantized input [..., in] with a quantized weight [out, in]."""

    input_quantizer: ActivationQuantizer | FloatInput
    weight_quantizer: WeightQuantizer
    trained_as: TrainedAs
    bits: int

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out] at `self.bits`."""
        x = self.input_quantizer(input, self.bits)
        return F.linear(x, self.weight_quantizer(self.weight, self.bits), self.bias)


QuantizedLayer = QuantConv1d | QuantConv2d | QuantConv3d | QuantConvTranspose2d | QuantLinear
QUANTIZED_LAYERS = (QuantConv1d, QuantConv2d, QuantConv3d, QuantConvTranspose2d, QuantLinear)

# float class -> (quantized class, axis of the output channels in its weight)
QUANTIZED_CLASS: dict[type[nn.Module], tuple[type[QuantizedLayer], int]] = {
    nn.Conv1d: (QuantConv1d, 0),
    nn.Conv2d: (QuantConv2d, 0),
    nn.Conv3d: (QuantConv3d, 0),
    nn.ConvTranspose2d: (QuantConvTranspose2d, 1),
    nn.Linear: (QuantLinear, 0),
}
_SCALE_SUFFIX = "weight_quantizer.scale"
_SCALES_INFIX = "input_quantizer.scales."
_FLOAT_CLASS = {quantized: plain for plain, (quantized, _) in QUANTIZED_CLASS.items()}


class SwitchableBatchNorm(nn.Module):
    """One BatchNorm for each trained width, all starting as copies of a float one.

    partner: path of the quantized layer that it switches with; None: it follows the default width of the network.
    previous: path of the quantized layer that the partner's input comes from; None: of none.
    reads_partner: whether it normalises what the partner puts out, rather than what it takes in.
    """

    def __init__(
        self,
        plain: nn.Module,
        widths: tuple[int, ...],
        partner: str | None,
        previous: str | None = None,
        *,
        reads_partner: bool = False,
    ) -> None:
        super().__init__()
        self.widths = widths
        self.partner = partner
        self.previous = previous
        self.reads_partner = reads_partner
        self.copies = nn.ModuleList([copied(plain) for _ in widths])
        self.bits = widths[0]

    def follow(self, assignment: WidthAssignment) -> None:
        """Use the copy of this assignment."""
        self.bits = assignment.default if self.partner is None else assignment.bits_of(self.partner)

    def current(self) -> nn.Module:
        """The BatchNorm of the width in use."""
        return self.copies[self.widths.index(self.bits)]

    def __getattr__(self, name: str) -> Any:
        """What networks read of a BatchNorm, such as `num_features`, is that of the width in use."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "copies" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.current(), name)

    def forward(self, input: Tensor) -> Tensor:
        """BatchNorm of the width in use, shape of `input`."""
        return cast(Tensor, self.current()(input))


class SwitchableBatchNorm1d(SwitchableBatchNorm):
    """Switchable nn.BatchNorm1d on [n, c] or [n, c, l]."""


class SwitchableBatchNorm2d(SwitchableBatchNorm):
    """Switchable nn.BatchNorm2d on [n, c, h, w]."""


class SwitchableBatchNorm3d(SwitchableBatchNorm):
    """Switchable nn.BatchNorm3d on [n, c, d, h, w]."""


# BatchNorm and its subclasses, such as timm's with an activation -> the switchable class
SWITCHABLE_CLASS: dict[type[nn.Module], type[SwitchableBatchNorm]] = {
    nn.BatchNorm1d: SwitchableBatchNorm1d,
    nn.BatchNorm2d: SwitchableBatchNorm2d,
    nn.BatchNorm3d: SwitchableBatchNorm3d,
    nn.SyncBatchNorm: SwitchableBatchNorm,
}


def is_scale(parameter_name: str) -> bool:
    """Whether a parameter of a prepared network is a quantization scale."""
    return parameter_name.endswith(_SCALE_SUFFIX) or _SCALES_INFIX in parameter_name


def is_batchnorm(module: nn.Module) -> bool:
    """Whether it is a BatchNorm of which every width can have a copy."""
    return isinstance(module, tuple(SWITCHABLE_CLASS))


def switchable_from(norm: nn.Module, widths: tuple[int, ...], partner: str | None, **links: Any) -> SwitchableBatchNorm:
    """The switchable BatchNorm of a float one; the arguments are those of `SwitchableBatchNorm`."""
    cls = next(switchable for plain, switchable in SWITCHABLE_CLASS.items() if isinstance(norm, plain))
    return cls(norm, widths, partner, **links)


def quantized_from(plain: nn.Module, settings: LayerQuantization) -> QuantizedLayer:
    """The quantized layer of one of `QUANTIZED_CLASS`; shares its parameters."""
    layer = _recast(plain, QUANTIZED_CLASS[type(plain)][0])
    if not isinstance(layer, QUANTIZED_LAYERS):
        raise AssertionError("QUANTIZED_CLASS maps to quantized layers")
    layer.weight_quantizer = WeightQuantizer(
        layer.weight, bits=settings.widths[0], granularity=settings.granularity, rounding=settings.rounding
    )
    layer.input_quantizer = (
        FloatInput(settings.widths)
        if settings.weight_only
        else ActivationQuantizer(
            name=settings.name,
            widths=settings.widths,
            container=settings.container,
            signed=settings.signed,
            calls=settings.calls,
        )
    )
    layer.trained_as = TrainedAs(settings)
    layer.bits = settings.widths[0]
    layer.train(plain.training)
    return layer


def replace_modules(model: nn.Module, replacement: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
    """Replace modules in place and return the (perhaps new) root.

    `replacement(path, module)` is asked once for each module, with its first path; None keeps the module and goes on
    inside it. A module that is registered under several paths is replaced under all of them.
    """
    chosen: dict[int, nn.Module] = {}

    def visit(path: str, module: nn.Module) -> nn.Module:
        if id(module) in chosen:
            return chosen[id(module)]
        new = replacement(path, module)
        chosen[id(module)] = module if new is None else new
        if new is None:
            for name, child in module._modules.items():
                if child is not None:
                    module._modules[name] = visit(f"{path}.{name}" if path else name, child)
        return chosen[id(module)]

    return visit("", model)


def float_skeleton(model: nn.Module) -> nn.Module:
    """A float copy of a prepared network: same module paths and parameter names, values of the highest width.

    Quantized layers become what they were, a switchable BatchNorm its first copy.
    """
    return replace_modules(copied(model), _plain)


def copied(model: _Module, *, shared: Iterable[Tensor] = ()) -> _Module:
    """A deep copy of a network; what it keeps of a forward pass, such as an attention map, is copied without its graph.

    torch itself refuses to copy a tensor that has one. shared: tensors that both have.
    """
    with _WithoutGraphs():
        return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


class _WithoutGraphs(TorchFunctionMode):
    """Copies of tensors that an operator gave are tensors alone, wherever a network keeps them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def _plain(_: str, module: nn.Module) -> nn.Module | None:
    if isinstance(module, SwitchableBatchNorm):
        return module.copies[0]
    if not isinstance(module, QUANTIZED_LAYERS):
        return None
    return _recast(module, _FLOAT_CLASS[type(module)])


def _recast(module: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """The same layer as another class: attributes and parameters shared, child modules left behind."""
    other = copy.copy(module)
    other._modules = {}
    other._parameters = dict(module._parameters)
    other.__class__ = cls
    return other
