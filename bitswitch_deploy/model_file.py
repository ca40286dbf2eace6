"""The bytes of an ONNX model in a file, which gzip may have compressed; without onnx, for the runtime."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

from bitswitch_deploy.errors import GraphError

SUFFIX = ".onnx"
# `gunzip` takes it away again.
COMPRESSED_SUFFIX = f"{SUFFIX}.gz"

# No protobuf message is longer, and a short file can say to unpack to terabytes.
_MAX_MODEL_BYTES = (2 << 30) - 1
_GZIP = 16 + zlib.MAX_WBITS


def is_compressed(path: Path) -> bool:
    """Whether a file of this name is compressed."""
    return path.name.endswith(COMPRESSED_SUFFIX)


def compressed(model: bytes) -> bytes:
    """The content of a file NAME.onnx.gz: the same for the same model and zlib, without a name or time in it."""
    file = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=9, mtime=0) as stream:
        stream.write(model)
    return file.getvalue()


def model_bytes(content: bytes, path: Path) -> bytes:
    """The serialized model in the content of a file: itself, or what is compressed in it. path: of the file.

    Raises:
        GraphError: the content is damaged, or no protobuf message.
    """
    if not is_compressed(path):
        return content
    unpacker = zlib.decompressobj(_GZIP)
    try:
        model = unpacker.decompress(content, _MAX_MODEL_BYTES + 1)
    except zlib.error as exc:
        raise _refusal(path, f"gzip cannot unpack it: {exc}") from exc
    if len(model) > _MAX_MODEL_BYTES:
        raise _refusal(path, "it unpacks to more than 2 GiB")
    if not unpacker.eof or unpacker.unused_data:
        raise _refusal(path, "bytes behind its end" if unpacker.eof else "cut short")
    return model


def read_model_bytes(path: Path) -> bytes:
    """The serialized model in a file.

    Raises:
        GraphError: the file cannot be read; or as `model_bytes`.
    """
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise _refusal(path, f"not readable: {exc.strerror}") from exc
    return model_bytes(content, path)


def _refusal(path: Path, got: str) -> GraphError:
    do = "copy the file again, or export the model again"
    return GraphError(where=str(path), got=got, allowed="an ONNX file, or one that gzip compressed", do=do)
