"""The graphs of a package, as a session takes them: in files of their own, or on weights that all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.errors import PackageError
from bitswitch_deploy.model_file import model_bytes
from bitswitch_deploy.package.manifest import FileEntry, Manifest
from bitswitch_deploy.package.weights_index import (
    ALIGNMENT_BYTES,
    NOT_DERIVED,
    SharedGraph,
    StoredTensor,
    WeightsIndex,
)
from bitswitch_deploy.quantization import BlockPacking, derive_codes
from bitswitch_deploy.runtime.checked_file import CheckedFile
from bitswitch_deploy.runtime.declare_tensors import DeclaredTensor, declare_tensors
from bitswitch_deploy.runtime.external_tensors import ExternalTensor, external_tensors
from bitswitch_deploy.tensors import BLOCKS

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadableGraph:
    """What a session is made of: the graph, and values of the tensors whose data it says to be in a file."""

    model: bytes | Path
    initializers: Mapping[str, Array] = field(default_factory=dict)


class OwnGraphs:
    """Graphs that hold their own weights, or have them in a file beside them. Nothing is kept in memory here.

    onnxruntime reads the graphs. What lies beside them is read here: it would map that file, and a file that is cut
    short while it is mapped kills the process.

    Raises:
        CheckFailedError: a file is not as it was exported.
    """

    def __init__(self, package: Path, manifest: Manifest, *, trust: bool) -> None:
        self._graphs: dict[str, CheckedFile] = {}
        self._data: dict[str, list[CheckedFile]] = {}
        for entry in manifest.files:
            if entry.role == "graph":
                self._graphs[entry.name] = CheckedFile(package, entry, trust=trust)
            elif entry.role == "weights":
                self._data.setdefault(entry.name, []).append(CheckedFile(package, entry, trust=trust))

    def get(self, label: str) -> LoadableGraph:
        """The graph of one width, and its tensors that lie beside it.

        Raises:
            CheckFailedError: a file is not the one that was loaded any more.
            PackageError: the graph is no ONNX, or its tensors do not fit the file beside it.
        """
        self.check(label)
        graph = self._graphs[label]
        if label not in self._data:
            return LoadableGraph(model=graph.path)
        data = {file.path.name: file.read() for file in self._data[label]}
        tensors = external_tensors(graph.read(), where=str(graph.path))
        try:
            values = {each.name: each.values(data[each.location]) for each in tensors}
        except (KeyError, ValueError, OverflowError) as exc:
            raise _misfit(str(graph.path), f"tensors that {', '.join(data)} does not hold") from exc
        return LoadableGraph(model=graph.path, initializers=values)

    def check(self, label: str) -> None:
        """Make sure that the graph is still the one that was loaded.

        Raises:
            CheckFailedError: it is not.
        """
        self._graphs[label].check()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """The path of a graph, for messages, and its part of the index."""

    path: Path
    index: SharedGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """model: the graph with declarations of what is derived for it. plain: what it reads as the file has it."""

    model: bytes
    plain: tuple[ExternalTensor, ...]


class SharedGraphs:
    """Graphs that read one weights file. What a width derives is derived when it is asked for, in NumPy or C.

    That is several times faster than the operators in the graph, which are left out. The small graphs are kept in
    memory, and unpacked when they are first asked for; the weights stay in the file, which is to say in the page cache
    of the system, once for all processes.

    Raises:
        CheckFailedError: a file is not as it was exported.
        PackageError: the index does not fit the package.
    """

    def __init__(self, package: Path, manifest: Manifest, index_entry: FileEntry, *, trust: bool) -> None:
        index_file = CheckedFile(package, index_entry, trust=trust)
        where = str(index_file.path)
        self.index = WeightsIndex.from_json(index_file.read().decode("utf-8", "replace"), where=where)
        entries = {entry.path: entry for entry in manifest.files}
        if self.index.file not in entries or self.index.end_bytes > entries[self.index.file].size_bytes:
            raise _misfit(where, f"tensors up to byte {self.index.end_bytes:,} of {self.index.file!r}")
        self._weights = CheckedFile(package, entries[self.index.file], trust=trust)
        self._size_bytes = entries[self.index.file].size_bytes
        self._graphs: dict[str, _Stored] = {}
        # of graphs that were not asked for yet
        self._contents: dict[str, bytes] = {}
        self._prepared: dict[str, _Prepared] = {}
        for entry in manifest.graphs:
            graph = self.index.graph(entry.path)
            if graph is None:
                raise _misfit(where, f"no entry for {entry.path}")
            file = CheckedFile(package, entry, trust=trust)
            self._graphs[entry.name] = _Stored(path=file.path, index=graph)
            self._contents[entry.name] = bytes(file.read())

    def get(self, label: str) -> LoadableGraph:
        """The graph of one width and its tensors.

        Raises:
            CheckFailedError: the weights file is not the one that was loaded any more.
            PackageError: the graph is no ONNX, or the file does not hold its tensors.
            GraphError: the graph cannot be unpacked.
        """
        try:
            if label not in self._prepared:
                self._prepared[label] = self._prepare(self._contents[label], self._graphs[label])
                del self._contents[label]
            return self._derive(self._prepared[label], self._graphs[label].index)
        except (ValueError, OverflowError) as exc:
            raise _misfit(str(self._graphs[label].path), f"weights that cannot be derived: {exc}") from exc

    def _derive(self, prepared: _Prepared, graph: SharedGraph) -> LoadableGraph:
        stored = np.empty(self._size_bytes, np.int8)
        self._weights.read_into(stored.data)
        for start, end, bits in self._runs(graph):
            codes = stored[start:end]
            derive_codes(codes, from_bits=self.index.bits, to_bits=bits, rounding=self.index.rounding, out=codes)
        for factors in graph.factors:
            values = stored[factors.offset : factors.offset + factors.size_bytes].reshape(factors.shape)
            for place in factors.tensors:
                codes = _view(stored, self.index.tensors[place])
                # products fit int8
                np.multiply(codes, values, out=codes)
        initializers = {tensor.name: tensor.values(stored.data) for tensor in prepared.plain}
        for tensor, bits in self._derived(graph):
            initializers[tensor.name] = values = _view(stored, tensor)
            if tensor.dtype == "float32":
                np.multiply(values, np.float32(2 ** (self.index.bits - bits)), out=values)
        for tensor, packing in self._packed(graph):
            initializers[f"{tensor.name}{BLOCKS}"] = packing.pack(initializers.pop(tensor.name))
        return LoadableGraph(model=prepared.model, initializers=initializers)

    def check(self, label: str) -> None:
        """Make sure that the weights of a width are still those that were loaded; its graph is in memory.

        Raises:
            CheckFailedError: they are not.
        """
        self._weights.check()

    def _derived(self, graph: SharedGraph) -> list[tuple[StoredTensor, int]]:
        """What a graph derives, and to which width."""
        pairs = zip(self.index.tensors, graph.bits, strict=True)
        return [(tensor, bits) for tensor, bits in pairs if bits != NOT_DERIVED]

    def _packed(self, graph: SharedGraph) -> list[tuple[StoredTensor, BlockPacking]]:
        """What a graph reads packed, and how."""
        return [(self.index.tensors[place], packed.packing) for packed in graph.packed for place in packed.tensors]

    def _runs(self, graph: SharedGraph) -> list[tuple[int, int, int]]:
        """(first byte, end, width) of neighbours in the file whose codes are derived to one width, in one call.

        Between neighbours are no more than the zeros that align them, which stay zeros at every width.
        """
        codes = [
            (tensor.offset, tensor.size_bytes, bits) for tensor, bits in self._derived(graph) if tensor.dtype == "int8"
        ]
        runs: list[tuple[int, int, int]] = []
        for offset, size_bytes, bits in sorted(codes):
            if bits == self.index.bits:
                continue
            start = offset
            if runs and runs[-1][2] == bits and 0 <= offset - runs[-1][1] < ALIGNMENT_BYTES:
                start = runs.pop()[0]
            runs.append((start, offset + size_bytes, bits))
        return runs

    def _prepare(self, content: bytes, graph: _Stored) -> _Prepared:
        """The graph with declarations of its tensors in the place of the operators that derive them."""
        whole, skipped = memoryview(model_bytes(content, graph.path)), graph.index.derivation_bytes
        if skipped > len(whole):
            raise _misfit(str(graph.path), f"{len(whole):,} bytes, the first {skipped:,} of which derive its weights")
        packings = {tensor.name: packing for tensor, packing in self._packed(graph.index)}
        derived = [_declared(tensor, packings.get(tensor.name)) for tensor, _ in self._derived(graph.index)]
        model = b"".join((declare_tensors(derived, location=self.index.file), whole[skipped:]))
        names = {tensor.name for tensor in derived}
        found = external_tensors(model, where=str(graph.path))
        plain = tuple(tensor for tensor in found if tensor.name not in names)
        inside = (
            each.offset >= 0 and min(each.shape, default=0) >= 0 and each.end_bytes <= self._size_bytes
            for each in plain
        )
        if not all(inside) or any(each.location != self.index.file for each in plain):
            raise _misfit(str(graph.path), f"tensors that {self.index.file} does not hold")
        return _Prepared(model=model, plain=plain)


def _declared(tensor: StoredTensor, packing: BlockPacking | None) -> DeclaredTensor:
    if packing is None:
        return DeclaredTensor(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, offset=tensor.offset)
    shape = packing.shape(tensor.shape)
    return DeclaredTensor(name=f"{tensor.name}{BLOCKS}", dtype="uint8", shape=shape, offset=tensor.offset)


def _view(stored: npt.NDArray[np.int8], tensor: StoredTensor) -> Array:
    return stored[tensor.offset : tensor.offset + tensor.size_bytes].view(tensor.dtype).reshape(tensor.shape)


def _misfit(where: str, got: str) -> PackageError:
    return PackageError(
        where=where, got=got, allowed="a file of this package", do="export the package again with this release"
    )
