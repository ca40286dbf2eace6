"""The last step of a lowering with shared weights: the graph reads the master's codes from a file and derives its own.

Not a pass: it works on the finished model, so that every pass sees the codes, and returns bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.derivation import derivation_constants, derivation_nodes
from bitswitch_deploy.master import Master
from bitswitch_deploy.quantization import derive_codes

# Smaller float tensors take as many bytes to point to as they have.
_WORTH_SHARING_BYTES = 1024
_MASTER = ".master"

Array = npt.NDArray[Any]
# Puts a tensor of the master, by name, into the file of shared weights and says where: (location, offset in bytes).
Place = Callable[[str, Array], tuple[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedModel:
    """A serialized model whose large tensors lie in the file of shared weights.

    data: the model. Its first `derivation_bytes` bytes are a message of their own: the master's codes and the nodes
        that derive this model's codes from them. The rest is the model that reads the derived codes by their names, so
        whoever derives them elsewhere leaves the first part out (messages that follow each other merge, says the
        protobuf encoding).
    bits: tensor of the file -> width that it is derived to, for every tensor that the model reads; the master's own
        width where it is read as it is stored.
    """

    data: bytes
    derivation_bytes: int
    bits: Mapping[str, int]


def share_weights(model: onnx.ModelProto, master: Master, weight_bits: Mapping[str, int], place: Place) -> SharedModel:
    """Replace constants of `model`, which is changed, by references to the file and operators that derive them.

    Cases: int8 codes of a quantized weight, below the master's width and at it; float parameters of 1 KiB or more that
    are the master's own. Left in the graph: everything else, which differs between widths or is small; codes in
    packed types, which cannot be derived from int8 in a graph.

    Args:
        weight_bits: width of each quantized weight of the model, by its name in the master.
        place: called once for each tensor that the model shares.

    Raises:
        GraphError: codes in the model are not the double rounding of the master.
    """
    kept: list[onnx.TensorProto] = []
    derived: list[onnx.TensorProto] = []
    bits: dict[str, int] = {}
    for tensor in model.graph.initializer:
        name, source = tensor.name, master.tensors.get(tensor.name)
        if source is None or not _is_shareable(tensor, source, is_weight=name in weight_bits):
            kept.append(tensor)
            continue
        bits[name] = weight_bits.get(name, master.spec.bits)
        is_derived = bits[name] != master.spec.bits
        _check_codes(tensor, source, bits[name], master)
        location, offset = place(name, source)
        new_name = f"{name}{_MASTER}" if is_derived else name
        external = _external(new_name, source, location=location, offset=offset)
        (derived if is_derived else kept).append(external)
    rest = onnx.GraphProto(initializer=kept)
    del model.graph.initializer[:]
    model.graph.initializer.extend(rest.initializer)
    derivation = _derivation(derived, bits, master)
    return SharedModel(
        data=derivation + model.SerializeToString(deterministic=True), derivation_bytes=len(derivation), bits=bits
    )


def _is_shareable(tensor: onnx.TensorProto, source: Array, *, is_weight: bool) -> bool:
    if is_weight:
        return tensor.data_type == onnx.TensorProto.INT8
    if source.dtype != np.float32 or source.nbytes < _WORTH_SHARING_BYTES or tuple(tensor.dims) != source.shape:
        return False
    return bool(onnx.numpy_helper.to_array(tensor).tobytes() == source.tobytes())


def _check_codes(tensor: onnx.TensorProto, source: Array, bits: int, master: Master) -> None:
    if source.dtype != np.int8:
        return
    expected = derive_codes(source, from_bits=master.spec.bits, to_bits=bits, rounding=master.spec.rounding)
    if not np.array_equal(onnx.numpy_helper.to_array(tensor), expected):
        raise GraphError(
            where=f"weight {tensor.name}",
            got=f"codes that are not the master's at {bits} bits",
            allowed="with shared weights, codes that a graph can derive from the master",
            do="export without --shared-weights, and report the target's list of passes",
        )


def _external(name: str, like: Array, *, location: str, offset: int) -> onnx.TensorProto:
    """An initializer with type and shape of `like`, whose bytes lie in a file beside the graph."""
    tensor = onnx.TensorProto(name=name, data_type=onnx.helper.np_dtype_to_tensor_dtype(like.dtype), dims=like.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(like.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _derivation(sources: list[onnx.TensorProto], bits: Mapping[str, int], master: Master) -> bytes:
    if not sources:
        return b""
    spec, nodes, widths = master.spec, [], set()
    for source in sources:
        result = source.name.removesuffix(_MASTER)
        widths.add(bits[result])
        nodes += derivation_nodes(
            source.name, result, from_bits=spec.bits, to_bits=bits[result], rounding=spec.rounding
        )
    constants = derivation_constants(widths, from_bits=spec.bits, rounding=spec.rounding)
    graph = onnx.GraphProto(node=nodes, initializer=[*sources, *constants])
    return onnx.ModelProto(graph=graph).SerializeToString(deterministic=True)
