"""From any float nn.Module to a network that is trained jointly at several widths.

What happens to each layer is decided first, as data (`LayerDecision`), then carried out. The rules:

* Conv1d, Conv2d, Conv3d, ConvTranspose2d and Linear are quantized; BatchNorm, with its subclasses, gets one copy per
  width, unless parts of it hold parameters or buffers of their own.
* The first and the last of these layers in execution order, their subclasses among them, are pinned to float, and every
  layer that is named in `pin`.
* A layer stays float, and the report says why, when it is a subclass of a layer to quantize, when it shares parameters
  with another module, when the example input never calls it, or when its parameters are also read by something else
  (nn.MultiheadAttention reads those of its `out_proj`): what quantizes its weight is its own call.
* A layer may be called several times; it then has one input scale per width for all its calls, and one sign: where the
  first of them decides that there is none and a later one has negative numbers, the first training batch is refused.
* What DataParallel, DistributedDataParallel and torch.compile put around a network or a part of it is taken off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.master.spec import Container
from bitswitch_deploy.tensors import MAX_BITS, MIN_BITS, PER_TENSOR, Granularity, Rounding, WidthAssignment
from bitswitch_deploy.training.capture import capture_skeleton, check_layers
from bitswitch_deploy.training.checkpoint import first_names
from bitswitch_deploy.training.layers import (
    QUANTIZED_CLASS,
    QUANTIZED_LAYERS,
    LayerQuantization,
    SwitchableBatchNorm,
    copied,
    float_skeleton,
    is_batchnorm,
    quantized_from,
    replace_modules,
    switchable_from,
)
from bitswitch_deploy.training.tracing import Trace, trace_calls

Decision = Literal["quantized", "pinned", "float", "switchable"]
ScaleOf = Literal["per_channel", "per_tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """What the trained network is to be.

    widths: trained widths, highest first. rounding: tie rule of derived weights.
    activation_container: unsigned 8-bit codes reach 127 (`int8`, exact on TensorRT) or 255 (`uint8`).
    granularity: one weight scale per output channel or per tensor.
    pin_ends: keep the first and the last layer in float. pin: more layers to keep in float, by name or by pattern, as
        `blocks.0.*`.
    signed: (layer, bool) pairs where the first batch shall not decide the sign of the input codes.
    weight_only: layers, named likewise, whose input stays float, such as the linear layers of a language model.
    """

    widths: tuple[int, ...] = (8, 6, 4, 2)
    rounding: Rounding = Rounding.HALF_UP
    activation_container: Container = "int8"
    granularity: ScaleOf = "per_channel"
    pin_ends: bool = True
    pin: tuple[str, ...] = ()
    signed: tuple[tuple[str, bool], ...] = ()
    weight_only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise _no_option(name, getattr(self, name), ", ".join(choices), "use one of these")
        object.__setattr__(self, "rounding", Rounding(self.rounding))  # the text of a member is equal to it, and none
        for name, (is_entry, example) in _ENTRIES.items():
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)) or not all(is_entry(entry) for entry in value):
                raise _no_option(name, value, f"a tuple like {example}", "write it so")
            object.__setattr__(self, name, tuple(value))
        ordered = sorted(set(self.widths), reverse=True)
        if not self.widths or list(self.widths) != ordered or not all(MIN_BITS <= b <= MAX_BITS for b in ordered):
            allowed = f"different widths from {MIN_BITS} to {MAX_BITS} bits, highest first"
            raise _no_option("widths", self.widths, allowed, "write them like (8, 6, 4, 2)")


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, (tuple, list)) and [type(each) for each in entry] == [str, bool]


# options with a closed set of values, and those that are tuples: what an entry is, and an example
_CHOICES: dict[str, tuple[str, ...]] = {
    "rounding": tuple(rule.value for rule in Rounding),
    "activation_container": get_args(Container),
    "granularity": get_args(ScaleOf),
}
_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "widths": (lambda entry: type(entry) is int, "(8, 6, 4, 2), of whole numbers"),
    "pin": (lambda entry: isinstance(entry, str), "('layer1.*',), of names or patterns"),
    "signed": (_is_pair, "(('layer1.conv1', True),), of names with True or False"),
    "weight_only": (lambda entry: isinstance(entry, str), "('layer1.*',), of names or patterns"),
}


def _no_option(where: str, got: object, allowed: str, do: str) -> UsageError:
    return UsageError(where=where, got=f"{got!r}", allowed=allowed, do=do)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDecision:
    """What `prepare` did with one module that holds weights, and why; `kind` is the class name of the float module."""

    name: str
    kind: str
    decision: Decision
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedNetwork:
    """A network to train at `options.widths`, and the report of what was done to each layer.

    options: with the names of the layers in place of patterns.
    """

    model: nn.Module
    options: PrepareOptions
    report: tuple[LayerDecision, ...]


def prepare(
    model: nn.Module,
    example_input: tuple[Tensor, ...],
    options: PrepareOptions | None = None,
    *,
    check_export: bool = True,
) -> PreparedNetwork:
    """A copy of a float network with quantized layers and switchable BatchNorm; `model` is left as it is.

    Args:
        model: float32 network. example_input: inputs of one call, [batch, ...] each; run once in evaluation mode.
        options: None means the defaults of `PrepareOptions`.
        check_export: capture the network as `save_master` will, so that what it refuses is known before the training;
            seconds, and more for a deep network.

    Raises:
        UsageError: the network is prepared already, is not float32, has lazy layers that never ran, computes a weight
            by a hook, does not run on the example, reads parameters that it does not list, has no layer to quantize, is
            itself a layer, cannot be exported, or `pin`, `signed` or `weight_only` names a layer that is not there.
        GraphError: a quantized layer is not one operator of the exported graph.
    """
    options = options or PrepareOptions()
    _check_float(model)
    model = _unwrapped(copied(model))
    trace = trace_calls(model, example_input, _is_watched)
    _check_listed(model, trace)
    options = _without_patterns(options, model)
    report = decide_layers(model, trace, options)
    decisions = {entry.name: entry for entry in report}
    if type(model) in QUANTIZED_CLASS:
        raise UsageError(
            where=type(model).__name__,
            got="a single layer, which has no name",
            allowed="a network of layers",
            do="wrap it: nn.Sequential(layer)",
        )
    if not any(entry.decision == "quantized" for entry in report):
        raise UsageError(
            where=type(model).__name__,
            got="no layer is left to quantize: " + "; ".join(f"{e.name}: {e.reason}" for e in report),
            allowed="at least one convolution or Linear that is not pinned",
            do="set pin_ends=False, or name fewer layers in pin",
        )

    def replacement(path: str, module: nn.Module) -> nn.Module | None:
        if path not in decisions or decisions[path].decision in ("pinned", "float"):
            return None
        if is_batchnorm(module):
            return _switchable(path, module, options.widths, trace, decisions)
        return quantized_from(module, _settings(path, module, options, calls=trace.calls[path]))

    prepared = replace_modules(model, replacement)
    _disable_fused_transformers(prepared)
    if check_export:
        _check_export(prepared, example_input)
    return PreparedNetwork(model=prepared, options=options, report=report)


def _whole(width: object) -> int:
    """A width that may be one; whether it was trained is another matter."""
    if isinstance(width, Integral) and not isinstance(width, bool) and MIN_BITS <= int(width) <= MAX_BITS:
        return int(width)
    allowed, do = f"a whole number of {MIN_BITS}..{MAX_BITS}, or a WidthAssignment", "choose a width that is trained"
    raise UsageError(where="default width", got=repr(width), allowed=allowed, do=do)


def set_width(model: nn.Module, width: int | WidthAssignment) -> None:
    """Let every quantized layer of a prepared network compute at `width`, BatchNorm copies included.

    Layers have the names that they have in the prepared network, whatever DataParallel, DistributedDataParallel and
    torch.compile put around it or its parts.

    Raises:
        UsageError: a width that was not trained, an override that names no quantized layer, or overrides on a network
            that has the prepared one as a part.
    """
    assignment = width if isinstance(width, WidthAssignment) else WidthAssignment(default=_whole(width))
    modules = _without_wrappers(model)
    layers = {path: module for path, module in modules.items() if isinstance(module, QUANTIZED_LAYERS)}
    norms = [module for module in modules.values() if isinstance(module, SwitchableBatchNorm)]
    trained = {bits for layer in layers.values() for bits in layer.input_quantizer.widths}
    for where, bits in (("default width", assignment.default), *assignment.overrides):
        if bits not in trained:
            allowed = ", ".join(map(str, sorted(trained, reverse=True))) or "none: the network is not prepared"
            raise UsageError(where=where, got=f"{bits} bits", allowed=allowed, do="choose a width that is trained")
    for name, _ in assignment.overrides:
        _require_known(name, tuple(layers), "width of a layer")
    strays = {norm.partner for norm in norms} - {None, *layers} if assignment.overrides else set()
    if strays:
        raise UsageError(
            where="widths of single layers",
            got=f"a BatchNorm that goes with layer {min(map(str, strays))}, which has another name here",
            allowed="the network that prepare gave, or what DataParallel or torch.compile make of it",
            do="set them on that network itself, not on one that it is a part of",
        )
    for path, layer in layers.items():
        layer.bits = assignment.bits_of(path)
    for norm in norms:
        norm.follow(assignment)


def decide_layers(model: nn.Module, trace: Trace, options: PrepareOptions) -> tuple[LayerDecision, ...]:
    """What becomes of each module of the float network that holds parameters itself, in module order."""
    owners = _owners_of_parameters(model)
    weighted = [name for name in trace.calls if isinstance(model.get_submodule(name), tuple(QUANTIZED_CLASS))]
    ends = {weighted[0], weighted[-1]} if weighted and options.pin_ends else set()
    report = []
    for path, module in model.named_modules():
        if not any(True for _ in module.parameters(recurse=False)) and not is_batchnorm(module):
            continue
        decision, reason = _decide(path, module, trace, owners)
        if decision == "quantized" and path in options.pin:
            decision, reason = "pinned", "named in pin"
        elif decision == "quantized" and path in ends:
            decision, reason = "pinned", "first layer" if path == weighted[0] else "last layer"
        elif decision == "quantized" and path in options.weight_only:
            reason = "weights only"
        report.append(LayerDecision(name=path, kind=type(module).__name__, decision=decision, reason=reason))
    return tuple(report)


def _is_watched(module: nn.Module) -> bool:
    return type(module) in QUANTIZED_CLASS or is_batchnorm(module)


def _decide(path: str, module: nn.Module, trace: Trace, owners: dict[int, list[str]]) -> tuple[Decision, str]:
    if not _is_watched(module):
        return "float", f"{type(module).__name__} is not quantized"
    if any(True for child in module.children() for _ in child.state_dict()):
        return "float", "parts of it hold parameters or buffers of their own"
    sharers = sorted({name for p in module.parameters(recurse=False) for name in owners[id(p)]} - {path})
    if sharers:
        return "float", f"shares its parameters with {', '.join(sharers)}"
    if path not in trace.order:
        return "float", "the example input does not call it as a module"
    if path in trace.read_elsewhere:
        return "float", "its parameters are also read outside of it"
    return ("switchable", "one copy per width") if is_batchnorm(module) else ("quantized", "")


def _partner(norm: str, trace: Trace, decisions: dict[str, LayerDecision]) -> str | None:
    """Name the quantized layer that a BatchNorm switches with, None when there is none.

    It is the only layer whose output it reads, else, behind a sum, the weighted one called last before it; where that
    one is float, the first quantized one called after it.
    """
    position = trace.order.index(norm)
    weighted = [name for name in trace.order[:position] if name not in trace.norms]
    before = trace.producers.get(norm) or (weighted[-1] if weighted else None)
    if before is not None and decisions[before].decision == "quantized":
        return before
    return next((name for name in trace.order[position:] if decisions[name].decision == "quantized"), None)


def _switchable(
    path: str,
    norm: nn.Module,
    widths: tuple[int, ...],
    trace: Trace,
    decisions: dict[str, LayerDecision],
) -> SwitchableBatchNorm:
    partner = _partner(path, trace, decisions)
    previous = None if partner is None else trace.sources.get(partner)
    while previous is not None and decisions[previous].decision != "quantized":
        previous = trace.sources.get(previous)
    reads_partner = partner is not None and trace.sources.get(path) == partner
    return switchable_from(norm, widths, partner, previous=previous, reads_partner=reads_partner)


def _settings(path: str, module: nn.Module, options: PrepareOptions, *, calls: int) -> LayerQuantization:
    axis = QUANTIZED_CLASS[type(module)][1]
    per_channel = Granularity(kind="per_channel", axis=axis)
    return LayerQuantization(
        name=path,
        widths=options.widths,
        rounding=options.rounding,
        container=options.activation_container,
        granularity=per_channel if options.granularity == "per_channel" else PER_TENSOR,
        signed=dict(options.signed).get(path),
        weight_only=path in options.weight_only,
        calls=calls,
    )


def _owners_of_parameters(model: nn.Module) -> dict[int, list[str]]:
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(path)
    return owners


def _unwrapped(model: nn.Module) -> nn.Module:
    """The network without wrappers, in place: neither the exporter nor a width that changes goes through them."""

    def inner(_: str, module: nn.Module) -> nn.Module | None:
        wrapped = _wrapped(module)
        return None if wrapped is None else _unwrapped(wrapped)

    return replace_modules(model, inner)


def _wrapped(module: nn.Module) -> nn.Module | None:
    """What a wrapper is around; None: it is none."""
    if isinstance(module, OptimizedModule):
        return module._orig_mod
    return module.module if isinstance(module, (nn.DataParallel, DistributedDataParallel)) else None


def _without_wrappers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a network by the paths that they have without wrappers; each once, by its first path."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def visit(path: str, module: nn.Module) -> None:
        while (wrapped := _wrapped(module)) is not None:
            module = wrapped
        if id(module) in seen:
            return
        seen.add(id(module))
        found[path] = module
        for name, child in module.named_children():
            visit(f"{path}.{name}" if path else name, child)

    visit("", model)
    return found


def _check_export(prepared: nn.Module, example_input: tuple[Tensor, ...]) -> None:
    captured = capture_skeleton(float_skeleton(prepared).cpu().eval(), tuple(each.cpu() for each in example_input))
    check_layers(captured, (path for path, module in prepared.named_modules() if isinstance(module, QUANTIZED_LAYERS)))


def _disable_fused_transformers(model: nn.Module) -> None:
    """The fused path of nn.TransformerEncoderLayer reads the weights of its linear layers and would skip theirs."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0


