"""Making and recognising Q/DQ patterns.

A quantized activation is   x -> QuantizeLinear -> [Clip] -> [BitShift] -> DequantizeLinear -> node,
the Clip on the integer tensor and present only where the codes are narrower than their container. The BitShift, where a
lowering needs one, writes the same values in finer steps: codes * 2^k at scale / 2^k.
A quantized weight is       codes -> [Cast -> Mul -> Cast] -> DequantizeLinear -> node.
The codes are always the ones derived from the master. The Mul, where a lowering needs one, holds a factor +-2^k for
each output channel; onnxruntime folds it into the codes when it loads the graph, TensorRT graphs never have one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import DTypeLike, NDArray

_MOVEMENTS = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice")
_PASSED_BY_CODES = ("Relu", "Clip", "Identity", "Dropout", *_MOVEMENTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationCodes:
    """Integer form of one activation: per-tensor `scale`, `zero_point` in a container, codes clipped to low..high.

    low and high are codes in the container, zero-point included.
    """

    scale: np.float32
    zero_point: int
    container: type[np.uint8] | type[np.int8]
    low: int
    high: int

    @property
    def needs_clip(self) -> bool:
        """Whether saturation of the container alone is not enough."""
        limits = np.iinfo(self.container)
        return self.low > limits.min or self.high < limits.max

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return float(self.scale) * (self.low - self.zero_point), float(self.scale) * (self.high - self.zero_point)

    def covers(self, other: ActivationCodes) -> bool:
        """Whether the range of the other lies in this one, but for the rounding of the scales."""
        (low, high), (first, last) = self.ends, other.ends
        slack = 1e-6 * (high - low)
        return low - slack <= first and last <= high + slack


def add_activation_qdq(graph: gs.Graph, tensor: gs.Tensor, codes: ActivationCodes, *, name: str) -> gs.Tensor:
    """Append Q, Clip where needed, and DQ behind `tensor`; return the dequantized tensor (float32, same shape).

    `tensor` keeps its readers: the caller moves those that shall see the quantized value.
    """
    scale = gs.Constant(f"{name}.scale", np.asarray(codes.scale, np.float32))
    zero_point = gs.Constant(f"{name}.zero_point", np.asarray(codes.zero_point, codes.container))
    quantized = gs.Variable(f"{name}.codes", dtype=codes.container)
    graph.nodes.append(_node("QuantizeLinear", name, [tensor, scale, zero_point], quantized))
    if codes.needs_clip:
        low = gs.Constant(f"{name}.low", np.asarray(codes.low, codes.container))
        high = gs.Constant(f"{name}.high", np.asarray(codes.high, codes.container))
        clipped = gs.Variable(f"{name}.clipped", dtype=codes.container)
        graph.nodes.append(_node("Clip", name, [quantized, low, high], clipped))
        quantized = clipped
    dequantized = gs.Variable(f"{name}.dequantized", dtype=np.float32)
    graph.nodes.append(_node("DequantizeLinear", name, [quantized, scale, zero_point], dequantized))
    return dequantized


def add_weight_dq(graph: gs.Graph, codes: gs.Constant, scale: NDArray[np.float32], attrs: dict[str, int]) -> gs.Tensor:
    """Put DequantizeLinear behind integer `codes` at the front of the graph; return the float weight."""
    zero_point = np.zeros(scale.shape, codes.dtype)
    dequantized = gs.Variable(f"{codes.name}.dequantized", dtype=np.float32, shape=codes.shape)
    node = gs.Node(
        op="DequantizeLinear",
        name=f"{codes.name}/DequantizeLinear",
        attrs=attrs,
        inputs=[
            codes,
            gs.Constant(f"{codes.name}.scale", scale),
            gs.Constant(f"{codes.name}.zero_point", zero_point),
        ],
        outputs=[dequantized],
    )
    graph.nodes.insert(0, node)
    return dequantized


def _node(op: str, name: str, inputs: list[gs.Tensor], output: gs.Tensor) -> gs.Node:
    return gs.Node(op=op, name=f"{name}/{op}", inputs=inputs, outputs=[output])


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationPattern:
    """A recognised Q, [Clip], [BitShift], DQ chain. codes: before the shift, which multiplies them by 2^`shift`."""

    quantize: gs.Node
    clip: gs.Node | None
    shift: int
    dequantize: gs.Node
    codes: ActivationCodes

    @property
    def source(self) -> gs.Tensor:
        """The float tensor that is quantized."""
        return self.quantize.inputs[0]

    @property
    def result(self) -> gs.Tensor:
        """The dequantized tensor."""
        return self.dequantize.outputs[0]


def is_dequantized(tensor: gs.Tensor) -> bool:
    """Whether a float tensor comes out of codes."""
    producer = producer_of(tensor)
    return producer is not None and producer.op == "DequantizeLinear"


def activation_patterns(graph: gs.Graph) -> list[ActivationPattern]:
    """All quantized activations of a graph, in node order."""
    found = (match_activation(node) for node in graph.nodes if node.op == "DequantizeLinear")
    return [pattern for pattern in found if pattern is not None]


def match_activation(dequantize: gs.Node) -> ActivationPattern | None:
    """The chain that ends in `dequantize`, or None when that dequantizes anything else.

    Quantizers that a network brings along count only in the form that this project writes.
    """
    codes_of, shift = dequantize.inputs[0], 0
    producer = producer_of(codes_of)
    if producer is not None and producer.op == "BitShift" and isinstance(producer.inputs[1], gs.Constant):
        codes_of, shift = producer.inputs[0], int(producer.inputs[1].values)
        producer = producer_of(codes_of)
    clip = producer if producer is not None and producer.op == "Clip" else None
    quantize = producer_of(clip.inputs[0]) if clip is not None else producer
    if quantize is None or quantize.op != "QuantizeLinear" or not _is_ours(quantize, clip, shift, dequantize):
        return None
    container = _numpy_type(quantize.inputs[2].dtype)
    limits = np.iinfo(container)
    low, high = (
        (int(clip.inputs[1].values), int(clip.inputs[2].values)) if clip is not None else (limits.min, limits.max)
    )
    codes = ActivationCodes(
        scale=np.float32(quantize.inputs[1].values),
        zero_point=int(quantize.inputs[2].values),
        container=container,
        low=low,
        high=high,
    )
    return ActivationPattern(quantize=quantize, clip=clip, shift=shift, dequantize=dequantize, codes=codes)


def _is_ours(quantize: gs.Node, clip: gs.Node | None, shift: int, dequantize: gs.Node) -> bool:
    """Whether a chain has one scale and 8-bit codes, which its two ends understand alike, and limits at both sides."""
    constants = [*quantize.inputs[1:], *dequantize.inputs[1:], *(clip.inputs[1:] if clip is not None else ())]
    wanted = 4 if clip is None else 6
    if len(constants) != wanted or not all(isinstance(each, gs.Constant) and not each.shape for each in constants):
        return False
    scale, zero_point, other_scale, other_zero_point = (np.asarray(each.values) for each in constants[:4])
    return bool(
        zero_point.dtype in (np.int8, np.uint8)
        and (zero_point.dtype, zero_point) == (other_zero_point.dtype, other_zero_point)
        and other_scale == np.float32(scale / 2**shift)
    )


def refine_activation(graph: gs.Graph, pattern: ActivationPattern, shift: int) -> None:
    """Write the codes of an unsigned pattern as codes * 2^shift at scale / 2^shift: the same values, finer steps."""
    codes, dequantize = pattern.dequantize.inputs[0], pattern.dequantize
    bits = gs.Constant(f"{codes.name}.shift", np.asarray(shift, np.uint8))
    shifted = gs.Variable(f"{codes.name}.shifted", dtype=np.uint8)
    graph.nodes.append(gs.Node("BitShift", f"{codes.name}/BitShift", {"direction": "LEFT"}, [codes, bits], [shifted]))
    scale = gs.Constant(f"{codes.name}.shifted.scale", np.asarray(pattern.codes.scale / 2**shift, np.float32))
    dequantize.inputs = [shifted, scale, dequantize.inputs[2]]


def limit_codes(graph: gs.Graph, pattern: ActivationPattern, *, low: int, high: int) -> None:
    """Narrow the codes of a pattern to low..high, in place; a Clip appears where saturation does not do it."""
    codes, quantized = pattern.codes, pattern.quantize.outputs[0]
    bounds = [min(max(bound, codes.low), codes.high) for bound in (low, high)]
    if pattern.clip is None and replace(codes, low=bounds[0], high=bounds[1]).needs_clip:
        clipped = gs.Variable(f"{quantized.name}.clipped", dtype=codes.container)
        redirect_readers(graph, quantized, clipped)
        name = pattern.quantize.name.removesuffix("/QuantizeLinear")
        limits = [gs.Constant(f"{name}.{end}", np.asarray(0, codes.container)) for end in ("low", "high")]
        graph.nodes.append(_node("Clip", name, [quantized, *limits], clipped))
    clip = pattern.clip or sole_reader(graph, quantized)
    if clip is not None and clip.op == "Clip":
        for constant, bound in zip(clip.inputs[1:3], bounds, strict=True):
            constant.values = np.asarray(bound, codes.container)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPattern:
    """A recognised weight: constant `codes`, the constant `factors` that multiply them or None, `dequantize`."""

    codes: gs.Constant
    factors: gs.Constant | None
    dequantize: gs.Node

    @property
    def scale(self) -> gs.Constant:
        """The scale constant of DequantizeLinear."""
        return self.dequantize.inputs[1]

    @property
    def is_blocked(self) -> bool:
        """Whether the scale is per block."""
        return "block_size" in self.dequantize.attrs

    def products(self) -> NDArray[np.int32]:
        """The integers that the network computes with: codes times factors, in the shape of the weight."""
        codes = np.asarray(self.codes.values).astype(np.int32)
        return codes if self.factors is None else codes * np.asarray(self.factors.values)


def match_weight(tensor: gs.Tensor) -> WeightPattern | None:
    """The pattern that ends in `tensor`, or None when that is not a quantized weight."""
    dequantize = producer_of(tensor)
    if dequantize is None or dequantize.op != "DequantizeLinear":
        return None
    source = dequantize.inputs[0]
    if isinstance(source, gs.Constant):
        return WeightPattern(codes=source, factors=None, dequantize=dequantize)
    narrow = producer_of(source)
    product = producer_of(narrow.inputs[0]) if narrow is not None and narrow.op == "Cast" else None
    if product is None or product.op != "Mul":
        return None
    wide, factors = product.inputs
    widen = wide.inputs[0]
    return WeightPattern(codes=widen.inputs[0], factors=factors, dequantize=dequantize)


def multiply_codes(graph: gs.Graph, weight: WeightPattern, factors: NDArray[np.int32]) -> None:
    """Let the network compute with codes * factors; `factors` broadcasts against the weight, products must fit int8."""
    if weight.factors is not None:
        weight.factors.values = np.asarray(weight.factors.values * factors, np.int32)
        return
    name = weight.codes.name
    wide = gs.Variable(f"{name}.wide", dtype=np.int32)
    product = gs.Variable(f"{name}.product", dtype=np.int32)
    narrow = gs.Variable(f"{name}.multiplied", dtype=np.int8)
    constant = gs.Constant(f"{name}.factors", np.asarray(factors, np.int32))
    weight.dequantize.inputs[0] = narrow
    graph.nodes[0:0] = [
        gs.Node("Cast", f"{name}/Widen", {"to": onnx.TensorProto.INT32}, [weight.codes], [wide]),
        gs.Node("Mul", f"{name}/Mul", {}, [wide, constant], [product]),
        gs.Node("Cast", f"{name}/Narrow", {"to": onnx.TensorProto.INT8}, [product], [narrow]),
    ]


def reads_codes(node: gs.Node) -> bool:
    """Whether input 0 of a layer is dequantized right in front of it."""
    producer = producer_of(node.inputs[0])
    return producer is not None and producer.op == "DequantizeLinear"


def producer_of(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes `tensor`, or None for inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def is_known(tensor: gs.Tensor) -> bool:
    """Whether `tensor` is a constant, or computed from constants, which a runtime can fold."""
    waiting, seen = [tensor], set()
    while waiting:
        source = waiting.pop()
        producer = producer_of(source)
        if producer is None:
            if not isinstance(source, gs.Constant):
                return False
        elif producer.op != "Constant" and id(producer) not in seen:
            if not producer.inputs:
                return False
            seen.add(id(producer))
            waiting += producer.inputs
    return True


def sole_reader(graph: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    """The only node that reads `tensor`, or None when there are several, none, or it is a graph output."""
    return None if len(tensor.outputs) != 1 or is_output(graph, tensor) else tensor.outputs[0]


def way_to_codes(graph: gs.Graph, tensor: gs.Tensor) -> list[gs.Node]:
    """The nodes from a layer's output to the QuantizeLinear that onnxruntime makes part of it; empty without one.

    It drops Relu and Clip and moves the QuantizeLinear up through data movement (qdq_propagation.cc).
    """
    way: list[gs.Node] = []
    while (reader := sole_reader(graph, tensor)) is not None:
        way.append(reader)
        if reader.op == "QuantizeLinear":
            return way
        if reader.op not in _PASSED_BY_CODES:
            break
        tensor = reader.outputs[0]
    return []


def output_before_codes(graph: gs.Graph, tensor: gs.Tensor) -> gs.Tensor | None:
    """The first output of the graph on a way as in `way_to_codes`; None where there is no such way, or no output on it.

    onnxruntime rounds the bias of a layer with a QuantizeLinear behind. For that it counts the nodes that read a
    result, and an output of the graph is none (weight_bias_quantization.cc).
    """
    found = None
    while len(tensor.outputs) == 1:
        (reader,) = tensor.outputs
        if found is None and is_output(graph, tensor):
            found = tensor
        if reader.op == "QuantizeLinear":
            return found
        # past an output it moves no QuantizeLinear up through data movement
        ends = (tensor, reader.outputs[0])
        if reader.op not in _PASSED_BY_CODES or (reader.op in _MOVEMENTS and any(is_output(graph, e) for e in ends)):
            break
        tensor = reader.outputs[0]
    return None


def hand_out_copy(graph: gs.Graph, output: gs.Tensor) -> None:
    """Make an output of the graph a copy of the tensor that its readers read."""
    (producer,) = output.inputs
    kept = gs.Variable(f"{output.name}.read", dtype=output.dtype, shape=output.shape)
    producer.outputs = [kept if each is output else each for each in producer.outputs]
    redirect_readers(graph, output, kept)
    graph.nodes.append(gs.Node("Identity", f"{output.name}/Copy", {}, [kept], [output]))


def is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether the graph hands the tensor out."""
    return any(tensor is output for output in graph.outputs)


def redirect_readers(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor, *, keep: Sequence[gs.Node] = ()) -> None:
    """Let every reader of `old` but those of `keep` read `new` instead; a graph output `old` stays as it is."""
    for reader in [node for node in old.outputs if not any(node is each for each in keep)]:
        reader.inputs = [new if tensor is old else tensor for tensor in reader.inputs]


def _numpy_type(dtype: DTypeLike) -> type[np.uint8] | type[np.int8]:
    return np.uint8 if np.dtype(dtype) == np.uint8 else np.int8
