"""The plan for what lies between quantized layers beside residual Adds: which of it computes with codes. Data only.

A SiLU, a Concat or a gate for each channel that reads codes can compute with codes, too; as long as it does not, every
one of them goes to floats and back. onnxruntime has integer kernels for these operators, and takes them where all
inputs and outputs are in codes. So from the codes that convolutions hand on the plan goes from operator to operator,
and keeps those from which a way leads to codes again. Two of them have no kernel: HardSwish is written as the product
of its input and a HardSigmoid, which `HardSigmoidCodes` makes an Add, and the mean over a plane as GlobalAveragePool.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.qdq import (
    is_known,
    match_activation,
    match_weight,
    producer_of,
    way_to_codes,
)
from bitswitch_deploy.lowering.residuals import (
    ABSORBED,
    SAME_CODES,
    CodedTensor,
    keep_float_layers,
    leaves,
    result_behind,
)

BOUNDED = ("Sigmoid", "HardSigmoid")
REWRITTEN = ("HardSwish", "ReduceMean")
_COMPUTED = (*BOUNDED, *REWRITTEN, "LeakyRelu", "AveragePool", "GlobalAveragePool", "Add", "Mul", "Concat")
_MOVED = (*SAME_CODES, "Split", "Resize")
_WEIGHTED = ("Conv", "ConvTranspose")
_PLANE = ([2, 3], [-2, -1])


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementwisePlan:
    """Both in an order in which inputs come first.

    rewritten: operators of REWRITTEN that compute with codes, by name. tensors: results that get codes for all of it.
    Of these `like` names what a result shares its codes with, because it is only moved; and where `unsigned`, it lies
    in 0..1 and needs no range.
    """

    rewritten: tuple[str, ...] = ()
    tensors: tuple[CodedTensor, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the graph stays as it is."""
        return not self.rewritten and not self.tensors

    @property
    def calibrated(self) -> tuple[str, ...]:
        """The tensors whose range has to be observed."""
        return tuple(each.tensor for each in self.tensors if each.like == each.tensor and not each.unsigned)


def plan_elementwise(graph: gs.Graph) -> ElementwisePlan:
    """The plan for a graph in which `QuantizeResidual` has done its work."""
    able: dict[int, gs.Node] = {}
    while found := {id(node): node for node in graph.nodes if id(node) not in able and _is_able(graph, node, able)}:
        able |= found
    while useless := [key for key, node in able.items() if not any(_is_useful(graph, t, able) for t in node.outputs)]:
        able = {key: node for key, node in able.items() if key not in useless}
    return ElementwisePlan(
        rewritten=tuple(node.name for node in able.values() if node.op in REWRITTEN),
        tensors=tuple(keep_float_layers(graph, _tensors(graph, able))),
    )


def _is_able(graph: gs.Graph, node: gs.Node, able: dict[int, gs.Node]) -> bool:
    """Whether an operator has a kernel for codes, and reads nothing else."""
    if node.op in _MOVED:
        read, given = node.inputs[:1], node.inputs[1:]
        fits = node.op != "Resize" or node.attrs.get("mode", "nearest") == "nearest"
    elif node.op == "ReduceMean":
        read, given, fits = node.inputs[:1], node.inputs[1:], _is_mean_of_plane(node)
    else:
        read, given, fits = node.inputs, [], node.op in _COMPUTED
    fits = fits and all(each.is_empty() or is_known(each) for each in given)
    return (
        fits and all(_is_coded(each, able) for each in read) and not any(leaves(graph, each) for each in node.outputs)
    )


def _is_coded(tensor: gs.Tensor, able: dict[int, gs.Node]) -> bool:
    """Whether a tensor is dequantized, or the result of an operator of the plan, at most clipped."""
    producer = producer_of(tensor)
    while producer is not None and producer.op in ABSORBED and len(producer.inputs[0].outputs) == 1:
        producer = producer_of(producer.inputs[0])
    if producer is None:
        return False
    return id(producer) in able or (producer.op == "DequantizeLinear" and match_activation(producer) is not None)


def _is_mean_of_plane(node: gs.Node) -> bool:
    """Whether a ReduceMean is GlobalAveragePool: of height and width of images, which stay as 1 x 1."""
    axes = node.attrs.get("axes") if len(node.inputs) < 2 else getattr(node.inputs[1], "values", None)
    if axes is None or sorted(map(int, axes)) not in _PLANE or not node.attrs.get("keepdims", 1):
        return False
    producer = producer_of(node.inputs[0])
    while producer is not None and producer.op not in _WEIGHTED:
        producer = producer_of(producer.inputs[0])
    weight = None if producer is None else match_weight(producer.inputs[1])
    return weight is not None and weight.codes.values.ndim == 4


def _is_useful(graph: gs.Graph, tensor: gs.Tensor, able: dict[int, gs.Node]) -> bool:
    readers = result_behind(graph, tensor, ABSORBED).outputs
    coded = any(reader.op == "QuantizeLinear" or id(reader) in able for reader in readers)
    return coded or bool(way_to_codes(graph, tensor))


def _tensors(graph: gs.Graph, able: dict[int, gs.Node]) -> Iterator[CodedTensor]:
    for node in able.values():
        for output in node.outputs:
            result = result_behind(graph, output, ABSORBED)
            if result.outputs and not way_to_codes(graph, output):
                like = node.inputs[0] if node.op in _MOVED else result
                yield CodedTensor(tensor=result.name, like=like.name, reader=None, unsigned=node.op in BOUNDED)
