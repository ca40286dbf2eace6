"""Words about quantized tensors that every layer shares. Frozen values, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

MIN_BITS = 2
MAX_BITS = 8
# behind the name of a weight: its codes in blocks, as MatMulNBits reads them, and the scale of each block
BLOCKS = ".blocks"
BLOCK_SCALES = ".block_scales"


class Rounding(str, Enum):
    """What happens to a tie when a code is rounded to a lower width (a property of the master)."""

    HALF_UP = "half_up"
    HALF_EVEN = "half_even"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeRange:
    """The integers that a width may use, both ends included."""

    low: int
    high: int


def code_range(bits: int, *, signed: bool) -> CodeRange:
    """Codes of `bits` bits: -2^(b-1) .. 2^(b-1)-1 when signed, 0 .. 2^b-1 when not.

    Raises:
        ValueError: `bits` is outside 2..8.
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits must be in {MIN_BITS}..{MAX_BITS}, got {bits}")
    if signed:
        return CodeRange(low=-(2 ** (bits - 1)), high=2 ** (bits - 1) - 1)
    return CodeRange(low=0, high=2**bits - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Granularity:
    """How many elements share one scale, in the terms of ONNX DequantizeLinear.

    per_tensor: one scalar scale, shape [].
    per_channel: one scale for each index of `axis`, shape [d_axis].
    per_block: one scale for each run of `block_size` elements along `axis`, same rank as the tensor.
    """

    kind: Literal["per_tensor", "per_channel", "per_block"]
    axis: int | None = None
    block_size: int | None = None

    def __post_init__(self) -> None:
        wants_axis = self.kind != "per_tensor"
        wants_block = self.kind == "per_block"
        if wants_axis != (self.axis is not None) or wants_block != (self.block_size is not None):
            raise ValueError(f"{self.kind} does not go with axis={self.axis}, block_size={self.block_size}")
        if self.axis is not None and self.axis < 0:
            raise ValueError(f"axis must not be negative, got {self.axis}")
        if self.block_size is not None and self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {self.block_size}")

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the scale that belongs to a tensor of `shape`.

        Raises:
            ValueError: `axis` is not an axis of the tensor.
        """
        if self.axis is None:
            return ()
        if self.axis >= len(shape):
            raise ValueError(f"axis {self.axis} does not exist in a tensor of shape {shape}")
        if self.block_size is None:
            return (shape[self.axis],)
        blocks = -(-shape[self.axis] // self.block_size)
        return (*shape[: self.axis], blocks, *shape[self.axis + 1 :])


PER_TENSOR = Granularity(kind="per_tensor")


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthAssignment:
    """Which width each layer computes at: `default` bits, but for the layers named in `overrides`.

    A uniform width is the assignment without overrides.
    """

    default: int
    overrides: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        for bits in (self.default, *(bits for _, bits in self.overrides)):
            code_range(bits, signed=True)
        names = [name for name, _ in self.overrides]
        if len(names) != len(set(names)):
            raise ValueError(f"a layer is named twice: {sorted(names)}")

    def bits_of(self, layer: str) -> int:
        """Width of one layer, in bits."""
        return dict(self.overrides).get(layer, self.default)

    @property
    def label(self) -> str:
        """Name of this assignment in file names and tables: `w4`, or `mixed` with overrides."""
        return "mixed" if self.overrides else f"w{self.default}"
