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
from graphlib import TopologicalSorter

import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.qdq import is_known, match_activation, match_weight, producer_of, sole_reader, way_to_codes
from bitswitch_deploy.lowering.residuals import ABSORBED, SAME_CODES, CodedTensor, keep_float_layers, leaving

BOUNDED = ("Sigmoid", "HardSigmoid")
REWRITTEN = ("HardSwish", "ReduceMean")
_COMPUTED = (*BOUNDED, *REWRITTEN, "LeakyRelu", "AveragePool", "GlobalAveragePool", "Add", "Mul", "Concat")
_MOVED = (*SAME_CODES, "Split", "Resize")
_WEIGHTED = ("Conv", "ConvTranspose")
_RESHAPED = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "ReduceMean")
# what keeps the number of dimensions of its first input
_SAME_RANK = {*_COMPUTED, *_MOVED, *ABSORBED, "QuantizeLinear", "DequantizeLinear", "BatchNormalization"} - {*_RESHAPED}
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
    planner = _Planner(graph)
    return ElementwisePlan(
        rewritten=tuple(node.name for node in planner.nodes if node.op in REWRITTEN),
        tensors=tuple(keep_float_layers(graph, planner.tensors())),
    )


class _Planner:
    """Finds the operators that compute with codes.

    nodes: these, in an order in which inputs come first.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._inside = {id(node): node for node in graph.nodes}
        self._leaving = leaving(graph, (*_MOVED, *ABSORBED, "Concat"))
        self._able: set[int] = set()
        made_by = {key: self._makers(node) for key, node in self._inside.items()}
        order = [self._inside[key] for key in TopologicalSorter(made_by).static_order()]
        for node in order:
            if self._is_able(node):
                self._able.add(id(node))
        for node in reversed(order):
            if id(node) in self._able and not any(map(self._is_useful, self._results(node))):
                self._able.remove(id(node))
        self._able &= self._with_arithmetic(order)
        self.nodes = [node for node in order if id(node) in self._able]

    def tensors(self) -> Iterator[CodedTensor]:
        """The results that get codes."""
        for node in self.nodes:
            for result in self._results(node):
                if result.outputs and not way_to_codes(self._graph, result):
                    like = node.inputs[0] if node.op in _MOVED else result
                    yield CodedTensor(tensor=result.name, like=like.name, reader=None, unsigned=node.op in BOUNDED)

    def _makers(self, node: gs.Node) -> list[int]:
        makers = (producer_of(tensor) for tensor in node.inputs)
        return [id(maker) for maker in makers if id(maker) in self._inside]

    def _with_arithmetic(self, order: list[gs.Node]) -> set[int]:
        """The operators that compute something, and what is moved in front of them or behind.

        Codes that are moved only are those of a residual branch: other passes know what to do with it.
        """
        able = [node for node in order if id(node) in self._able]
        found = {id(node) for node in able if node.op not in _MOVED}
        for node in able:
            if any(id(self._maker(tensor)) in found for tensor in node.inputs):
                found.add(id(node))
        for node in reversed(able):
            if any(id(reader) in found for result in self._results(node) for reader in result.outputs):
                found.add(id(node))
        return found

    def _is_able(self, node: gs.Node) -> bool:
        """Whether an operator has a kernel for codes, and reads nothing else."""
        if node.op in _MOVED:
            read, given, fits = node.inputs[:1], node.inputs[1:], _keeps_codes(node)
        elif node.op == "ReduceMean":
            read, given, fits = node.inputs[:1], node.inputs[1:], _is_mean_of_plane(node)
        else:
            read, given, fits = node.inputs, [], node.op in _COMPUTED and _has_kernel(node)
        fits = fits and all(each.is_empty() or is_known(each) for each in given)
        return fits and all(map(self._is_coded, read)) and not any(id(each) in self._leaving for each in node.outputs)

    def _is_coded(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor is dequantized, or will be as the result of an operator that computes with codes."""
        producer = producer_of(tensor)
        if producer is not None and producer.op == "DequantizeLinear":
            return match_activation(producer) is not None
        producer = self._maker(tensor)
        return id(producer) in self._able and any(tensor is each for each in self._results(producer))

    @staticmethod
    def _maker(tensor: gs.Tensor) -> gs.Node | None:
        """What makes a tensor, in front of Relu and Clip."""
        producer = producer_of(tensor)
        while producer is not None and producer.op in ABSORBED:
            producer = producer_of(producer.inputs[0])
        return producer

    def _results(self, node: gs.Node) -> list[gs.Tensor]:
        """The outputs of an operator, each behind the Relu and Clip that become part of what is computed."""
        if node.op in _MOVED:
            return list(node.outputs)
        (tensor,) = node.outputs
        while (reader := sole_reader(self._graph, tensor)) is not None and reader.op in ABSORBED:
            if id(reader) not in self._inside:
                break
            tensor = reader.outputs[0]
        return [tensor]

    def _is_useful(self, result: gs.Tensor) -> bool:
        """Whether a way leads from a result to codes."""
        coded = any(reader.op == "QuantizeLinear" or id(reader) in self._able for reader in result.outputs)
        return coded or bool(way_to_codes(self._graph, result))


def _keeps_codes(node: gs.Node) -> bool:
    """Whether the values of what is moved are values that came in, or zero, which always has a code."""
    if node.op == "Pad":
        value = node.inputs[2] if len(node.inputs) > 2 else None
        is_zero = value is None or value.is_empty() or (isinstance(value, gs.Constant) and not value.values.any())
        return is_zero or node.attrs.get("mode", "constant") != "constant"
    if node.op == "Resize":
        is_inside = node.attrs.get("coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize"
        return is_inside and bool(node.attrs.get("mode", "nearest") == "nearest")
    return node.op == "Split" or len(node.outputs) == 1  # MaxPool: no indices


def _has_kernel(node: gs.Node) -> bool:
    """Whether onnxruntime computes this form of the operator with codes, and computes the same (1.32)."""
    if node.op != "AveragePool":
        return True
    is_dilated = any(step != 1 for step in node.attrs.get("dilations", ()))
    return not is_dilated and not (node.attrs.get("ceil_mode", 0) and node.attrs.get("count_include_pad", 0))


def _is_mean_of_plane(node: gs.Node) -> bool:
    """Whether a ReduceMean is GlobalAveragePool: of height and width of images, which stay as 1 x 1."""
    axes = node.attrs.get("axes") if len(node.inputs) < 2 else getattr(node.inputs[1], "values", None)
    if axes is None or sorted(map(int, axes)) not in _PLANE or not node.attrs.get("keepdims", 1):
        return False
    producer = producer_of(node.inputs[0])
    while producer is not None and producer.op in _SAME_RANK and producer.inputs:
        producer = producer_of(producer.inputs[0])
    if producer is None or producer.op not in _WEIGHTED:
        return False
    weight = match_weight(producer.inputs[1])
    return weight is not None and weight.codes.values.ndim == 4
