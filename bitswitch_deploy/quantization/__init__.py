"""The integer mathematics of a master: NumPy arrays in, NumPy arrays out, no I/O."""

from __future__ import annotations

from bitswitch_deploy.quantization.affine import dequantize, quantize
from bitswitch_deploy.quantization.packing import PACKED_BITS, BlockPacking, pack_blocks, pack_int2, pack_int4
from bitswitch_deploy.quantization.rounding import derive_codes, derive_scale

__all__ = [
    "PACKED_BITS",
    "BlockPacking",
    "dequantize",
    "derive_codes",
    "derive_scale",
    "pack_blocks",
    "pack_int2",
    "pack_int4",
    "quantize",
]
