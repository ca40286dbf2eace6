"""Where a lowered graph can be compared with the canonical one: tensors that both of them have, under one name.

Passes keep the names of what they keep: the output of a layer and its BatchNormalization, sums, and the dequantized
input of every quantized layer. Between two such cuts lies one layer, one quantizer, or what stands between layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import onnx

from bitswitch_deploy.diagnosis.model_view import ModelView
from bitswitch_deploy.graph.canonical import CanonicalGraph
from bitswitch_deploy.graph.model_io import import_model
from bitswitch_deploy.graph.qdq import ActivationPattern, match_activation
from bitswitch_deploy.lowering.calibrated_codes import CODED_NAMES
from bitswitch_deploy.lowering.pool_codes import POOLED_NAME
from bitswitch_deploy.master.spec import LayerSpec

Part = Literal["layer", "input codes", "added codes", "between"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A tensor at which both graphs are compared, and what computes it from the cuts before it.

    part: a layer with its weight and bias; the quantizer of a layer's input; codes that the lowering added; what stands
        between layers.
    layer: the layer it is part of; of what stands between layers, the nearest one before it; empty at the beginning.
    operators: that compute it in the lowered graph.
    channel_axis: of the output channels.
    is_approximate: the lowering made float weights into codes here. is_half: something is computed in float16.
    """

    tensor: str
    part: Part
    layer: str
    operators: tuple[str, ...] = ()
    channel_axis: int = -1
    is_approximate: bool = False
    is_half: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedCodes:
    """A quantizer that the lowering added: from `source` to `result`, both float, in codes low..high of `scale`.

    residual_of: the tensor of the canonical graph that is in these codes, on a residual branch or between layers; None
        for those in front of a float layer or a MaxPool, and within an operator that the lowering took apart.
    is_edge: only some of its readers see the codes.
    """

    source: str
    result: str
    scale: float
    low: int
    high: int
    residual_of: str | None
    is_edge: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CutGraph:
    """All cuts of a lowered graph in its order, and its added quantizers.

    compared: tensors that the canonical graph computes and that something here is compared with.
    """

    cuts: tuple[Cut, ...]
    added: tuple[AddedCodes, ...]
    compared: tuple[str, ...]

    @property
    def common(self) -> tuple[str, ...]:
        """Tensors that both graphs compute."""
        return tuple(cut.tensor for cut in self.cuts if cut.part != "added codes")


def input_tensors(canonical: CanonicalGraph) -> dict[str, str]:
    """The layer of each dequantized input, by the name of the tensor, in the order of the plan."""
    return {
        f"{plan.layer.name}.input{f'.{index}' if index else ''}.dequantized": plan.layer.name
        for plan in canonical.plan.layers
        if plan.activation is not None
        for index in range(len(plan.nodes))
    }


def find_cuts(canonical: CanonicalGraph, lowered: onnx.ModelProto, layers: Iterable[LayerSpec]) -> CutGraph:
    """The cuts of a lowered graph that holds all its weights."""
    reference, view = ModelView(canonical.model), ModelView(lowered)
    common = set(reference.live_floats) & set(view.live_floats)
    added = _added_codes(reference, view, lowered, common)
    inputs = input_tensors(canonical)
    common -= _behind_pooled_codes(view, added, common, inputs)
    by_result = {each.result for each in added}
    finder = _Finder(view, {*common, *by_result}, inputs, {each.weight: each for each in layers})
    cuts = [finder.cut(name, is_added=name in by_result) for name in view.live_floats if name in finder.known]
    in_codes = {each.residual_of for each in added if each.residual_of is not None}
    compared = (*common, *(in_codes & reference.producers.keys() - common))
    return CutGraph(cuts=tuple(cuts), added=added, compared=tuple(sorted(compared)))


