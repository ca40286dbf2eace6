"""Declarations of initializers in the wire format of protobuf, so that no application needs onnx on the device.

The message is a ModelProto that holds nothing but graph.initializer. Messages of one type that follow each other merge
(protobuf encoding, "Last One Wins"), so it is put in front of a graph whose tensors it declares. Field numbers are
those of onnx.proto.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_DIMS, _DATA_TYPE, _NAME, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 13, 14
_KEY, _VALUE = 1, 2
_TYPES = {"float32": 1, "uint8": 2, "int8": 3}
_ITEM_BYTES = {"float32": 4, "uint8": 1, "int8": 1}
_EXTERNAL = 1
_VARINT, _BYTES = 0, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredTensor:
    """An initializer whose values somebody gives when the session is made; offset: where it is said to lie."""

    name: str
    dtype: Literal["float32", "uint8", "int8"]
    shape: tuple[int, ...]
    offset: int


def declare_tensors(tensors: Iterable[DeclaredTensor], *, location: str) -> bytes:
    """Serialized ModelProto that declares `tensors` as initializers in the file `location`."""
    initializers = (_field(_GRAPH_INITIALIZER, _tensor(tensor, location)) for tensor in tensors)
    return _field(_MODEL_GRAPH, b"".join(initializers))


def _tensor(tensor: DeclaredTensor, location: str) -> bytes:
    size_bytes = math.prod(tensor.shape) * _ITEM_BYTES[tensor.dtype]
    place = (("location", location), ("offset", str(tensor.offset)), ("length", str(size_bytes)))
    return b"".join(
        (
            *(_number(_DIMS, size) for size in tensor.shape),
            _number(_DATA_TYPE, _TYPES[tensor.dtype]),
            _field(_NAME, tensor.name.encode()),
            *(
                _field(_EXTERNAL_DATA, _field(_KEY, key.encode()) + _field(_VALUE, value.encode()))
                for key, value in place
            ),
            _number(_DATA_LOCATION, _EXTERNAL),
        )
    )


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; the top bit says that more follow."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
