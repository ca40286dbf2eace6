"""The last step of a lowering with shared weights: the graph reads the master's codes from a file and derives its own.

Not a pass: it works on the finished model, so that every pass sees the codes, and returns bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.derivation import DOMAIN, Derivation, call_packing, packing_function
from bitswitch_deploy.graph.external_data import point_to
from bitswitch_deploy.lowering.lower import LoweredGraph
from bitswitch_deploy.lowering.merge_constants import merge_equal_constants
from bitswitch_deploy.lowering.shorten_biases import shorten_biases
from bitswitch_deploy.lowering.unused_names import unused_names
from bitswitch_deploy.master import Master
from bitswitch_deploy.quantization import BlockPacking, derive_codes
from bitswitch_deploy.tensors import BLOCK_SCALES, BLOCKS, MIN_BITS

# It takes about a hundred bytes to point to a tensor.
_WORTH_SHARING_BYTES = 256
# of models with functions
_LOWEST_IR_VERSION = 8
# A DequantizeLinear in front of them is no node of its own in the optimised graph.
_TAKE_CODES = ("Conv", "ConvTranspose", "Gemm")

Array = npt.NDArray[Any]


class WeightsFile(Protocol):
    """The file that graphs share, as this step sees it."""

    name: str

    def place(self, name: str, tensor: Array) -> int:
        """Offset in bytes of a tensor of the master, which is written when it is first asked for."""

    def store(self, array: Array) -> int:
        """Offset in bytes of any other array, which is written unless the same bytes were stored before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTensor:
    """A tensor of the master that a model reads. bits: the width it is derived to; None: it is read as it is.

    Codes are derived by double rounding, scales by multiplication with 2^(width of the master - bits).
    factors: offset and shape of the int8 factors [broadcast against the tensor] that multiply the codes, or None.
    packing: what the model reads is the codes packed, under the name of the tensor and `BLOCKS`; None: the codes.
    """

    bits: int | None
    factors: tuple[int, tuple[int, ...]] | None = None
    packing: BlockPacking | None = None


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

    Cases: int8 codes of a quantized weight, below the master's width and at it, also packed for MatMulNBits; the
    factors that multiply them in front of their DequantizeLinear; of 256 bytes or more float parameters that are the
    master's own or, as scales are, a power of two times it, and int8 codes of layers that training pinned. Of equal
    constants that stay the graph has one, biases are said in fewer bytes (`shorten_biases`), and a DequantizeLinear in
    front of an integer layer has no name. Left in the graph: everything else, which differs between widths or is small;
    factors of codes that several nodes read, or of 128; codes in other packed forms.

    Args:
        weight_bits: width of each quantized weight of the model, by its name in the master.
        file: is asked for each tensor that the model shares.

    Raises:
        GraphError: codes in the model are not the double rounding of the master, a tensor that is too large for the
            graph cannot be shared, or the model is of an IR version without functions.
    """
    shorten_biases(lowered.model.graph, least_bytes=_WORTH_SHARING_BYTES)
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
        self._dequantized = {node.output[0] for node in self._model.graph.node if node.op_type == "DequantizeLinear"}
        self._derivation = onnx.GraphProto()
        self._moved: set[str] = set()
        self._called: set[Derivation] = set()
        self._packings: set[BlockPacking] = set()
        self._factors: dict[tuple[int, tuple[int, ...]], str] = {}
        self._factor_names = unused_names(self._model.graph, "factors")

    def share(self, weight_bits: Mapping[str, int]) -> SharedModel:
        if self._model.ir_version < _LOWEST_IR_VERSION:
            raise GraphError(
                where="shared weights",
                got=f"a graph of IR version {self._model.ir_version}",
                allowed=f"{_LOWEST_IR_VERSION} or later, which has functions",
                do="choose a profile of the target with a later onnx.ir_version, or export without --shared-weights",
            )
        # codes first: in the file they are neighbours, and neighbours are derived in one go
        weights = self._shared([name for name in self._kept if name in weight_bits], weight_bits)
        for name, bits in weight_bits.items():
            if name not in weights and f"{name}{BLOCKS}" in self._kept:
                weights[name] = self._share_packed(name, bits)
                if f"{name}{BLOCK_SCALES}" in self._kept:
                    self._scale_by_its_name(name)
        others = self._shared([name for name in self._kept if name not in weight_bits], weight_bits)
        graph = self._model.graph
        _replace(graph.initializer, list(self._kept.values()))
        _replace(graph.node, [node for node in graph.node if node.output[0] not in self._moved])
        derived = [name for node in self._derivation.node for name in node.output]
        merge_equal_constants(graph, reserved=[*derived, *(each.name for each in self._derivation.initializer)])
        for tensor in graph.initializer:
            self._move_if_others_have_it(tensor)
        for node in graph.node:
            if node.op_type == "DequantizeLinear" and self._is_taken(node.output[0]):
                # nobody meets its name in a profile, and its output tells it
                node.ClearField("name")
        derivation = self._serialized_derivation()
        data = derivation + self._model.SerializeToString(deterministic=True)
        return SharedModel(data=data, derivation_bytes=len(derivation), tensors=weights | others)

    def _shared(self, names: Sequence[str], weight_bits: Mapping[str, int]) -> dict[str, SharedTensor]:
        tensors = {}
        for name in names:
            tensor, source = self._kept[name], self._master.tensors.get(name)
            bits = None if source is None else self._bits_of(tensor, source, weight_bits.get(name))
            if source is not None and bits is not None:
                tensors[name] = self._share(tensor, source, bits)
            elif name in self._large:
                raise _refusal(name, "too large for the graph, and not int8 codes or floats of the master")
        return tensors

    def _bits_of(self, tensor: onnx.TensorProto, source: Array, bits: int | None) -> int | None:
        """The width at which the model has a tensor of the master; None where it has another one."""
        if bits is not None:
            return bits if tensor.data_type == onnx.TensorProto.INT8 else None
        is_large = source.dtype == np.float32 and source.nbytes >= _WORTH_SHARING_BYTES
        if not is_large or tensor.data_type != onnx.TensorProto.FLOAT or tuple(tensor.dims) != source.shape:
            return None
        values, widest = self._values(tensor), self._master.spec.bits
        if _same_bytes(values, source):
            return widest
        with np.errstate(over="ignore", invalid="ignore"):
            lower = range(widest - 1, MIN_BITS - 1, -1)
            return next((each for each in lower if _same_bytes(values, source * _step(widest - each))), None)

    def _share(self, tensor: onnx.TensorProto, source: Array, bits: int) -> SharedTensor:
        name, spec = tensor.name, self._master.spec
        self._check_codes(tensor, source, bits)
        chain = self._factor_chain(name)
        external = _external(name, source, location=self._file.name, offset=self._file.place(name, source))
        if chain is None and bits == spec.bits:
            self._kept[name] = external
            return SharedTensor(bits=None)
        del self._kept[name]
        external.name = f"{name}.master"
        self._derivation.initializer.append(external)
        if source.dtype != np.int8:
            step = f"derive.w{bits}.step"
            if not any(each.name == step for each in self._derivation.initializer):
                self._derivation.initializer.append(onnx.numpy_helper.from_array(_step(spec.bits - bits), step))
            self._derivation.node.add(op_type="Mul", input=[external.name, step], output=[name])
            return SharedTensor(bits=bits)
        derivation = Derivation(from_bits=spec.bits, to_bits=bits, rounding=spec.rounding, multiplies=chain is not None)
        self._called.add(derivation)
        if chain is None:
            self._derivation.node.append(derivation.call(external.name, name))
            return SharedTensor(bits=bits)
        factors = self._move_factors(name, chain)
        self._derivation.node.append(derivation.call(external.name, name, factors=self._factors[factors]))
        return SharedTensor(bits=bits, factors=factors)

    def _share_packed(self, name: str, bits: int) -> SharedTensor:
        """Codes that MatMulNBits reads."""
        packed, source, spec = self._kept[f"{name}{BLOCKS}"], self._master.tensors[name], self._master.spec
        reader = self._readers[packed.name][0]
        attributes = {each.name: each.i for each in reader.attribute}
        codes = derive_codes(source, from_bits=spec.bits, to_bits=bits, rounding=spec.rounding)
        values = self._values(packed)
        ways = (
            BlockPacking(bits=attributes["bits"], block_size=attributes["block_size"], transposes=transposes)
            for transposes in (False, True)
        )
        packing = next((each for each in ways if _same_bytes(each.pack(codes), values)), None)
        if packing is None:
            raise _refusal(name, f"packed codes that are not the master's at {bits} bits")
        del self._kept[packed.name]
        master = _external(f"{name}.master", source, location=self._file.name, offset=self._file.place(name, source))
        self._derivation.initializer.append(master)
        narrow = master.name
        if bits < spec.bits:
            narrow = name
            derivation = Derivation(from_bits=spec.bits, to_bits=bits, rounding=spec.rounding, multiplies=False)
            self._called.add(derivation)
            self._derivation.node.append(derivation.call(master.name, narrow))
        self._packings.add(packing)
        outputs, blocks, size_bytes = packing.shape(source.shape)
        filled = blocks * packing.block_size - source.size // outputs
        pads = self._constant(f"pack.pads.{filled}", (0, 0, 0, filled))
        shape = (outputs, blocks, size_bytes, 8 // packing.bits)
        shape_name = self._constant(f"pack.{'x'.join(map(str, shape))}", shape)
        self._derivation.node.append(call_packing(packing, narrow, packed.name, pads=pads, shape=shape_name))
        return SharedTensor(bits=bits, packing=packing)

    def _constant(self, name: str, values: Sequence[int]) -> str:
        """Name of an int64 constant of the derivation, which has it once."""
        if not any(each.name == name for each in self._derivation.initializer):
            self._derivation.initializer.append(onnx.numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name

    def _scale_by_its_name(self, name: str) -> None:
        """Let the scales that MatMulNBits has for each block be those of the master, which may lie the other way."""
        scale_name, blocks = f"{name}.scale", self._kept[f"{name}{BLOCK_SCALES}"]
        source, values = self._master.tensors.get(scale_name), self._values(blocks)
        if source is None or scale_name in self._kept:
            return
        for operator, stored in (("Identity", values), ("Transpose", values.T)):
            scale = onnx.numpy_helper.from_array(np.ascontiguousarray(stored), scale_name)
            if self._bits_of(scale, source, None) is not None:
                del self._kept[blocks.name]
                self._kept[scale_name] = scale
                self._model.graph.node.insert(0, onnx.helper.make_node(operator, [scale_name], [blocks.name]))
                return

    def _move_if_others_have_it(self, tensor: onnx.TensorProto) -> None:
        """Let codes of layers that are pinned lie in the file: they are the same at every width."""
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.data_type != onnx.TensorProto.INT8:
            return
        values = onnx.numpy_helper.to_array(tensor)
        # those of one value take next to nothing in a compressed graph
        if values.nbytes >= _WORTH_SHARING_BYTES and np.any(values != values.flat[0]):
            offset = self._file.store(values)
            tensor.CopyFrom(_external(tensor.name, values, location=self._file.name, offset=offset))

    def _is_taken(self, name: str) -> bool:
        """Whether only layers read it whose bias is in codes as well, as that of those that run in integers."""
        readers = self._readers.get(name, [])
        return bool(readers) and all(
            node.op_type in _TAKE_CODES and len(node.input) == 3 and self._dequantized.issuperset(node.input)
            for node in readers
        )

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
        if not narrows or factors is None or factors.data_type != onnx.TensorProto.INT32:
            return None
        if len(self._readers[multiply.input[1]]) != 1:
            return None
        values, limits = onnx.numpy_helper.to_array(factors), np.iinfo(np.int8)
        return (widen, multiply, narrow) if limits.min <= values.min() and values.max() <= limits.max else None

    def _move_factors(
        self, name: str, chain: tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto]
    ) -> tuple[int, tuple[int, ...]]:
        """Let the derivation multiply; the model reads the products under the name of the weight."""
        multiply, narrow = chain[1:]
        factors = onnx.numpy_helper.to_array(self._kept.pop(multiply.input[1])).astype(np.int8)
        place = self._file.store(factors), factors.shape
        if place not in self._factors:
            self._factors[place] = next(self._factor_names)
            external = _external(self._factors[place], factors, location=self._file.name, offset=place[0])
            self._derivation.initializer.append(external)
        for reader in self._readers.get(narrow.output[0], []):
            _replace(reader.input, [name if each == narrow.output[0] else each for each in reader.input])
        self._moved.update(node.output[0] for node in chain)
        return place

    def _serialized_derivation(self) -> bytes:
        if not self._derivation.initializer:
            return b""
        model = onnx.ModelProto(graph=self._derivation)
        if self._called or self._packings:
            opset = next(each.version for each in self._model.opset_import if not each.domain)
            model.functions.extend(each.function(opset=opset) for each in sorted(self._called))
            # blocks of several sizes are packed by one function
            functions = {(each.bits, each.transposes): each for each in sorted(self._packings)}
            model.functions.extend(packing_function(each, opset=opset) for each in functions.values())
            model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
        return model.SerializeToString(deterministic=True)


def _step(places: int) -> npt.NDArray[np.float32]:
    """2^places, a scalar: the step of a scale that many bits further down."""
    return np.asarray(2.0**places, np.float32)


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
