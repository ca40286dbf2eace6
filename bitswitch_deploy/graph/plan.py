"""The plan of a canonical graph: which tensor gets which width and scale, and why. Data only; passes carry it out.

Widths that were not trained have no learned activation range and no BatchNorm of their own. Then the clipping range
is interpolated between the trained neighbours, log-linear in the width, and the BatchNorm of the nearest trained
width is taken; both are said in `why` and in `QuantizationPlan.untrained`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from bitswitch_deploy.errors import GraphError, UsageError
from bitswitch_deploy.graph.model_io import node_names
from bitswitch_deploy.master import Master
from bitswitch_deploy.master.spec import LayerSpec, MasterSpec
from bitswitch_deploy.tensors import CodeRange, WidthAssignment, code_range

_WEIGHT_INPUT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationPlan:
    """Codes of one layer's input: `bits` wide, in `codes`, value = code * scale. signed: the container is int8."""

    bits: int
    signed: bool
    codes: CodeRange
    scale: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """One layer: its weight codes are derived to `bits`; `activation` is None when its input stays float."""

    layer: LayerSpec
    nodes: tuple[str, ...]
    bits: int
    activation: ActivationPlan | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchPlan:
    """Which copy of a switchable parameter is used: row `index`, trained at `width`."""

    parameter: str
    index: int
    width: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationPlan:
    """Everything that is decided before a graph is touched. Pinned layers are in `pinned` only."""

    assignment: WidthAssignment
    trained_widths: tuple[int, ...]
    layers: tuple[LayerPlan, ...]
    pinned: tuple[str, ...]
    switches: tuple[SwitchPlan, ...]

    @property
    def untrained(self) -> tuple[int, ...]:
        """Widths in use that the master was not trained at, highest first."""
        used = {layer.bits for layer in self.layers}
        return tuple(sorted(used - set(self.trained_widths), reverse=True))


def plan_canonical(master: Master, assignment: WidthAssignment) -> QuantizationPlan:
    """Decide widths, scales and parameter copies of one canonical graph.

    Raises:
        UsageError: a width is above the master's, or `assignment` names a layer that cannot take a width.
        GraphError: a layer stands in a branch or loop of the network.
    """
    spec = master.spec
    _check_assignment(spec, assignment)
    readers = _weight_readers(master.skeleton)
    _check_places(master.skeleton, spec)
    layers = tuple(
        LayerPlan(
            layer=layer,
            nodes=tuple(readers.get(layer.weight, ())),
            bits=assignment.bits_of(layer.name),
            activation=_plan_activation(master, layer, assignment.bits_of(layer.name)),
        )
        for layer in spec.layers
        if not layer.pinned
    )
    return QuantizationPlan(
        assignment=assignment,
        trained_widths=spec.widths,
        layers=layers,
        pinned=tuple(layer.name for layer in spec.layers if layer.pinned),
        switches=_plan_switches(master, assignment),
    )


def _check_assignment(spec: MasterSpec, assignment: WidthAssignment) -> None:
    quantized = [layer.name for layer in spec.layers if not layer.pinned]
    for name, _ in assignment.overrides:
        if name not in quantized:
            raise UsageError(
                where=f"layer {name!r} in the width assignment",
                got="pinned to float" if any(layer.name == name for layer in spec.layers) else "not in the master",
                allowed=f"one of: {', '.join(quantized)}",
                do="correct the name, or list them with `bitswitch-deploy inspect`",
            )
    for bits in sorted({assignment.default, *(bits for _, bits in assignment.overrides)}):
        if bits > spec.bits:
            raise UsageError(
                where="width",
                got=f"{bits} bits from a master of {spec.bits} bits",
                allowed=f"2..{spec.bits}",
                do="choose a lower width",
            )


def _weight_readers(skeleton: onnx.ModelProto) -> dict[str, list[str]]:
    readers: dict[str, list[str]] = {}
    for node, name in zip(skeleton.graph.node, node_names(skeleton), strict=True):
        if len(node.input) > _WEIGHT_INPUT:
            readers.setdefault(node.input[_WEIGHT_INPUT], []).append(name)
    return readers


def _check_places(skeleton: onnx.ModelProto, spec: MasterSpec) -> None:
    """Passes see the nodes of the network itself only, not those inside of If, Loop and Scan."""
    layers = {layer.weight: layer.name for layer in spec.layers if not layer.pinned}
    graphs = [graph for node in skeleton.graph.node for graph in _inner_graphs(node)]
    while graphs:
        for node in graphs.pop().node:
            graphs += _inner_graphs(node)
            for weight in set(node.input) & set(layers):
                raise GraphError(
                    where=f"layer {layers[weight]!r}",
                    got=f"it stands in a branch or loop ({node.op_type} {node.name})",
                    allowed="quantized layers outside of If, Loop and Scan",
                    do="pin the layer to float, or take the control flow out of the network before training",
                )