def _added_codes(
    reference: ModelView, view: ModelView, lowered: onnx.ModelProto, common: set[str]
) -> tuple[AddedCodes, ...]:
    live = set(view.live_floats)
    made_live = [node for node in import_model(lowered).nodes if node.op == "DequantizeLinear"]
    found = [match_activation(node) for node in made_live if node.outputs[0].name in live - common]
    patterns = [each for each in found if each is not None and not _is_trained(reference, view, each, common)]
    return tuple(
        AddedCodes(
            source=source,
            result=pattern.result.name,
            scale=float(pattern.codes.scale),
            low=pattern.codes.low - pattern.codes.zero_point,
            high=pattern.codes.high - pattern.codes.zero_point,
            residual_of=_residual_of(pattern.result.name, reference),
            is_edge=len(pattern.source.outputs) > 1,
        )
        for pattern in patterns
        for source in (pattern.source.name,)
    )


def _residual_of(result: str, reference: ModelView) -> str | None:
    for made_by in CODED_NAMES:
        tensor, is_found, _ = result.rpartition(f".{made_by}.")
        if is_found and (tensor in reference.producers or tensor in reference.inputs):
            return tensor
    return None


def _is_trained(reference: ModelView, view: ModelView, pattern: ActivationPattern, common: set[str]) -> bool:
    """Whether a quantizer is that of the network, or counts its codes in other steps (Requantize)."""
    return any(
        node.op_type == "QuantizeLinear" and node.output[0] in reference.producers
        for node in view.segment(pattern.quantize.outputs[0].name, common)
    )


def _behind_pooled_codes(
    view: ModelView, added: tuple[AddedCodes, ...], common: set[str], inputs: Mapping[str, str]
) -> set[str]:
    """Tensors of both graphs that the lowered one has in codes already (PoolCodes), up to the trained quantizer."""
    pooled = {each.result for each in added if each.residual_of is None and f".{POOLED_NAME}." in each.result}
    behind = set()
    for name in common - inputs.keys():
        nodes = view.segment(name, common - {name})
        if any(set(node.input) & pooled for node in nodes) and not any(view.weights_of(node) for node in nodes):
            behind.add(name)
    return behind


class _Finder:
    """Says of each cut what it is part of."""

    def __init__(
        self, view: ModelView, known: set[str], inputs: Mapping[str, str], layers: Mapping[str, LayerSpec]
    ) -> None:
        self._view, self.known, self._inputs, self._layers = view, known, inputs, layers
        self._layer_of: dict[str, str] = {}

    def cut(self, tensor: str, *, is_added: bool) -> Cut:
        nodes = self._view.segment(tensor, self.known - {tensor})
        weighted = next((node for node in nodes if self._owner(node) is not None), None)
        owner = self._owner(weighted) if weighted is not None else None
        live = [node for node in nodes if set(node.input) & (self.known | self._view.inputs) or node is nodes[0]]
        layer = owner.name if owner is not None else self._before(nodes)
        part: Part = "layer" if owner is not None else "between"
        if tensor in self._inputs:
            part, layer = "input codes", self._inputs[tensor]
        elif is_added:
            part = "added codes"
        self._layer_of[tensor] = layer
        return Cut(
            tensor=tensor,
            part=part,
            layer=layer,
            operators=tuple(dict.fromkeys(node.op_type for node in reversed(live))),
            channel_axis=1 if any(node.op_type in _CHANNELS_FIRST for node in nodes) else -1,
            is_half=any(node.op_type == "Cast" and _to(node) == onnx.TensorProto.FLOAT16 for node in nodes),
            is_approximate=bool(owner is not None and owner.pinned and weighted is not None and self._coded(weighted)),
        )

    def _owner(self, node: onnx.NodeProto) -> LayerSpec | None:
        made_from = self._view.weights_of(node)
        # weights that a pass has made codes of are named after them
        found = [name for name in self._layers if any(f"{each}.".startswith(f"{name}.") for each in made_from)]
        return self._layers[max(found, key=len)] if found else None

    def _coded(self, node: onnx.NodeProto) -> bool:
        maker = self._view.producers.get(node.input[1])
        return maker is not None and maker.op_type == "DequantizeLinear"

    def _before(self, nodes: list[onnx.NodeProto]) -> str:
        named = [self._layer_of.get(name, "") for node in nodes for name in node.input]
        return next((name for name in named if name), "")


def _to(cast: onnx.NodeProto) -> int:
    return next(int(each.i) for each in cast.attribute if each.name == "to")


_CHANNELS_FIRST = ("Conv", "ConvTranspose", "BatchNormalization")
