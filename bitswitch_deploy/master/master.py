"""A master in memory, and the way from and to its file (format v1, README.md beside this file).

Whatever is in a `Master` has passed every check of this folder, so the layers above need none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from bitswitch_deploy.errors import MasterError
from bitswitch_deploy.master.constant_checks import check_constants
from bitswitch_deploy.master.container import (
    COPY_AGAIN,
    Array,
    file_chunks,
    raw_bytes,
    read_container,
    write_container,
)
from bitswitch_deploy.master.sharded import is_index, read_sharded, write_sharded
from bitswitch_deploy.master.skeleton_checks import check_skeleton, parse_skeleton
from bitswitch_deploy.master.spec import MEND_WRITER, READER, SPEC_KEY, MasterSpec, check_version
from bitswitch_deploy.master.spec_checks import check_spec
from bitswitch_deploy.master.tensor_checks import check_tensors
from bitswitch_deploy.records import shown

DIGEST_KEY = "bitswitch_sha256"
SKELETON = "skeleton"
SHARD_SIZE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Master:
    """One network at every width. Made by `read_master` and `assemble_master`, which check it.

    tensors: by name, read-only; those of `read_master` are views into the file, so it costs no memory to hold one.
    skeleton: the network; its parameters are graph inputs without data. Not to be modified: copy it first.
    sha256: of the file, in hexadecimal.
    """

    spec: MasterSpec
    tensors: Mapping[str, Array]
    skeleton: onnx.ModelProto
    sha256: str


def read_master(path: str | os.PathLike[str]) -> Master:
    """Read and check a master: a .safetensors file, or the *.safetensors.index.json of several.

    No code in it is executed, nothing is unpickled.

    Replace a master that is in use, do not overwrite it in place: the tensors are views into the file.

    Raises:
        MasterError: the file is missing, damaged, of another format or version, or contradicts itself.
    """
    source = str(path)
    container = read_sharded(Path(path)) if is_index(Path(path)) else read_container(Path(path), is_master=True)
    text = container.metadata[SPEC_KEY]
    check_version(READER.load_json(text, where=source), source=source)
    _check_digest(container.metadata, container.tensors, source)
    spec = MasterSpec.from_json(text, source=source)
    tensors = dict(container.tensors)
    skeleton = parse_skeleton(tensors.pop(SKELETON, None), source)
    _check(spec, tensors, skeleton, source)
    return Master(spec=spec, tensors=MappingProxyType(tensors), skeleton=skeleton, sha256=container.sha256)


def assemble_master(*, spec: MasterSpec, tensors: Mapping[str, Array], skeleton: onnx.ModelProto) -> Master:
    """Check the parts of a master, from a trainer for example, and put them together.

    The tensors are not copied. `sha256` is that of the file that `write_master` will write.

    Raises:
        MasterError: the parts contradict each other; the same checks as `read_master`.
    """
    source = "new master"
    own = {name: _read_only(tensor) for name, tensor in tensors.items()}
    spec = MasterSpec.from_json(spec.to_json(), source=source)
    _check(spec, own, skeleton, source)
    digest = hashlib.sha256()
    for chunk in file_chunks(*_file_contents(spec, own, skeleton)):
        digest.update(chunk)
    return Master(spec=spec, tensors=MappingProxyType(own), skeleton=skeleton, sha256=digest.hexdigest())


def write_master(master: Master, path: str | os.PathLike[str], *, shard_size_bytes: int = SHARD_SIZE_BYTES) -> str:
    """Write a master and return the sha256 of the file `path`; equal masters, equal bytes.

    A `path` named *.safetensors.index.json becomes an index of files of about `shard_size_bytes`, and must be new. Any
    other becomes one file, replaced in one step.

    Raises:
        MasterError: the parts contradict each other; the same checks as `read_master`.
        OutputError: the place does not accept a file.
    """
    _check(master.spec, master.tensors, master.skeleton, "master to write")
    metadata, stored = _file_contents(master.spec, master.tensors, master.skeleton)
    if is_index(Path(path)):
        return write_sharded(Path(path), metadata, stored, shard_size_bytes)
    return write_container(Path(path), metadata, stored)


def _check(spec: MasterSpec, tensors: Mapping[str, Array], skeleton: onnx.ModelProto, source: str) -> None:
    check_spec(spec, source)
    shapes = check_skeleton(skeleton, spec, source)
    check_tensors(tensors, spec, shapes, source)
    check_constants(tensors, skeleton.graph, source)


def _file_contents(
    spec: MasterSpec, tensors: Mapping[str, Array], skeleton: onnx.ModelProto
) -> tuple[dict[str, str], dict[str, Array]]:
    """Metadata and tensors as they stand in the file."""
    serialized = np.frombuffer(skeleton.SerializeToString(deterministic=True), dtype=np.uint8)
    stored: dict[str, Array] = {**tensors, SKELETON: serialized}
    text = spec.to_json()
    return {SPEC_KEY: text, DIGEST_KEY: _digest(text, stored)}, stored


def _digest(spec_text: str, tensors: Mapping[str, Array]) -> str:
    """Sha256 over the spec and, in the order of their names, name, dtype, shape and bytes of all tensors."""
    digest = hashlib.sha256(spec_text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype.name} {list(tensor.shape)}\n".encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def _check_digest(metadata: Mapping[str, str], tensors: Mapping[str, Array], source: str) -> None:
    stored = metadata.get(DIGEST_KEY)
    if stored is None:
        raise MasterError(
            where=f"{source}: metadata",
            got=f"no key {DIGEST_KEY}",
            allowed="the digest of the contents",
            do=MEND_WRITER,
        )
    computed = _digest(metadata[SPEC_KEY], tensors)
    if stored != computed:
        raise MasterError(
            where=source,
            got=f"damaged: the contents have sha256 {computed}, the metadata says {shown(stored)}",
            allowed="the contents as they were written",
            do=COPY_AGAIN,
        )


def _read_only(tensor: Array) -> Array:
    view: np.ndarray[Any, np.dtype[Any]] = tensor.view()
    view.setflags(write=False)
    return view
