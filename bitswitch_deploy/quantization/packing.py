"""Several codes in a byte, as ONNX lays out `raw_data` of INT4, UINT4, INT2 and UINT2 tensors.

Elements in row-major order, the first in the lowest bits; the last byte is filled up with zeros. Signed codes are
two's complement. Source: ONNX IR, onnx.proto, TensorProto.raw_data; ONNX operators, "4 bit" and "2 bit" types.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CodeArray = npt.NDArray[np.int8] | npt.NDArray[np.uint8]
ByteArray = npt.NDArray[np.uint8]

# widths that bytes hold whole numbers of
PACKED_BITS = (2, 4, 8)


def pack_int4(codes: CodeArray) -> ByteArray:
    """Bytes [ceil(n / 2)] of n codes: int8 in -8..7 (INT4) or uint8 in 0..15 (UINT4).

    Raises:
        ValueError: another dtype, or a code that does not fit.
    """
    return _pack(codes, bits=4)


def pack_int2(codes: CodeArray) -> ByteArray:
    """Bytes [ceil(n / 4)] of n codes: int8 in -2..1 (INT2) or uint8 in 0..3 (UINT2).

    Raises:
        ValueError: another dtype, or a code that does not fit.
    """
    return _pack(codes, bits=2)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class BlockPacking:
    """How the codes of a matrix are packed for MatMulNBits, see `pack_blocks`.

    transposes: the matrix is [inputs, outputs]; else it is [outputs, inputs], as it is packed.
    """

    bits: int
    block_size: int
    transposes: bool

    def shape(self, codes: tuple[int, ...]) -> tuple[int, int, int]:
        """Of the bytes, for a matrix of this shape."""
        outputs, inputs = codes[::-1] if self.transposes else codes
        return outputs, -(-inputs // self.block_size), self.block_size * self.bits // 8

    def pack(self, codes: npt.NDArray[np.int8]) -> ByteArray:
        """The bytes of a matrix of codes."""
        return pack_blocks(codes.T if self.transposes else codes, bits=self.bits, block_size=self.block_size)


def pack_blocks(codes: npt.NDArray[np.int8], *, bits: int, block_size: int) -> ByteArray:
    """Bytes [rows, blocks, block_size * bits / 8] of a matrix of codes [rows, columns], as MatMulNBits reads them.

    Codes are stored without a sign, code + 2^(bits-1); a row is filled up to whole blocks with the code 0. Source:
    onnxruntime, ContribOperators.md, com.microsoft.MatMulNBits.

    Args:
        codes: int8 of `bits` bits. bits: 2, 4 or 8. block_size: columns that share a scale, a multiple of 8.

    Raises:
        ValueError: another dtype, or a code that does not fit.
    """
    if codes.dtype != np.int8:
        raise ValueError(f"codes must be int8, got {codes.dtype}")
    rows, columns = codes.shape
    zero = 2 ** (bits - 1)
    if codes.size and not -zero <= int(codes.min()) <= int(codes.max()) < zero:
        raise ValueError(f"codes of {bits} bits are {-zero}..{zero - 1}, got {codes.min()}..{codes.max()}")
    blocks, per_byte = -(-columns // block_size), 8 // bits
    # a matrix in column-major order is packed in that order: half as many bytes are to be moved afterwards
    by_columns = codes.flags.f_contiguous and not codes.flags.c_contiguous
    stored = np.full((rows, blocks * block_size), zero, np.uint8, order="F" if by_columns else "C")
    # modulo 256, so that -128 and the zero point 128 give 0
    np.add(codes.astype(np.int8, order="A", copy=False).view(np.uint8), np.uint8(zero), out=stored[:, :columns])
    if by_columns:
        packed = stored[:, ::per_byte].copy(order="F")
        for place in range(1, per_byte):
            packed |= stored[:, place::per_byte] << np.uint8(bits * place)
    else:
        # several bytes in one number, the first in the lowest bits; the last of them takes them all in
        wide = stored.view(f"<u{per_byte}")
        for place in range(1, per_byte):
            wide = wide | (stored.view(f"<u{per_byte}") >> ((8 - bits) * place))
        packed = wide.astype(np.uint8)
    return np.ascontiguousarray(packed).reshape(rows, blocks, block_size * bits // 8)


def _pack(codes: CodeArray, *, bits: int) -> ByteArray:
    if codes.dtype not in (np.int8, np.uint8):
        raise ValueError(f"codes must be int8 or uint8, got {codes.dtype}")
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if codes.dtype == np.int8 else (0, 2**bits - 1)
    if codes.size and not low <= int(codes.min()) <= int(codes.max()) <= high:
        raise ValueError(f"{codes.dtype} codes of {bits} bits are {low}..{high}, got {codes.min()}..{codes.max()}")
    flat = codes.reshape(-1).view(np.uint8)
    per_byte = 8 // bits
    packed = np.zeros(-(-flat.size // per_byte), dtype=np.uint8)
    mask = np.uint8(2**bits - 1)
    for position in range(per_byte):
        part = flat[position::per_byte]
        packed[: part.size] |= (part & mask) << np.uint8(bits * position)
    return packed