def _check_float(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(
                where=path or type(model).__name__,
                got="a scripted or traced module",
                allowed="modules of Python, whose layers can be replaced",
                do="hand in the network that it was made of",
            )
        if isinstance(module, (*QUANTIZED_LAYERS, SwitchableBatchNorm)):
            raise UsageError(
                where=path, got="a quantized layer", allowed="a float network", do="prepare the float network, once"
            )
        if type(module) in QUANTIZED_CLASS and not isinstance(module.weight, nn.Parameter):
            raise UsageError(
                where=path,
                got="its weight is computed by a hook, as weight_norm, spectral_norm and pruning in torch.nn.utils do",
                allowed="a weight that is a parameter, or computed by torch.nn.utils.parametrizations",
                do="make it permanent: remove_weight_norm, remove_spectral_norm or prune.remove",
            )
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(parameter):
            raise UsageError(
                where=f"parameter {name}",
                got="no shape yet, as of a lazy layer",
                allowed="a network that has run",
                do="call it once on an example first",
            )
        is_parameter = isinstance(parameter, nn.Parameter)
        if parameter.dtype != torch.float32 and (is_parameter or parameter.is_floating_point()):
            raise UsageError(
                where=f"parameter {name}", got=f"dtype {parameter.dtype}", allowed="float32", do="call model.float()"
            )


def _check_listed(model: nn.Module, trace: Trace) -> None:
    """Parameters that the network does not list are neither quantized nor trained, and no state file keeps them."""
    if trace.strays:
        raise UsageError(
            where=type(model).__name__,
            got=f"parameters that model.parameters() does not list: {first_names(list(trace.strays))}",
            allowed="layers and parameters that are attributes of a module",
            do="hold layers in nn.ModuleList or nn.ModuleDict, not in a list, dict or closure",
        )


def _without_patterns(options: PrepareOptions, model: nn.Module) -> PrepareOptions:
    """The options with the names of the layers that its patterns match, all of which are there."""
    known = tuple(path for path, module in model.named_modules() if type(module) in QUANTIZED_CLASS)
    for name, _ in options.signed:
        _require_known(name, known, "signed")

    def named(patterns: tuple[str, ...], where: str) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for pattern in patterns:
            matching = [name for name in known if name == pattern or fnmatchcase(name, pattern)]
            if not matching:
                _require_known(pattern, known, where)
            found |= dict.fromkeys(matching)
        return tuple(found)

    return replace(options, pin=named(options.pin, "pin"), weight_only=named(options.weight_only, "weight_only"))


def _require_known(name: str, known: tuple[str, ...], where: str) -> None:
    if name not in known:
        raise UsageError(
            where=where, got=f"no layer is called {name!r}", allowed=", ".join(known), do="use one of these names"
        )
