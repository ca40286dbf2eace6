"""The two formulas of rounding.py on contiguous chunks: compiled, or by NumPy where the wheel has no compiled library.

Why C of our own (rounding_shift.c), and not numba: NumPy makes three passes over a block for half_up and six for
half_even, half and a quarter of the speed of memcpy, and we found no arrangement of its functions that needs fewer.
numba compiles to what the C is, but brings 200 MB of LLVM to a board, and to import and compile takes longer (1 s)
than it saves on a billion weights (0.2 s). The C costs neither, needs no Python headers, and serves every Python.

`hatch_build.py` compiles it when a wheel is built where there is a C compiler. It is used once it has derived every
code of every pair of widths as NumPy does: a library left from other sources, or of a faulty compiler, must not decide
what is deployed. `tools/bench/derive_weights.py` measures both forms.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.tensors import MAX_BITS, MIN_BITS, Rounding

Int8Array = npt.NDArray[np.int8]

# "lib": Python would take a rounding_shift.so for this module
LIBRARY = Path(__file__).with_name("librounding_shift.so")

# Addresses of the codes and of the derived codes, how many, distance, limit, whether half_even.
_CompiledFunction = Callable[[int, int, int, int, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Formula:
    """The constants of rounding.py for one pair of widths, from above to below."""

    distance: int
    addend: int
    limit: int
    is_half_even: bool

    @classmethod
    def of(cls, *, from_bits: int, to_bits: int, rounding: Rounding) -> Formula:
        """The constants; `from_bits` is above `to_bits`."""
        half = 2 ** (from_bits - to_bits - 1)
        is_half_even = rounding is Rounding.HALF_EVEN
        return cls(
            distance=from_bits - to_bits,
            addend=half - 1 if is_half_even else half,
            limit=2 ** (from_bits - 1) - 1 - half,
            is_half_even=is_half_even,
        )


class CompiledShift:
    """The formula on chunks of any size, in one pass."""

    iterator_flags: tuple[Literal["growinner"], ...] = ("growinner",)  # what is contiguous comes as one chunk

    def __init__(self, formula: Formula, function: _CompiledFunction) -> None:
        self._constants = (formula.distance, formula.limit, formula.is_half_even)
        self._function = function

    def apply(self, source: Int8Array, result: Int8Array) -> None:
        """Write the derived codes [n] of `source` [n] to `result` [n], which may be the same memory."""
        self._function(source.ctypes.data, result.ctypes.data, source.size, *self._constants)


class NumpyShift:
    """The formula on chunks of at most `block` codes, in three passes (half_up) or six (half_even)."""

    iterator_flags: tuple[Literal["growinner"], ...] = ()

    def __init__(self, formula: Formula, *, block: int) -> None:
        self._distance = np.int8(formula.distance)
        self._addend = np.int8(formula.addend)
        # An array, not a scalar: NumPy 2.4 has no vector code for minimum(array, scalar) in int8 (ten times slower).
        self._limit = np.full(block, formula.limit, dtype=np.int8)
        self._is_half_even = formula.is_half_even
        self._odd = np.empty(block if formula.is_half_even else 0, dtype=np.int8)

    def apply(self, source: Int8Array, result: Int8Array) -> None:
        """As `CompiledShift.apply`."""
        limit = self._limit[: source.size]
        if not self._is_half_even:
            np.minimum(source, limit, out=result)
            np.add(result, self._addend, out=result)
            np.right_shift(result, self._distance, out=result)
            return
        # `source` is read to the end before `result`, perhaps the same memory, is written.
        odd = self._odd[: source.size]
        np.right_shift(source, self._distance, out=odd)
        np.bitwise_and(odd, np.int8(1), out=odd)
        np.minimum(source, limit, out=result)
        np.add(result, self._addend, out=result)
        np.add(result, odd, out=result)
        np.right_shift(result, self._distance, out=result)


def compiled_shift(formula: Formula) -> CompiledShift | None:
    """The compiled form, or None where there is none that can be relied on."""
    function = _checked_function(LIBRARY)
    return None if function is None else CompiledShift(formula, function)


@functools.cache
def _checked_function(library: Path) -> _CompiledFunction | None:
    try:
        function = ctypes.CDLL(str(library)).rounding_shift
    except (OSError, AttributeError):
        return None
    function.restype = None
    address = ctypes.c_void_p
    function.argtypes = [address, address, ctypes.c_size_t, ctypes.c_int, ctypes.c_int8, ctypes.c_int]
    return function if _equals_numpy(function) else None


def _equals_numpy(function: _CompiledFunction) -> bool:
    codes = np.arange(-128, 128).astype(np.int8)
    compiled, expected = np.empty_like(codes), np.empty_like(codes)
    pairs = itertools.combinations(range(MAX_BITS, MIN_BITS - 1, -1), 2)
    for (from_bits, to_bits), rounding in itertools.product(pairs, Rounding):
        formula = Formula.of(from_bits=from_bits, to_bits=to_bits, rounding=rounding)
        CompiledShift(formula, function).apply(codes, compiled)
        NumpyShift(formula, block=codes.size).apply(codes, expected)
        if not np.array_equal(compiled, expected):
            return False
    return True
