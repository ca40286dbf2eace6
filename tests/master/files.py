"""Writes master files that `write_master` would refuse, with a digest that is right for what they hold."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors.numpy import save_file

from tests.master.tiny import Array, tiny_skeleton, tiny_spec, tiny_tensors

Document = dict[str, Any]


def tiny_document() -> Document:
    """Give the spec of the tiny master as plain JSON values."""
    document: Document = json.loads(tiny_spec().to_json())
    return document


def write_file(
    path: Path,
    *,
    document: Document | str | None = None,
    tensors: dict[str, Array] | None = None,
    skeleton: onnx.ModelProto | bytes | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write the tiny master with some of its parts replaced; `metadata` replaces single entries."""
    document = tiny_document() if document is None else document
    text = document if isinstance(document, str) else json.dumps(document)
    model = tiny_skeleton() if skeleton is None else skeleton
    stored = dict(tiny_tensors() if tensors is None else tensors)
    serialized = model if isinstance(model, bytes) else model.SerializeToString()
    if serialized and "skeleton" not in stored:
        stored["skeleton"] = np.frombuffer(serialized, dtype=np.uint8)
    entries = {"bitswitch_master": text, "bitswitch_sha256": digest(text, stored), **(metadata or {})}
    save_file({name: np.array(tensor, order="C") for name, tensor in stored.items()}, path, metadata=entries)
    return path


def digest(text: str, tensors: dict[str, Array]) -> str:
    """Compute the digest as the format's documentation says."""
    data = text.encode("utf-8", "surrogatepass")
    for name in sorted(tensors):
        tensor = tensors[name]
        data += f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode() + tensor.tobytes()
    return hashlib.sha256(data).hexdigest()


def changed(document: Document, path: str, value: object) -> Document:
    """Copy a document with the value at `layers.1.name`, say, replaced, or removed when it is `REMOVE`."""
    result = copy.deepcopy(document)
    target: Any = result
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        target = target[part]
    if value is REMOVE:
        del target[last]
    else:
        target[last] = value
    return result


REMOVE = object()
