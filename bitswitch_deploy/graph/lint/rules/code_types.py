"""Rules about the types of codes and how they are stored."""

from __future__ import annotations

from collections.abc import Iterator

from bitswitch_deploy.graph.lint.operators import STANDARD_DOMAINS, type_name
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph
from bitswitch_deploy.graph.lint.qdq_node import QdqNode
from bitswitch_deploy.graph.lint.rule import Breach, Rule
from bitswitch_deploy.graph.lint.rules.scales import scale_type
from bitswitch_deploy.graph.lint.stored_bytes import size_bytes, stored_bytes

# First opset whose Q and DQ take a type.
_OPSET_OF_TYPE = {
    **dict.fromkeys(("float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz"), 19),
    **dict.fromkeys(("int4", "uint4", "int16", "uint16"), 21),
    "float4e2m1": 23,
    **dict.fromkeys(("int2", "uint2"), 25),
}
TENSORRT_TYPES = ("int8", "int4", "float8e4m3fn", "float4e2m1")


class TypeForTensorrt(Rule):
    """Codes that TensorRT cannot hold: int2, uint2, uint4, int16, uint16 and the other FP8 formats.

    uint8 and int32 have rules of their own.
    """

    id = "type-unknown-to-tensorrt"
    severity = "error"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.heads:
            if qdq.code_type not in (None, "uint8", "int32", *TENSORRT_TYPES):
                do = "carry the codes in int8 with the same scale; int4 serves MatMul weights only"
                yield Breach(node=qdq.node, got=f"{qdq.code_type} codes", allowed=", ".join(TENSORRT_TYPES), do=do)


class Int32Bias(Rule):
    """DequantizeLinear of int32 codes, the bias that quantizers for onnxruntime write: TensorRT does not parse it."""

    id = "int32-bias"
    severity = "error"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.dequantizers:
            if qdq.code_type == "int32":
                do = "store the bias as float: int32 codes times their scale"
                yield Breach(node=qdq.node, got="int32 codes", allowed="a float bias", do=do)


class OpsetTooOld(Rule):
    """A Q or DQ that uses more than its opset has.

    Cases: types (FP8 19; int4, uint4, int16, uint16 21; FP4 23; int2, uint2 25), per-axis scales 13, scales other than
    float32 19, block_size and output_dtype 21. Operators of com.microsoft are not bound to it.
    """

    id = "opset-too-old"
    severity = "error"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        opset = graph.graph.opset
        for qdq in graph.nodes:
            if opset is None or qdq.node.domain not in STANDARD_DOMAINS:
                continue
            needed, what = max(_needs(graph, qdq), default=(0, ""))
            if opset < needed:
                do = f"export at opset {needed} or newer, or use what opset {opset} has"
                yield Breach(node=qdq.node, got=f"{what} at opset {opset}", allowed=f"opset {needed} or newer", do=do)


class ByteCount(Rule):
    """A constant of a Q or DQ whose stored bytes are not those of its type and shape.

    Two int4 or four int2 codes share a byte. onnx-graphsurgeon 0.6.1 with onnx 1.23 writes int4 unpacked. Of external
    data, the length that is written counts; without one, the file is long enough, see `read_graph`.
    """

    id = "byte-count"
    severity = "error"
    engines = ("tensorrt", "onnxruntime")

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.nodes:
            for tensor in (qdq.data, qdq.scale, qdq.zero_point):
                constant = None if tensor is None else graph.graph.source(tensor).constant
                if constant is None:
                    continue
                stored, wanted = stored_bytes(constant), size_bytes(constant)
                if None not in (stored, wanted) and stored != wanted:
                    kind = type_name(constant.data_type)
                    yield Breach(
                        node=qdq.node,
                        got=f"{stored} bytes in {constant.name}, {kind} {list(constant.dims)}",
                        allowed=f"{wanted} bytes",
                        do="write packed constants with onnx.helper.make_tensor, which packs them",
                    )


class OddInt4Row(Rule):
    """int4 codes whose last dimension is odd: TensorRT wants whole bytes in each row.

    So the parser of 10.1, and JetPack 6 for all that is known; TensorRT for RTX 1.7 wants an even number of elements.
    """

    id = "odd-int4-row"
    severity = "error"
    engines = ("tensorrt",)

    def breaches(self, graph: QdqGraph) -> Iterator[Breach]:
        for qdq in graph.dequantizers:
            constant = None if qdq.data is None else graph.graph.source(qdq.data).constant
            if constant is not None and qdq.code_type == "int4" and constant.dims and constant.dims[-1] % 2:
                got, do = (
                    f"int4 codes of shape {list(constant.dims)}",
                    "carry this weight in int8, or pad the last axis",
                )
                yield Breach(node=qdq.node, got=got, allowed="an even last dimension", do=do)


def _needs(graph: QdqGraph, qdq: QdqNode) -> Iterator[tuple[int, str]]:
    if qdq.code_type in _OPSET_OF_TYPE:
        yield _OPSET_OF_TYPE[qdq.code_type], f"{qdq.code_type} codes"
    kind = scale_type(graph, qdq)
    if kind not in (None, "float"):
        yield 19, f"{kind} scales"
    if qdq.block_size:
        yield 21, "block_size"
    if qdq.node.integer("output_dtype", 0):
        yield 21, "output_dtype"
    if qdq.scale_values is not None and qdq.scale_values.size > 1:
        yield 13, "a scale for each index of an axis"
