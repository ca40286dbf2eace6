"""The outer layer of a master: a safetensors file, read through a memory map, written in a stream.

A file is 8 bytes header length, a JSON header, tensor data (https://huggingface.co/docs/safetensors). The safetensors
library checks the header; the tensors are views into a memory map, because the library's NumPy reader copies each of
them. The writer is our own: the library orders metadata at random and wants all tensors in memory, and the same
master must give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError, safe_open

from bitswitch_deploy.atomic_file import atomic_writer
from bitswitch_deploy.errors import MasterError
from bitswitch_deploy.master.spec import MEND_WRITER, READER, check_is_master
from bitswitch_deploy.records import shown

Array = np.ndarray[Any, np.dtype[Any]]

# A layer takes about 600 bytes of header; the largest language models have a few thousand. Parsed, a hostile header
# takes some thirty times its size.
MAX_HEADER_BYTES = 8 * 2**20

COPY_AGAIN = "copy the file again from where it was made and compare the sha256, or export the master again"

CLOSE_WRITER = "read it again when nothing writes to it"

_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I8": np.dtype("i1"), "U8": np.dtype("u1")}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

_FOREIGN_STARTS = (
    (b"PK\x03\x04", "a zip archive (torch.save and numpy.savez write those)"),
    (b"\x80\x02", "a pickle (old torch.save)"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"\x93NUMPY", "a .npy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"GGUF", "a GGUF file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x08", "perhaps an ONNX model"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"{", "JSON text"),
    (b"<", "HTML or XML text"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorFile:
    """What a safetensors file holds: text metadata, read-only tensors over the memory map `data`."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Array]
    data: mmap.mmap | bytes

    @property
    def sha256(self) -> str:
        """Of the file, which is read for it."""
        return hashlib.sha256(self.data).hexdigest()


def read_container(path: Path, *, is_master: bool = False) -> TensorFile:
    """Open a safetensors file; nothing but its header is copied.

    is_master: the file must hold a spec; one of several files of a master holds none.

    Raises:
        MasterError: not a regular file, not safetensors, damaged, without a spec where there must be one, or holding
            other dtypes than float32, int8, uint8.
    """
    data = map_file(path)
    data_start = _check_prologue(path, data)
    try:
        header = READER.load_json(data[8:data_start].decode(), where=f"{path}: header")  # refuses keys given twice
        with safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
            if set(file.keys()) != header.keys() - {"__metadata__"}:
                _refuse(path, "changed while it was read", CLOSE_WRITER)
            # safe_open.offset_keys does this, from safetensors 0.6 on
            names = sorted(file.keys(), key=lambda name: header[name]["data_offsets"])
            slices = [(name, file.get_slice(name)) for name in names]
            layout = [(name, entry.get_dtype(), tuple(entry.get_shape())) for name, entry in slices]
    except UnicodeDecodeError as exc:
        _refuse(path, "the header is not UTF-8 text", COPY_AGAIN, cause=exc)
    except (SafetensorError, OSError) as exc:
        _refuse(path, f"not a valid safetensors file ({exc})", COPY_AGAIN, cause=exc)
    if is_master:
        check_is_master(metadata, source=str(path))
    tensors = dict(_view_tensors(path, data, data_start, layout))
    return TensorFile(metadata=metadata, tensors=tensors, data=data)


def map_file(path: Path) -> mmap.mmap:
    """The content of a regular file that is not empty.

    Raises:
        MasterError: there is no such file, or it cannot be read.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            _refuse(path, "a directory", "name the .safetensors file in it")
        if not stat.S_ISREG(status.st_mode):
            _refuse(path, "not a regular file", "name a .safetensors file")
        if status.st_size == 0:
            _refuse(path, "an empty file", COPY_AGAIN)
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as exc:
        _refuse(path, "no such file", "check the path", cause=exc)
    except (OSError, ValueError) as exc:  # ValueError: a path with a NUL byte, a file that shrank meanwhile
        _refuse(path, f"cannot be read ({exc})", "check the path and its permissions", cause=exc)


def _check_prologue(path: Path, data: mmap.mmap) -> int:
    """Offset of the tensor data, after a look at nothing but the first bytes."""
    size = len(data)
    header_size = int.from_bytes(data[:8], "little")
    if size >= 9 and data[8:9] == b"{" and 8 + header_size <= size and header_size <= MAX_HEADER_BYTES:
        return 8 + header_size
    start = data[:32]
    for magic, what in _FOREIGN_STARTS:
        if start.startswith(magic) and data[8:9] != b"{":
            _refuse(path, f"not a master but {what}", "hand in the .safetensors file; pickles are never opened")
    if size < 9 or 8 + header_size > size:
        _refuse(path, f"cut short: header of {header_size} bytes in a file of {size}", COPY_AGAIN)
    if header_size > MAX_HEADER_BYTES:
        _refuse(path, f"a header of {header_size} bytes, more than {MAX_HEADER_BYTES}", MEND_WRITER)
    _refuse(path, "not a safetensors file: its header is not JSON", COPY_AGAIN)


def _view_tensors(
    path: Path, data: mmap.mmap, data_start: int, layout: list[tuple[str, str, tuple[int, ...]]]
) -> Iterator[tuple[str, Array]]:
    """Tensors in the order of their offsets; the library has checked that they follow each other without gaps."""
    offset = data_start
    for name, dtype_name, shape in layout:
        where = f"{path}: tensor {shown(name)}"
        dtype = _DTYPES.get(dtype_name)
        if dtype is None:
            raise MasterError(where=where, got=f"dtype {dtype_name}", allowed=", ".join(_DTYPES), do=MEND_WRITER)
        count = math.prod(shape)
        if count == 0:
            raise MasterError(where=where, got=f"no elements, shape {shape}", allowed="at least one", do=MEND_WRITER)
        end = offset + count * dtype.itemsize
        if end > len(data):  # only when the file was replaced between the two times that it was opened
            _refuse(path, "changed while it was read", CLOSE_WRITER)
        yield name, np.frombuffer(data, dtype, count=count, offset=offset).reshape(shape)
        offset = end


def _refuse(path: Path, got: str, do: str, *, cause: Exception | None = None) -> NoReturn:
    raise MasterError(where=str(path), got=got, allowed="a bitswitch master (.safetensors)", do=do) from cause


def file_chunks(metadata: Mapping[str, str], tensors: Mapping[str, Array]) -> Iterator[bytes | memoryview]:
    """Bytes of a safetensors file, chunk by chunk; equal contents give equal bytes.

    Tensors are ordered by falling item size, then name, so that each begins at a multiple of its item size.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.nbytes
        dtype = _DTYPE_NAMES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in order:
        yield raw_bytes(tensors[name])


def raw_bytes(tensor: Array) -> memoryview:
    """Bytes [n] of a tensor in row-major order, without a copy where it is contiguous."""
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data


def write_container(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Array]) -> str:
    """Write a safetensors file, replacing `path` in one step, and return its sha256.

    Raises:
        OutputError: the folder is missing or not writable, the disk is full, `path` is a directory.
    """
    digest = hashlib.sha256()
    with atomic_writer(path) as file:
        for chunk in file_chunks(metadata, tensors):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()
