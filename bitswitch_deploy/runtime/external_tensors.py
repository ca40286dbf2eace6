"""Which tensors of a graph have their data in a file beside it, read from the wire format of protobuf without onnx.

The counterpart of declare_tensors.py; field numbers are those of onnx.proto.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.errors import PackageError

_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_DIMS, _DATA_TYPE, _NAME, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 13, 14
_KEY, _VALUE = 1, 2
_EXTERNAL = 1
_VARINT, _BYTES = 0, 2
# bytes of what is neither
_FIXED = {1: 8, 5: 4}
_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16"}

_Value = int | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalTensor:
    """A tensor in the file `location`, in row-major order from byte `offset` on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    location: str
    offset: int

    @property
    def end_bytes(self) -> int:
        """Where in its file it ends."""
        return self.offset + math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def values(self, data: bytes | bytearray | memoryview) -> npt.NDArray[Any]:
        """A view [shape] of the content of its file.

        Raises:
            ValueError: the file ends before the tensor does.
        """
        return np.frombuffer(data, self.dtype, math.prod(self.shape), self.offset).reshape(self.shape)


def external_tensors(model: bytes | bytearray, *, where: str) -> tuple[ExternalTensor, ...]:
    """Initializers of the main graph with external data; those of a type that NumPy lacks are left out.

    Raises:
        PackageError: `model` is no ONNX model.
    """
    try:
        return tuple(
            tensor
            for graph in _contents(memoryview(model), _MODEL_GRAPH)
            for initializer in _contents(graph, _GRAPH_INITIALIZER)
            if (tensor := _external_tensor(initializer)) is not None
        )
    except (IndexError, KeyError, ValueError) as exc:
        do = "copy or export the package again"
        raise PackageError(where=where, got="its protobuf does not parse", allowed="an ONNX graph", do=do) from exc


def _external_tensor(message: memoryview) -> ExternalTensor | None:
    dims: list[int] = []
    single: dict[int, _Value] = {_DATA_TYPE: 0, _DATA_LOCATION: 0, _NAME: memoryview(b"")}
    place: dict[str, str] = {}
    for number, value in _fields(message):
        if number == _DIMS:
            dims += [value] if isinstance(value, int) else _numbers(value)
        elif number == _EXTERNAL_DATA and isinstance(value, memoryview):
            pair = dict(_fields(value))
            place[_text(pair[_KEY])] = _text(pair[_VALUE])
        elif number in single:
            single[number] = value
    if single[_DATA_LOCATION] != _EXTERNAL or single[_DATA_TYPE] not in _DTYPES:
        return None
    return ExternalTensor(
        name=_text(single[_NAME]),
        dtype=_DTYPES[int(single[_DATA_TYPE])],
        shape=tuple(dims),
        location=place["location"],
        offset=int(place.get("offset", 0)),
    )


def _contents(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The messages in the field `wanted`, in order."""
    for number, value in _fields(message):
        if number == wanted and isinstance(value, memoryview):
            yield value


def _fields(message: memoryview) -> Iterator[tuple[int, _Value]]:
    """(field number, value) of every field of a message, in order: varints as numbers, the rest as bytes."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        if key & 7 == _VARINT:
            number, place = _varint(message, place)
            yield key >> 3, number
            continue
        size, place = _varint(message, place) if key & 7 == _BYTES else (_FIXED[key & 7], place)
        if place + size > len(message):
            raise ValueError("a field that is longer than its message")
        yield key >> 3, message[place : place + size]
        place += size


def _numbers(packed: memoryview) -> list[int]:
    numbers, place = [], 0
    while place < len(packed):
        number, place = _varint(packed, place)
        numbers.append(number)
    return numbers


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number, seven bits a byte, lowest first, and the place behind it."""
    number = shift = 0
    while True:
        byte = message[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
        shift += 7


def _text(value: _Value) -> str:
    return bytes(value).decode() if isinstance(value, memoryview) else ""
