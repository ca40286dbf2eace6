"""The last step of a lowering with shared weights: the graph reads the master's codes from a file and derives its own.

Not a pass: it works on the finished model, so that every pass sees the codes, and returns bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.derivation import derivation_constants, derivation_nodes
from bitswitch_deploy.graph.external_data import point_to
from bitswitch_deploy.lowering.lower import LoweredGraph
from bitswitch_deploy.master import Master
from bitswitch_deploy.quantization import derive_codes

# Smaller float tensors take as many bytes to point to as they have.
_WORTH_SHARING_BYTES = 1024

Array = npt.NDArray[Any]


class WeightsFile(Protocol):
    """The file that graphs share, as this step sees it."""

    name: str

    def place(self, name: str, tensor: Array) -> int:
        """Offset in bytes of a tensor of the master, which is written when it is first asked for."""

    def append(self, array: Array) -> int:
        """Offset in bytes of an array that belongs to one graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTensor:
    """A tensor of the master that a model reads. bits: the width it is derived to, the master's own where it is not.

    factors: offset and shape of the int32 factors [broadcast against the tensor] that multiply the codes, or None.
    """

    bits: int
    factors: tuple[int, tuple[int, ...]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedModel:
    """A serialized model whose large tensors lie in the file of shared weights.

    data: the model. Its first `derivation_bytes` bytes are a message of their own: the master's codes and the nodes
        that make this model's weights of them. The rest is the model that reads these weights by the names that they
        have in the master, so whoever derives them elsewhere leaves the first part out (messages that follow each
        other merge, says the protobuf encoding).
    tensors: of the file, by name: how the model reads them.
    """

    data: bytes
    derivation_bytes: int
    tensors: Mapping[str, SharedTensor]


def share_weights(
    lowered: LoweredGraph, master: Master, weight_bits: Mapping[str, int], file: WeightsFile
) -> SharedModel:
    """Replace constants of the model, which is used up, by references to the file and operators that derive them.

    Cases: int8 codes of a quantized weight, below the master's width and at it; the factors that multiply them in
    front of their DequantizeLinear; float parameters of 1 KiB or more that are the master's own. Left in the graph:
    everything else, which differs between widths or is small; factors of codes that several nodes read; codes in
    packed types, which cannot be derived from int8 in a graph.

    Args:
        weight_bits: width of each quantized weight of the model, by its name in the master.
        file: is asked for each tensor that the model shares.

    Raises:
        GraphError: codes in the model are not the double rounding of the master, or a tensor that is too large for the
            graph cannot be shared.
    """
    return _Sharing(lowered, master, file).share(weight_bits)


class _Sharing:
    """The work on one model: what stays in it, and what goes into the part that derives."""

    def __init__(self, lowered: LoweredGraph, master: Master, file: WeightsFile) -> None:
        self._model, self._large = lowered.model, lowered.large
        self._master, self._file = master, file
        self._kept = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._derivation = onnx.GraphProto()
        self._moved: set[str] = set()
        self._widths: set[int] = set()

    def share(self, weight_bits: Mapping[str, int]) -> SharedModel:
        graph, tensors = self._model.graph, {}
        for name, tensor in list(self._kept.items()):
            source = self._master.tensors.get(name)
            if source is not None and self._is_shareable(tensor, source, is_weight=name in weight_bits):
                tensors[name] = self._share(tensor, source, weight_bits.get(name, self._master.spec.bits))
            elif name in self._large:
                raise _refusal(name, "too large for the graph, and not int8 codes or floats of the master")
        _replace(graph.initializer, list(self._kept.values()))
        _replace(graph.node, [node for node in graph.node if node.output[0] not in self._moved])
        derivation = self._serialized_derivation()
        data = derivation + self._model.SerializeToString(deterministic=True)
        return SharedModel(data=data, derivation_bytes=len(derivation), tensors=tensors)

    def _share(self, tensor: onnx.TensorProto, source: Array, bits: int) -> SharedTensor:
        name, spec = tensor.name, self._master.spec
        self._check_codes(tensor, source, bits)
        chain = self._factor_chain(name)
        external = _external(name, source, location=self._file.name, offset=self._file.place(name, source))
        if chain is None and bits == spec.bits:
            self._kept[name] = external
            return SharedTensor(bits=bits)
        del self._kept[name]
        external.name = f"{name}.master"
        self._derivation.initializer.append(external)
        codes = external.name
        if bits != spec.bits:
            self._widths.add(bits)
            codes = name if chain is None else f"{name}.codes"
            self._derivation.node.extend(
                derivation_nodes(external.name, codes, from_bits=spec.bits, to_bits=bits, rounding=spec.rounding)
            )
        return SharedTensor(bits=bits, factors=None if chain is None else self._move_factors(name, codes, chain))

    def _is_shareable(self, tensor: onnx.TensorProto, source: Array, *, is_weight: bool) -> bool:
        if is_weight:
            return tensor.data_type == onnx.TensorProto.INT8
        is_large = source.dtype == np.float32 and source.nbytes >= _WORTH_SHARING_BYTES
        return is_large and tuple(tensor.dims) == source.shape and _same_bytes(self._values(tensor), source)

    def _check_codes(self, tensor: onnx.TensorProto, source: Array, bits: int) -> None:
        spec = self._master.spec
        if source.dtype == np.int8:
            expected = derive_codes(source, from_bits=spec.bits, to_bits=bits, rounding=spec.rounding)
            if not _same_bytes(self._values(tensor), expected):
                raise _refusal(tensor.name, f"codes that are not the master's at {bits} bits")

    def _values(self, tensor: onnx.TensorProto) -> Array:
        large = self._large.get(tensor.name)
        return onnx.numpy_helper.to_array(tensor) if large is None else large.load()

    def _factor_chain(self, name: str) -> tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto] | None:
        """Cast to int32, Mul with constant factors and Cast to int8 that read `name` and that nobody else reads."""
        chain: list[onnx.NodeProto] = []
        for op in ("Cast", "Mul", "Cast"):
            readers = self._readers.get(chain[-1].output[0] if chain else name, [])
            if len(readers) != 1 or readers[0].op_type != op:
                return None
            chain.append(readers[0])
        widen, multiply, narrow = chain
        factors = self._kept.get(multiply.input[1])
        narrows = narrow.attribute[0].i == onnx.TensorProto.INT8
        known = factors is not None and factors.data_type == onnx.TensorProto.INT32
        return (widen, multiply, narrow) if narrows and known and len(self._readers[multiply.input[1]]) == 1 else None

    def _move_factors(
        self, name: str, codes: str, chain: tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto]
    ) -> tuple[int, tuple[int, ...]]:
        """Let the derivation multiply; the model reads the products under the name of the weight."""
        widen, multiply, narrow = chain
        factors = onnx.numpy_helper.to_array(self._kept.pop(multiply.input[1]))
        offset = self._file.append(factors)
        self._derivation.initializer.append(
            _external(multiply.input[1], factors, location=self._file.name, offset=offset)
        )
        for reader in self._readers.get(narrow.output[0], []):
            _replace(reader.input, [name if each == narrow.output[0] else each for each in reader.input])
        # of a repeated field only copies can be moved
        for node, source, result in (
            (widen, codes, widen.output[0]),
            (multiply, widen.output[0], multiply.output[0]),
            (narrow, multiply.output[0], name),
        ):
            self._moved.add(node.output[0])
            copy = self._derivation.node.add()
            copy.CopyFrom(node)
            copy.input[0], copy.output[0] = source, result
        return offset, factors.shape

    def _serialized_derivation(self) -> bytes:
        if not self._derivation.initializer:
            return b""
        spec = self._master.spec
        if self._widths:
            constants = derivation_constants(self._widths, from_bits=spec.bits, rounding=spec.rounding)
            self._derivation.initializer.extend(constants)
        return onnx.ModelProto(graph=self._derivation).SerializeToString(deterministic=True)


def _same_bytes(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and np.array_equal(_bytes(one), _bytes(other))


def _bytes(array: Array) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _refusal(name: str, got: str) -> GraphError:
    return GraphError(
        where=f"weight {name}",
        got=got,
        allowed="with shared weights, codes that a graph can derive from the master",
        do="export without --shared-weights",
    )


def _external(name: str, like: Array, *, location: str, offset: int) -> onnx.TensorProto:
    """An initializer with type and shape of `like`, whose bytes lie in a file beside the graph."""
    tensor = onnx.TensorProto(name=name, data_type=onnx.helper.np_dtype_to_tensor_dtype(like.dtype), dims=like.shape)
    point_to(tensor, location=location, offset=offset, size_bytes=like.nbytes)
    return tensor


def _replace(field: Any, values: list[Any]) -> None:
    """Give a repeated field of a message other content, which may be taken from it."""
    copies = [value if isinstance(value, str) else _copy(value) for value in values]
    del field[:]
    field.extend(copies)


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