def _inner_graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)]


def activation_range(spec: MasterSpec, bits: int, *, signed: bool) -> CodeRange:
    """Codes of an activation. Unsigned 8-bit codes end at 127 when the master was trained for an int8 container."""
    codes = code_range(bits, signed=signed)
    if spec.activation_container == "int8" and not signed:
        return CodeRange(low=0, high=min(codes.high, 127))
    return codes


def _plan_activation(master: Master, layer: LayerSpec, bits: int) -> ActivationPlan | None:
    if layer.activation == "none":
        return None
    spec = master.spec
    signed = layer.activation == "signed"
    codes = activation_range(spec, bits, signed=signed)
    scales = np.asarray(master.tensors[layer.input_scale], np.float32)
    if bits in spec.widths:
        scale, why = scales[spec.widths.index(bits)], f"learned at {bits} bits"
    else:
        clips = [float(s) * activation_range(spec, b, signed=signed).high for s, b in zip(scales, spec.widths)]
        # np.interp holds the end values outside of the trained widths and wants ascending ones
        log_clip = np.interp(bits, spec.widths[::-1], np.log2(clips)[::-1])
        # what is below the smallest normal number runtimes flush to zero
        scale = max(np.float32(2.0**log_clip / codes.high), np.finfo(np.float32).smallest_normal)
        why = f"range interpolated from widths {list(spec.widths)}"
    return ActivationPlan(bits=bits, signed=signed, codes=codes, scale=float(scale), why=why)


def _plan_switches(master: Master, assignment: WidthAssignment) -> tuple[SwitchPlan, ...]:
    spec = master.spec
    plans = []
    for parameter, (layer, relation) in _switch_owners(master).items():
        wanted = assignment.bits_of(layer) if layer is not None else assignment.default
        # of two trained widths at the same distance the higher one: it clips less
        width = min(spec.widths, key=lambda b: (abs(b - wanted), -b))
        why = f"{relation} computes at {wanted} bits"
        plans.append(
            SwitchPlan(
                parameter=parameter,
                index=spec.widths.index(width),
                width=width,
                why=why if width == wanted else f"{why}; nearest trained width",
            )
        )
    return tuple(plans)


def _switch_owners(master: Master) -> dict[str, tuple[str | None, str]]:
    """For each switchable parameter the layer that it goes with, None for the whole network, and words for it."""
    spec = master.spec
    if spec.partners is None:
        neighbours = _Neighbours(master.skeleton, spec)
        return {parameter: neighbours.of(parameter) for parameter in spec.switchable}
    partners = dict(spec.partners)
    return {
        name: (partners.get(name), f"its partner {partners[name]}" if name in partners else "the network")
        for name in spec.switchable
    }


class _Neighbours:
    """Finds the quantized layer that a switchable parameter goes with where the master does not say.

    It is the layer whose output the BatchNormalization reads, else the weighted one that runs last before it; where
    that one is pinned, the first quantized one that runs after it. The nodes of a skeleton stand in the order in which
    they run; a layer that runs several times counts where it runs first.
    """

    def __init__(self, skeleton: onnx.ModelProto, spec: MasterSpec) -> None:
        by_weight = {layer.weight: layer for layer in spec.layers}
        self._reader: dict[str, int] = {}
        self._maker: dict[str, LayerSpec] = {}
        self._layers: dict[str, tuple[int, LayerSpec]] = {}
        self._nodes = list(skeleton.graph.node)
        for index, node in enumerate(self._nodes):
            for name in node.input:
                self._reader.setdefault(name, index)
            layer = by_weight.get(node.input[_WEIGHT_INPUT]) if len(node.input) > _WEIGHT_INPUT else None
            if layer is not None:
                self._maker[node.output[0]] = layer
                self._layers.setdefault(layer.name, (index, layer))

    def of(self, parameter: str) -> tuple[str | None, str]:
        position = self._reader.get(parameter)
        if position is None:
            return None, "the network"
        earlier = [layer for index, layer in self._layers.values() if index < position]
        before = self._maker.get(self._nodes[position].input[0]) or (earlier[-1] if earlier else None)
        if before is not None and not before.pinned:
            return before.name, f"{before.name} before it"
        for index, layer in self._layers.values():
            if index > position and not layer.pinned:
                return layer.name, f"{layer.name} after it"
        return None, "the network"
