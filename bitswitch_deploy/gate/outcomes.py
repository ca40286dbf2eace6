"""Outcomes of single samples as text: small enough for git, exact, and the same text for the same outcomes."""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[Any]
# The types that metrics keep, by the name in the file.
_TYPES = {"bits": np.bool_, "int32": np.int32, "uint32": np.uint32, "float32": np.float32, "float64": np.float64}
_MAX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRows:
    """An array [n, k]: type, shape, and its bytes, compressed with zlib, in base64.

    `bits` are packed eight to a byte, the first sample in the highest bit; other types are little-endian, and all first
    bytes stand before all second ones, which compresses better.

    Raises:
        ValueError: a shape that cannot be.
    """

    type: Literal["bits", "int32", "uint32", "float32", "float64"]
    shape: tuple[int, int]
    data: str

    def __post_init__(self) -> None:
        n, k = self.shape
        if n < 1 or k < 1 or n * k * np.dtype(_TYPES[self.type]).itemsize > _MAX_BYTES:
            raise ValueError(f"outcomes of shape {list(self.shape)}")


def encode(rows: Rows) -> EncodedRows:
    """The text of rows [n, k]."""
    name = next(name for name, kind in _TYPES.items() if rows.dtype == kind)
    if name == "bits":
        raw = np.packbits(rows).tobytes()
    else:
        little = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))
        raw = little.view(np.uint8).reshape(-1, rows.dtype.itemsize).T.tobytes()
    n, k = rows.shape
    data = base64.b64encode(zlib.compress(raw, 9)).decode()
    return EncodedRows(type=name, shape=(n, k), data=data)  # type: ignore[arg-type]


def decode(encoded: EncodedRows) -> Rows:
    """The rows [n, k] of a text.

    Raises:
        ValueError: the text is damaged, or holds more or less than its shape says.
    """
    dtype = np.dtype(_TYPES[encoded.type])
    cells = encoded.shape[0] * encoded.shape[1]
    size = -(-cells // 8) if encoded.type == "bits" else cells * dtype.itemsize
    try:
        unpacker = zlib.decompressobj()
        # one byte more than there may be: a longer stream is seen without being unpacked
        raw = unpacker.decompress(base64.b64decode(encoded.data, validate=True), size + 1)
    except (binascii.Error, zlib.error) as exc:
        raise ValueError(f"outcomes that cannot be unpacked: {exc}") from exc
    if len(raw) != size:
        raise ValueError(f"outcomes of {len(raw)} bytes or more, where the shape says {size}")
    values = np.frombuffer(raw, np.uint8)
    if encoded.type == "bits":
        return np.unpackbits(values, count=cells).astype(np.bool_).reshape(encoded.shape)
    little = np.ascontiguousarray(values.reshape(dtype.itemsize, -1).T).view(dtype.newbyteorder("<"))
    return np.asarray(little.astype(dtype).reshape(encoded.shape))
