"""Read a data set from an .npz file with `x` and, for accuracy, `y`.

`x` integer: raw pixels 0..255, [n, H, W] or [n, H, W, C], preprocessed as the master says, a batch at a time.
`x` floating: ready for the network, [n, ...] with the shape of its input. So is an integer `x` where the network reads
whole numbers, such as words of a text.
`y` integer: class of each sample, [n]; [n, ...] labels each position of a dense output.

Nothing in the file is executed (no pickles), and sizes are checked before an array is read.
"""

from __future__ import annotations

import hashlib
import math
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.errors import DataError
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.validation.samples import DataRequest, Samples

MAX_BYTES = 8 * 2**30
# Photographs do not shrink a hundredfold; a small synthetic set may, and does no harm.
BOMB_BYTES = 2**28
BOMB_RATIO = 100
BLOCK_BYTES = 2**20
# Smaller arrays are read: a mapping would only make a file that is overwritten meanwhile a danger.
MAPPED_BYTES = 2**24
_LOCAL_LENGTHS = 26  # of the zip local file header: where the lengths of name and extra field stand
# Of inputs that are no measured values: words, categories.
_WHOLE = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
# Above any number of classes; keeps labels inside int64 when the number is not known.
MAX_CLASSES = 2**31

# What zipfile and NumPy raise for files that are cut, damaged, encrypted or packed in a way of their own.
BROKEN_ARCHIVE = (
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    # of a header that is no Python literal, or one of other types
    tokenize.TokenError,
    SyntaxError,
    TypeError,
    OverflowError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySource:
    """Samples in memory: raw pixels uint8 [n, H, W, C] with a preprocessing, or inputs as the network reads them."""

    x: npt.NDArray[Any]
    preprocessing: Preprocessing | None

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Samples start..stop-1 as network inputs, [stop - start, ...]."""
        part = self.x[start:stop]
        if self.preprocessing is None:
            return part
        return self.preprocessing.apply(part.astype(np.uint8, copy=False))


def content_sha256(x: npt.NDArray[Any], y: npt.NDArray[Any] | None) -> str:
    """Identity of a data set in arrays, independent of the file that holds it.

    SHA-256 of the line `x <dtype> <shape>`, the bytes of x, and the same for y where there is one; C order,
    little-endian. `x` is uint8 [n, H, W, C] for raw pixels, of the type that the
    network reads otherwise; `y` counts as int64.
    """
    digest = hashlib.sha256()
    for name, array in (("x", x), ("y", None if y is None else y.astype(np.int64))):
        if array is not None:
            digest.update(f"{name} {array.dtype.name} {list(array.shape)}\n".encode())
            digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def read_npz(request: DataRequest) -> Samples:
    """Read the samples that `request` asks for.

    Raises:
        DataError: the file is damaged, too large or hostile, or its arrays do not fit the network.
    """
    arrays = _read_arrays(request.path)
    x, preprocessing = _inputs(request, arrays["x"])
    y = _labels(request, arrays["y"], len(x)) if "y" in arrays else None
    chosen = request.pick(len(x))
    is_part = len(chosen) < len(x)
    if is_part:
        x = x[chosen]
        y = None if y is None else y[chosen]
    return Samples(
        source=ArraySource(x=x, preprocessing=preprocessing),
        y=y,
        n=len(x),
        sha256=content_sha256(x, y),
        file_sha256=None if is_part else _file_sha256(request.path),
    )


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _error(path: Path, *, got: str, allowed: str, do: str) -> DataError:
    return DataError(where=str(path), got=got, allowed=allowed, do=do)


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = _checked_names(path, archive)
            return {name: _array(path, archive, f"{name}.npy") for name in names}
    except BROKEN_ARCHIVE as exc:
        raise _error(
            path,
            got=f"not readable as NumPy arrays ({exc})",
            allowed="a file written by numpy.savez or numpy.savez_compressed",
            do="write it again: numpy.savez(path, x=samples, y=labels)",
        ) from exc


def _array(path: Path, archive: zipfile.ZipFile, member: str) -> npt.NDArray[Any]:
    """One array; it stays in the file, of which pages come and go, where it is stored there as it is."""
    info = archive.getinfo(member)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size < MAPPED_BYTES:
        with archive.open(info) as stream:
            array: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
            return array
    with archive.open(info) as stream:
        shape, fortran_order, dtype = _header(stream)
        header_bytes = stream.tell()
        while stream.read(BLOCK_BYTES):  # to the end, where zipfile compares the checksum
            pass
    with path.open("rb") as file:
        # the local header has name and extra fields of lengths of its own
        file.seek(info.header_offset + _LOCAL_LENGTHS)
        name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
    offset = info.header_offset + _LOCAL_LENGTHS + 4 + name_bytes + extra_bytes + header_bytes
    return np.memmap(path, dtype, mode="r", offset=offset, shape=shape, order="F" if fortran_order else "C")


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    # Version 3 differs from 2 only in the text encoding of field names, which no plain array has.
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read_header(stream)


def _checked_names(path: Path, archive: zipfile.ZipFile) -> list[str]:
    members = {info.filename: info for info in archive.infolist()}
    if "x.npy" not in members:
        found = ", ".join(sorted(name.removesuffix(".npy") for name in members)) or "none"
        raise _error(
            path,
            got=f"no array 'x' (arrays found: {found})",
            allowed="arrays 'x' (samples) and 'y' (classes)",
            do="write it again: numpy.savez(path, x=samples, y=labels)",
        )
    names = [name for name in ("x", "y") if f"{name}.npy" in members]
    for name in names:
        _check_member(path, archive, members[f"{name}.npy"])
    return names


def _check_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Refuse before reading: zipfile yields no more than it declares, NumPy allocates what the header asks."""
    name = info.filename.removesuffix(".npy")
    ratio = info.file_size / max(info.compress_size, 1)
    if info.file_size > MAX_BYTES or (info.file_size > BOMB_BYTES and ratio > BOMB_RATIO):
        raise _error(
            path,
            got=f"array '{name}' unpacks to {info.file_size} bytes, {ratio:.0f} times its size in the file",
            allowed=f"{MAX_BYTES} bytes, and at most {BOMB_RATIO} times above {BOMB_BYTES} bytes",
            do="use fewer samples, or a folder of images per class, which is read a batch at a time",
        )
    with archive.open(info) as stream:
        shape, _, dtype = _header(stream)
        header_bytes = stream.tell()
    if dtype.hasobject or dtype.kind not in "iuf":
        raise _error(
            path,
            got=f"array '{name}' is of type {dtype}",
            allowed="integers or floating point",
            do=f"convert '{name}' to a plain numeric array before saving",
        )
    if math.prod(shape) * dtype.itemsize + header_bytes != info.file_size:
        raise _error(
            path,
            got=f"array '{name}' claims shape {list(shape)} but holds {info.file_size - header_bytes} bytes",
            allowed=f"{math.prod(shape) * dtype.itemsize} bytes",
            do="the file is damaged; write it again: numpy.savez(path, x=samples, y=labels)",
        )


def _inputs(request: DataRequest, x: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Preprocessing | None]:
    if x.ndim == 0 or x.size == 0:
        raise _error(
            request.path,
            got=f"'x' has shape {list(x.shape)}",
            allowed="[n, ...] with n at least 1",
            do="store at least one sample",
        )
    if request.input_spec.dtype in _WHOLE:
        return _whole_numbers(request, x), None
    if x.dtype.kind != "f":
        preprocessing = request.needed_preprocessing()
        return _pixels(request, x, preprocessing), preprocessing
    request.check_sample(x.shape[1:])
    # A float64 beyond float32 becomes infinite here, which the next check reports.
    with np.errstate(over="ignore"):
        inputs = x.astype(np.float32, copy=False)
    bad = _not_finite(inputs)
    if bad.size:
        raise _error(
            request.path,
            got=f"'x' is not finite in {bad.size} of {len(inputs)} samples, first in sample {bad[0]}",
            allowed="finite float32 values",
            do="repair or remove these samples",
        )
    return inputs, None


def _whole_numbers(request: DataRequest, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    wanted = np.dtype(request.input_spec.dtype)
    request.check_sample(x.shape[1:])
    limits = np.iinfo(wanted)
    low, high = x.min(), x.max()
    if x.dtype.kind == "f" or int(low) < limits.min or int(high) > limits.max:
        raise _error(
            request.path,
            got=f"'x' is of type {x.dtype}" if x.dtype.kind == "f" else f"'x' holds numbers from {low} to {high}",
            allowed=f"whole numbers of type {wanted}, as input '{request.input_spec.name}' of the master",
            do=f"store x.astype(numpy.{wanted})",
        )
    return x.astype(wanted, copy=False)


def _not_finite(inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Samples with a value that is not finite, [k]; looked for a block at a time."""
    size = max(1, BLOCK_BYTES * len(inputs) // inputs.nbytes)
    blocks = (inputs[start : start + size] for start in range(0, len(inputs), size))
    finite = [np.isfinite(block).reshape(len(block), -1).all(axis=1) for block in blocks]
    return np.flatnonzero(~np.concatenate(finite))


def _pixels(request: DataRequest, x: npt.NDArray[Any], how: Preprocessing) -> npt.NDArray[np.uint8]:
    channels = how.channels
    pixels = x[..., None] if x.ndim == 3 else x
    if pixels.shape[1:] != (*how.size, channels):
        raise _error(
            request.path,
            got=f"'x' has shape {list(x.shape)}, raw pixels of type {x.dtype}",
            allowed=f"[n, {how.size[0]}, {how.size[1]}, {channels}] ({how.colour}), as the master preprocesses",
            do="resize and convert the images, or store preprocessed samples as float32",
        )
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 255:
        raise _error(
            request.path,
            got=f"'x' holds pixels from {low} to {high}",
            allowed="0 to 255",
            do="store 8-bit pixels, or preprocessed samples as float32",
        )
    request.check_sample((channels, *how.size))
    return pixels.astype(np.uint8, copy=False)


def _labels(request: DataRequest, y: npt.NDArray[Any], n: int) -> npt.NDArray[np.int64]:
    if y.dtype.kind == "f":
        raise _error(
            request.path, got=f"'y' is of type {y.dtype}", allowed="integers", do="store y.astype(numpy.int64)"
        )
    # [n, 1] is what Keras hands out; read as dense labels it would end as "no metric" after all the work.
    if y.ndim == 0 or y.size == 0 or len(y) != n or y.shape[1:] == (1,):
        raise _error(
            request.path,
            got=f"'y' has shape {list(y.shape)} for {n} samples",
            allowed=f"[{n}], one class for each sample",
            do="store y with one entry for each sample (y.reshape(-1) if it is a column)",
        )
    if y.shape[1:] == (request.classes,) and y.min() == 0 and (np.sort(y, axis=1)[:, -2:] == (0, 1)).all():
        raise _error(
            request.path,
            got=f"'y' has shape {list(y.shape)}: one-hot, a row for each sample",
            allowed=f"[{n}], one class for each sample",
            do="store y.argmax(axis=1)",
        )
    classes = MAX_CLASSES if request.classes is None else request.classes
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise _error(
            request.path,
            got=f"'y' holds classes from {low} to {high}",
            allowed=f"0 to {classes - 1}",
            do="count classes from 0 in the order of the network's outputs, or name the master of these classes",
        )
    return y.astype(np.int64, copy=False)
