"""A master in several safetensors files, with the index that large models have come to use.

The index `NAME.safetensors.index.json` holds the metadata and says in which file beside it each tensor stands:

    {"metadata": {"total_size": 1000000000, "bitswitch_master": "...", "bitswitch_sha256": "..."},
     "weight_map": {"fc.weight": "NAME-00001-of-00002.safetensors", ...}}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.errors import MasterError, OutputError
from bitswitch_deploy.master.container import (
    COPY_AGAIN,
    Array,
    TensorFile,
    map_file,
    read_container,
    write_container,
)
from bitswitch_deploy.master.spec import MEND_WRITER, READER, check_is_master
from bitswitch_deploy.records import shown

SUFFIX = ".safetensors"
INDEX_SUFFIX = f"{SUFFIX}.index.json"
# The spec has up to 8 MiB in it, as in the header of a single file.
_MAX_INDEX_BYTES = 16 * 2**20


def is_index(path: Path) -> bool:
    """Whether `path` is named as the index of a sharded master."""
    return path.name.endswith(INDEX_SUFFIX)


def master_name(path: Path) -> str:
    """The name of a master without the endings: `net` of `net.safetensors` and of `net.safetensors.index.json`."""
    return path.name.removesuffix(INDEX_SUFFIX) if is_index(path) else path.stem


def read_sharded(path: Path) -> TensorFile:
    """Open the files that an index names; the sha256 is that of the index, which holds the digest of all tensors.

    Raises:
        MasterError: the index or one of its files is missing, damaged, or they contradict each other.
    """
    index, metadata, weight_map = _read_index(path)
    texts = {key: value for key, value in metadata.items() if isinstance(value, str)}
    check_is_master(texts, source=str(path))
    tensors: dict[str, Array] = {}
    for name in _file_names(weight_map, path):
        shard = path.with_name(name)
        found = read_container(shard).tensors
        wanted = {tensor for tensor, place in weight_map.items() if place == name}
        if found.keys() != wanted:
            differing = shown(sorted(found.keys() ^ wanted))
            _refuse(str(shard), f"other tensors than {path.name} says: {differing}", "the tensors of the index")
        tensors |= found
    return TensorFile(metadata=texts, tensors=tensors, data=index)


def master_files(path: Path) -> tuple[Path, ...]:
    """The files that a master consists of: `path`, and of an index the files beside it that it names.

    Raises:
        MasterError: the index is missing or damaged.
    """
    names = _file_names(_read_index(path)[2], path) if is_index(path) else ()
    return (path, *(path.with_name(name) for name in names))


def _read_index(path: Path) -> tuple[bytes, Mapping[str, Any], Mapping[str, Any]]:
    """The bytes of an index, its metadata, and the file of each tensor."""
    index = bytes(map_file(path)[: _MAX_INDEX_BYTES + 1])
    if len(index) > _MAX_INDEX_BYTES:
        _refuse(str(path), f"an index of more than {_MAX_INDEX_BYTES} bytes", "a smaller one")
    try:
        document = READER.load_json(index.decode(), where=str(path))
    except UnicodeDecodeError as exc:
        raise MasterError(where=str(path), got="not UTF-8 text", allowed="a JSON index", do=COPY_AGAIN) from exc
    metadata, weight_map = (_object(document, key, path) for key in ("metadata", "weight_map"))
    return index, metadata, weight_map


def _file_names(weight_map: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    return tuple(sorted({_file_name(value, path) for value in weight_map.values()}))


def write_sharded(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Array], shard_size_bytes: int) -> str:
    """Write the files and at last the index `path`, and return its sha256; equal contents give equal bytes.

    Raises:
        OutputError: the index exists, its name is none that an index may hold, or the folder does not accept a file.
    """
    if not _is_file_name(f"{master_name(path)}-{SUFFIX}"):
        raise OutputError(
            where=str(path),
            got="a name that its files cannot have: an index leads to no others",
            allowed="printable characters without a backslash, the first of which is no dot",
            do="choose another name",
        )
    if path.exists():
        raise OutputError(
            where=str(path),
            got="it exists",
            allowed="a new name: several files cannot be replaced in one step",
            do="choose another name, or delete the index and its files",
        )
    shards = list(_shards(tensors, shard_size_bytes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        shard = f"{master_name(path)}-{number:05}-of-{len(shards):05}{SUFFIX}"
        write_container(path.with_name(shard), {}, {name: tensors[name] for name in names})
        weight_map |= dict.fromkeys(names, shard)
    total = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
    index = {"metadata": {**total, **metadata}, "weight_map": weight_map}
    data = (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
    replace_file(path, data)
    return hashlib.sha256(data).hexdigest()


def _shards(tensors: Mapping[str, Array], shard_size_bytes: int) -> Iterator[list[str]]:
    """Names in their order, each shard as full as it can be; a tensor is never split."""
    names: list[str] = []
    size_bytes = 0
    for name in sorted(tensors):
        if names and size_bytes + tensors[name].nbytes > shard_size_bytes:
            yield names
            names, size_bytes = [], 0
        names.append(name)
        size_bytes += tensors[name].nbytes
    yield names


def _object(document: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    value = document.get(key)
    if not isinstance(value, dict) or not value:
        _refuse(f"{path}: {key}", shown(value), "an object with at least one key")
    return value


def _file_name(value: object, path: Path) -> str:
    """Files stand beside the index: an index must not lead anywhere else."""
    if not _is_file_name(value):
        _refuse(f"{path}: weight_map", shown(value), f"the name of a {SUFFIX} file beside the index")
    return str(value)


def _is_file_name(value: object) -> bool:
    if not isinstance(value, str) or not value.isprintable() or "/" in value or "\\" in value:
        return False
    return value.endswith(SUFFIX) and not value.startswith(".")


def _refuse(where: str, got: str, allowed: str) -> NoReturn:
    raise MasterError(where=where, got=got, allowed=allowed, do=MEND_WRITER)
