"""PackWeights: narrow weight codes go into the narrow type that the target reads."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.ir.tensor import LazyValues

from bitswitch_deploy.graph.large_tensors import LargeConstant, LargeTensor
from bitswitch_deploy.graph.qdq import WeightPattern, match_weight, reads_codes
from bitswitch_deploy.lowering.lowering_pass import LoweringPass
from bitswitch_deploy.lowering.weight_storage import block_size_of, is_packable
from bitswitch_deploy.quantization import pack_int2, pack_int4

# onnx has INT2 since 1.20, and only opset 25 and newer read it
_ONNX_TYPE: dict[str, int] = {"int4": onnx.TensorProto.INT4, "int2": getattr(onnx.TensorProto, "INT2", 0)}
_PACK = {"int4": pack_int4, "int2": pack_int2}


class PackWeights(LoweringPass):
    """Store codes of layers with float inputs as INT4 or INT2 where the target's container table says so. Exact.

    The packed initializer is made here and handed through untouched: onnx-graphsurgeon 0.6.1 writes one byte per
    INT4 value. Cases: the table names int8 (nothing to do), int4 or int2. The scales of a matrix are written once for
    each block of inputs, all equal: TensorRT for RTX 1.7.1 multiplies by such codes as they are, and makes a float
    matrix of others in front of the product. Left in int8: layers whose input is in codes, as it would make int8 of
    the weight in every run; and, recorded, an odd last dimension, which TensorRT refuses for packed types; codes with
    factors, whose products may leave the narrow type.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Pack every weight that can be; see the class for the cases."""
        modified = False
        for node in graph.nodes:
            weight = match_weight(node.inputs[1]) if len(node.inputs) > 1 else None
            if weight is None or weight.codes.name not in self.context.weight_bits or reads_codes(node):
                continue
            bits = self.context.weight_bits[weight.codes.name]
            container = self.context.target.quantization.weight_container(node.op, bits)
            if container != "int8" and np.dtype(weight.codes.dtype) == np.int8:
                modified |= self._pack(weight, container, as_blocks=node.op == "MatMul")
        return modified

    def _pack(self, weight: WeightPattern, container: str, *, as_blocks: bool) -> bool:
        codes, dequantize = weight.codes, weight.dequantize
        shape = tuple(codes.shape)
        if not is_packable(shape):
            self.record(codes.name, f"kept in int8: {container} needs an even last dimension, got {shape}", exact=True)
            return False
        if weight.factors is not None:
            self.record(
                codes.name, f"kept in int8: its signs or steps were changed, which {container} cannot hold", exact=True
            )
            return False
        scale, zero_point = dequantize.inputs[1:3]
        block_size = block_size_of(shape) if as_blocks and not weight.is_blocked else None
        if block_size is not None:
            dequantize.attrs |= {"axis": 0, "block_size": block_size}
            scale.values = np.array(np.broadcast_to(scale.values, (shape[0] // block_size, shape[1])), np.float32)
        if isinstance(codes, LargeConstant):
            dequantize.inputs[0] = LargeConstant(codes.name, _PackedCodes(codes.tensor, container))
        else:
            dequantize.inputs[0] = _packed_constant(codes.name, np.asarray(codes.values, np.int8), container)
        dequantize.inputs[2] = _packed_constant(zero_point.name, np.zeros(scale.values.shape, np.int8), container)
        return True


class _PackedCodes(LargeTensor):
    """Several codes of a large tensor in a byte."""

    def __init__(self, codes: LargeTensor, container: str) -> None:
        per_byte = 8 // int(container.removeprefix("int"))
        super().__init__(codes.shape, _ONNX_TYPE[container], -(-math.prod(codes.shape) // per_byte))
        self._codes, self._pack = codes, _PACK[container]

    def load(self) -> NDArray[np.int8]:
        return self._codes.load()

    def chunks(self) -> Iterator[NDArray[np.uint8]]:
        yield from map(self._pack, self._codes.chunks())


def _packed_constant(name: str, codes: NDArray[np.int8], container: str) -> gs.Constant:
    raw = np.asarray(_PACK[container](codes)).tobytes()
    tensor = onnx.helper.make_tensor(name, _ONNX_TYPE[container], codes.shape, raw, raw=True)
    return gs.Constant(name, LazyValues(tensor))
