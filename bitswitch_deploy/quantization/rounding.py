"""Codes and scales of a lower width from those of the master (double rounding, arXiv 2502.01199).

    D   = h - l
    W_l = min(round(W_h / 2^D), 2^(l-1) - 1)     int8 in, int8 out
    s_l = s_h * 2^D                              float32, exact

In int8 the sum W_h + 2^(D-1) of a rounding shift overflows for the largest codes. Those are the codes that the
last `min` would clip anyway, so the limit is applied before the sum, where it cannot overflow:

    half_up     (min(w, 2^(h-1) - 1 - 2^(D-1)) + 2^(D-1)) >> D
    half_even   (min(w, 2^(h-1) - 1 - 2^(D-1)) + 2^(D-1) - 1 + ((w >> D) & 1)) >> D

The first equals the hardware form `(w >> D) + ((w >> (D-1)) & 1)` followed by a min, in three passes instead of
five. A tie above the highest code rounds up under both rules (that code is odd), so the limit is the same.

rounding_shift.py computes them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.quantization.rounding_shift import Formula, NumpyShift, compiled_shift
from bitswitch_deploy.tensors import Rounding, code_range

Int8Array = npt.NDArray[np.int8]
Float32Array = npt.NDArray[np.float32]

# Elements that NumPy works on at a time: three int8 blocks of this size stay in the L2 cache of every supported CPU
# (256 KiB on Jetson Orin) and hide the cost of the calls.
BLOCK = 1 << 16


def derive_codes(
    codes: Int8Array, *, from_bits: int, to_bits: int, rounding: Rounding, out: Int8Array | None = None
) -> Int8Array:
    """Codes of `to_bits` bits [any shape] from codes of `from_bits` bits [same shape], both signed.

    `out` may be `codes` itself. Beside the result no more than a few blocks of `BLOCK` bytes are allocated.

    Raises:
        ValueError: a width is outside 2..from_bits, an array is not int8, `out` has another shape, or a code
            does not fit `from_bits`; nothing has been written to `out` then.
    """
    _check_widths(from_bits, to_bits)
    _check_codes(codes, from_bits)
    if out is None:
        out = np.empty_like(codes)
    elif out.dtype != np.int8 or out.shape != codes.shape:
        raise ValueError(f"out must be int8 of shape {codes.shape}, got {out.dtype} of shape {out.shape}")
    if from_bits == to_bits:
        if out is not codes:
            np.copyto(out, codes)
        return out
    formula = Formula.of(from_bits=from_bits, to_bits=to_bits, rounding=rounding)
    shift = compiled_shift(formula) or NumpyShift(formula, block=min(codes.size, BLOCK))
    # overlap_...: codes and result are the same memory or apart, element by element; only otherwise is a copy needed
    chunks = np.nditer(
        (codes, out),
        flags=["external_loop", "buffered", "zerosize_ok", "copy_if_overlap", *shift.iterator_flags],
        op_flags=[
            # NumPy 2.4's stub misspells contig
            ["readonly", "contig", "overlap_assume_elementwise"],  # type: ignore[list-item]
            ["writeonly", "contig", "overlap_assume_elementwise"],  # type: ignore[list-item]
        ],
        buffersize=BLOCK,
    )
    with chunks:
        for source, result in chunks:
            shift.apply(source, result)
    return out


def derive_scale(scale: Float32Array, *, from_bits: int, to_bits: int) -> Float32Array:
    """Scale [any shape] that belongs to the codes of `derive_codes`: scale * 2^(from_bits - to_bits), exact.

    Raises:
        ValueError: a width is outside 2..from_bits, `scale` is not float32, or a result is not finite.
    """
    _check_widths(from_bits, to_bits)
    if scale.dtype != np.float32:
        raise ValueError(f"a scale must be float32, got {scale.dtype}")
    with np.errstate(over="ignore"):
        derived = np.asarray(scale * np.float32(2 ** (from_bits - to_bits)), dtype=np.float32)
    if not np.isfinite(derived).all():
        raise ValueError(f"a scale is not finite at {to_bits} bits: largest at {from_bits} bits is {scale.max()}")
    return derived


def _check_widths(from_bits: int, to_bits: int) -> None:
    code_range(from_bits, signed=True)
    code_range(to_bits, signed=True)
    if to_bits > from_bits:
        raise ValueError(f"{to_bits} bits cannot be derived from {from_bits}: only lower widths can")


def _check_codes(codes: Int8Array, bits: int) -> None:
    if codes.dtype != np.int8:
        raise ValueError(f"codes must be int8, got {codes.dtype}")
    if codes.size == 0 or bits == 8:
        return
    allowed = code_range(bits, signed=True)
    low, high = int(codes.min()), int(codes.max())  # reductions: no mask of the size of the tensor
    if low < allowed.low or high > allowed.high:
        raise ValueError(f"codes of {bits} bits are {allowed.low}..{allowed.high}, got {low}..{high}")
