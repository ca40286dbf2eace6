"""Between real numbers and codes, zero-point 0, as ONNX QuantizeLinear and DequantizeLinear compute it.

    q = clip(round_half_even(x / s), low, high)      division in float32
    x = q * s                                        product in float32

A scale is shared as `Granularity` says: by the tensor, by an index of an axis, or by runs of `block_size` elements
along an axis, the last of which may be shorter.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.tensors import PER_TENSOR, Granularity, code_range

Float32Array = npt.NDArray[np.float32]
CodeArray = npt.NDArray[np.int8] | npt.NDArray[np.uint8]


def quantize(
    x: Float32Array, scale: Float32Array, *, bits: int, signed: bool, granularity: Granularity = PER_TENSOR
) -> CodeArray:
    """Codes [shape of x], int8 when signed, uint8 when not, of `x` with scales [granularity.scale_shape(x.shape)].

    Infinite values become the ends of the range, as in ONNX.

    Raises:
        ValueError: `bits` is outside 2..8, an array is not float32, the scale has another shape or is not finite
            and positive, or `x` holds NaN, for which ONNX defines no code.
    """
    allowed = code_range(bits, signed=signed)
    if x.dtype != np.float32:
        raise ValueError(f"x must be float32, got {x.dtype}")
    spread = _spread_scale(scale, x.shape, granularity)
    with np.errstate(over="ignore", invalid="ignore"):
        codes = np.asarray(x / spread)
    np.rint(codes, out=codes)
    np.clip(codes, allowed.low, allowed.high, out=codes)
    if codes.size and np.isnan(codes.min()):  # min propagates NaN
        raise ValueError("x holds NaN, which has no code")
    return codes.astype(np.int8) if signed else codes.astype(np.uint8)


def dequantize(codes: CodeArray, scale: Float32Array, *, granularity: Granularity = PER_TENSOR) -> Float32Array:
    """Real numbers [shape of codes], float32, of int8 or uint8 codes with scales [granularity.scale_shape(...)].

    Raises:
        ValueError: the codes are not int8 or uint8, or the scale is not as in `quantize`.
    """
    if codes.dtype not in (np.int8, np.uint8):
        raise ValueError(f"codes must be int8 or uint8, got {codes.dtype}")
    spread = _spread_scale(scale, codes.shape, granularity)
    # an array in any case: NumPy makes a scalar of what has no axes
    return np.asarray(np.multiply(codes, spread, dtype=np.float32))


def _spread_scale(scale: Float32Array, shape: tuple[int, ...], granularity: Granularity) -> Float32Array:
    """Scale in a shape that broadcasts against `shape`."""
    expected = granularity.scale_shape(shape)
    if scale.dtype != np.float32 or scale.shape != expected:
        raise ValueError(f"scale must be float32 of shape {expected}, got {scale.dtype} of shape {scale.shape}")
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError("scale must be finite and positive")
    axis = granularity.axis
    if axis is None:
        return scale
    if granularity.block_size is None:
        return scale.reshape([-1 if index == axis else 1 for index in range(len(shape))])
    repeated = np.repeat(scale, min(granularity.block_size, shape[axis]), axis=axis)
    return repeated[(slice(None),) * axis + (slice(shape[axis]),)]
