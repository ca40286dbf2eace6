"""Weights that stay in the master until a file is written: large networks are never held in memory as graphs.

Up to `EMBEDDED_LIMIT_BYTES` a graph holds its weights and becomes one self-contained file. Above it a constant of the
graph only knows how to make its values: a pass that looks at them has one layer in memory at a time, and a serialized
model holds a mark in their place (an ONNX initializer with external data, see external_data.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from bitswitch_deploy.master import Master
from bitswitch_deploy.quantization import derive_codes
from bitswitch_deploy.tensors import Rounding

Array = np.ndarray[Any, np.dtype[Any]]
Int8Array = npt.NDArray[np.int8]

# protobuf ends at 2 GiB, and some stacks want int8 weights as float32: four times the bytes.
EMBEDDED_LIMIT_BYTES = 256 << 20
# Smaller tensors stay in the graph: scales, biases, norms. Passes read and replace them.
_MIN_LARGE_BYTES = 1 << 10
# Elements made at a time, a multiple of what any packed type has in a byte.
_CHUNK = 4 << 20


class LargeTensor(ABC):
    """Values that are made when they are asked for. data_type: an onnx.TensorProto type."""

    def __init__(self, shape: tuple[int, ...], data_type: int, size_bytes: int) -> None:
        self.shape, self.data_type, self.size_bytes = shape, data_type, size_bytes

    @abstractmethod
    def load(self) -> Array:
        """All values [shape]; a packed type gives its codes as int8."""

    def chunks(self) -> Iterator[Array]:
        """The values as they are stored, in row-major order; each chunk is contiguous."""
        yield self.load()


class DerivedCodes(LargeTensor):
    """Codes of a lower width, int8 [shape of the master's codes]."""

    def __init__(self, codes: Int8Array, *, from_bits: int, to_bits: int, rounding: Rounding) -> None:
        super().__init__(codes.shape, onnx.TensorProto.INT8, codes.nbytes)
        self._codes, self._from_bits, self._to_bits, self._rounding = codes, from_bits, to_bits, rounding

    def load(self) -> Int8Array:
        return self._derive(self._codes)

    def chunks(self) -> Iterator[Int8Array]:
        flat = self._codes.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            yield self._derive(flat[start : start + _CHUNK])

    def _derive(self, codes: Int8Array) -> Int8Array:
        return derive_codes(codes, from_bits=self._from_bits, to_bits=self._to_bits, rounding=self._rounding)


class StoredFloats(LargeTensor):
    """Numbers of the master as they are, float32."""

    def __init__(self, values: npt.NDArray[np.float32]) -> None:
        super().__init__(values.shape, onnx.TensorProto.FLOAT, values.nbytes)
        self._values = values

    def load(self) -> npt.NDArray[np.float32]:
        return np.ascontiguousarray(self._values)


class LargeConstant(gs.Constant):  # type: ignore[misc]
    """A constant whose values are made again each time that they are read, and never kept."""

    def __init__(self, name: str, tensor: LargeTensor) -> None:
        mark = onnx.TensorProto(name=name, dims=tensor.shape, data_type=tensor.data_type)
        mark.data_location = onnx.TensorProto.EXTERNAL
        super().__init__(name, LazyValues(mark), data_location=mark.data_location)
        self.tensor = tensor

    @property
    def values(self) -> Array:
        """The values [shape], in memory as long as the caller holds them."""
        return self.tensor.load()


def is_large(master: Master, *, code_bytes: int = 1) -> bool:
    """Whether the weights of `master` are too many to be held in its graphs, of which a code takes `code_bytes`."""
    sizes = (each.nbytes * (code_bytes if each.dtype == np.int8 else 1) for each in master.tensors.values())
    return sum(sizes) > EMBEDDED_LIMIT_BYTES


def constant_of(name: str, tensor: LargeTensor, *, large: bool) -> gs.Constant:
    """The constant for one parameter of a master: its values, or the way to make them where the master is `large`."""
    if large and tensor.size_bytes >= _MIN_LARGE_BYTES:
        return LargeConstant(name, tensor)
    return gs.Constant(name, tensor.load())


def large_tensors(graph: gs.Graph) -> Mapping[str, LargeTensor]:
    """The large constants of a graph, by name."""
    constants = (tensor for tensor in graph.tensors().values() if isinstance(tensor, LargeConstant))
    return {constant.name: constant.tensor for constant in constants}
