"""How the weight of a layer lies in the file of a lowered graph: for the passes that write it, and to count its bytes.

No graph is needed: operators and attributes are those of ONNX, whatever holds them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Fewer, larger blocks are faster and smaller, up to 128; below 16 there is none (onnxruntime 1.23 to 1.32).
_MIN_BLOCK, _MAX_BLOCK = 16, 128
_PACKED_BITS = 4
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeBlocks:
    """A matrix of codes as MatMulNBits reads it, each block with a scale of its own.

    inputs, outputs: of the layer. size: inputs in a block, the last one of an output filled up. bits: of a stored code.
    """

    inputs: int
    outputs: int
    size: int
    bits: int

    @property
    def codes_shape(self) -> tuple[int, int, int]:
        """Of the codes, uint8 [outputs, blocks, bytes of a block]."""
        return (*self.scales_shape, self.size * self.bits // 8)

    @property
    def scales_shape(self) -> tuple[int, int]:
        """Of the scales, float32 [outputs, blocks]."""
        return self.outputs, -(-self.inputs // self.size)

    @property
    def size_bytes(self) -> int:
        """Of codes and scales."""
        return math.prod(self.codes_shape) + _FLOAT_BYTES * math.prod(self.scales_shape)


def is_packable(shape: tuple[int, ...]) -> bool:
    """Whether INT4 and INT2 hold a weight: TensorRT refuses an odd last dimension."""
    return shape[-1] % 2 == 0


def block_size_of(shape: tuple[int, ...]) -> int | None:
    """Inputs of a matrix [inputs, outputs] in one of the equal blocks that it is packed in; None where it has none.

    Two blocks or more: TensorRT for RTX 1.7.1 takes a single one for scales of channels, see PackWeights.
    """
    if len(shape) != 2:
        return None
    return next((size for size in (128, 64, 32, 16) if shape[0] % size == 0 and shape[0] > size), None)


def is_plain_product(operator: str, attributes: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
    """Whether a layer is input times matrix (plus bias) and nothing else, which has `code_blocks` on float inputs."""
    factors = (float(attributes.get("alpha", 1.0)), float(attributes.get("beta", 1.0)), attributes.get("transA", 0))
    return operator in ("MatMul", "Gemm") and factors == (1.0, 1.0, 0) and len(shape) == 2


def is_transposed(attributes: Mapping[str, Any]) -> bool:
    """Whether the weight is [outputs, inputs], as a Gemm of torch has it."""
    return bool(attributes.get("transB", 0))


def code_blocks(
    shape: tuple[int, ...],
    *,
    transposed: bool,
    bits: int,
    block_size: int | None = None,
    rounds_inputs: bool = False,
) -> CodeBlocks | None:
    """Blocks for the weight of a plain product with float inputs; None where it stays int8 codes as they are.

    2-bit codes go into 4 bits: onnxruntime 1.23 has no kernel for 2 bits, that of 1.32 is slower. Above 4 bits there is
    a kernel for rounded inputs only.

    Args:
        shape: of the weight. transposed: see `is_transposed`. bits: of a code.
        block_size: inputs that share a scale in the master, None without blocks.
        rounds_inputs: whether inputs may be rounded to 8 bits.
    """
    outputs, inputs = shape if transposed else shape[::-1]
    # the largest that is not mostly padding
    size = block_size or min(_MAX_BLOCK, max(_MIN_BLOCK, 1 << (inputs - 1).bit_length()))
    fits = size >= _MIN_BLOCK and size & (size - 1) == 0
    if not fits or (bits > _PACKED_BITS and not rounds_inputs):
        return None
    return CodeBlocks(inputs=inputs, outputs=outputs, size=size, bits=_PACKED_BITS if bits <= _PACKED_BITS else 8)
