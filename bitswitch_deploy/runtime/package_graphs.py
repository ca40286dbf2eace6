"""The graphs of a package, as a session takes them: in files of their own, or on weights that all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.errors import PackageError
from bitswitch_deploy.package.manifest import FileEntry, Manifest
from bitswitch_deploy.package.weights_index import NOT_READ, SharedGraph, StoredTensor, WeightsIndex
from bitswitch_deploy.quantization import derive_codes
from bitswitch_deploy.runtime.checked_file import CheckedFile
from bitswitch_deploy.runtime.declare_tensors import declare_tensors
from bitswitch_deploy.runtime.external_tensors import external_tensors

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
            label = entry.label or entry.path
            if entry.role == "graph":
                self._graphs[label] = CheckedFile(package, entry, trust=trust)
            elif entry.role == "weights":
                self._data.setdefault(label, []).append(CheckedFile(package, entry, trust=trust))

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
        except (KeyError, ValueError) as exc:
            raise _misfit(str(graph.path), f"tensors that {', '.join(data)} does not hold") from exc
        return LoadableGraph(model=graph.path, initializers=values)

    def check(self, label: str) -> None:
        """Make sure that the graph is still the one that was loaded.

        Raises:
            CheckFailedError: it is not.
        """
        self._graphs[label].check()


class SharedGraphs:
    """Graphs that read one weights file. The codes of a width are derived when it is asked for, in NumPy or C.

    That is several times faster than the operators in the graph, which are left out. The small graphs are kept in
    memory; the weights stay in the file, which is to say in the page cache of the system, once for all processes.

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
        self._graphs: dict[str, tuple[SharedGraph, bytes]] = {}
        for entry in manifest.files:
            if entry.role == "graph":
                graph = self.index.graph(entry.path)
                if graph is None or graph.derivation_bytes > entry.size_bytes:
                    raise _misfit(where, f"no fitting entry for {entry.path}")
                self._graphs[entry.label or entry.path] = graph, self._prepared(package, entry, graph, trust)

    def get(self, label: str) -> LoadableGraph:
        """The graph of one width and its codes.

        Raises:
            CheckFailedError: the weights file is not the one that was loaded any more.
        """
        graph, model = self._graphs[label]
        stored = np.empty(self.index.end_bytes, np.int8)
        self._weights.read_into(stored.data)
        for start, end, bits in self._runs(graph):
            codes = stored[start:end]
            derive_codes(codes, from_bits=self.index.bits, to_bits=bits, rounding=self.index.rounding, out=codes)
        for factors in graph.factors:
            codes = _view(stored, self.index.tensors[factors.tensor])
            values = stored[factors.offset : factors.offset + factors.size_bytes].view(np.int32)
            # products fit int8, so arithmetic modulo 256 is exact, also for a factor of 128
            np.multiply(codes, values.reshape(factors.shape).astype(np.int8), out=codes)
        read = (tensor for tensor, bits in zip(self.index.tensors, graph.bits, strict=True) if bits != NOT_READ)
        return LoadableGraph(model=model, initializers={tensor.name: _view(stored, tensor) for tensor in read})

    def check(self, label: str) -> None:
        """Make sure that the weights of a width are still those that were loaded; its graph is in memory.

        Raises:
            CheckFailedError: they are not.
        """
        self._weights.check()

    def _runs(self, graph: SharedGraph) -> list[tuple[int, int, int]]:
        """(first byte, end, width) of neighbours in the file that are derived to one width: one call for all of them.

        The zeros between them, which align them, stay zeros at every width.
        """
        stored = [
            (tensor.offset, tensor.size_bytes, bits)
            for tensor, bits in zip(self.index.tensors, graph.bits, strict=True)
        ]
        # not to be touched where they lie between
        stored += [(each.offset, each.size_bytes, NOT_READ) for other in self.index.graphs for each in other.factors]
        runs: list[tuple[int, int, int]] = []
        last = NOT_READ
        for offset, size_bytes, bits in sorted(stored):
            if bits not in (NOT_READ, self.index.bits):
                start = runs.pop()[0] if bits == last else offset
                runs.append((start, offset + size_bytes, bits))
            last = bits
        return runs

    def _prepared(self, package: Path, entry: FileEntry, graph: SharedGraph, trust: bool) -> bytes:
        """The graph with declarations of its codes in the place of the operators that derive them."""
        data = CheckedFile(package, entry, trust=trust).read()
        multiplied = {factors.tensor for factors in graph.factors}
        derived = [
            tensor
            for place, (tensor, bits) in enumerate(zip(self.index.tensors, graph.bits, strict=True))
            if bits != NOT_READ and (bits != self.index.bits or place in multiplied)
        ]
        return declare_tensors(derived, location=self.index.file) + bytes(data[graph.derivation_bytes :])


def _view(stored: npt.NDArray[np.int8], tensor: StoredTensor) -> Array:
    return stored[tensor.offset : tensor.offset + tensor.size_bytes].view(tensor.dtype).reshape(tensor.shape)


def _misfit(where: str, got: str) -> PackageError:
    return PackageError(
        where=where, got=got, allowed="a file of this package", do="export the package again with this release"
    )
