"""The weights file of a package that stores the master's weights once, written as the graphs come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.lowering.lower import LoweredGraph
from bitswitch_deploy.lowering.share_weights import SharedModel, share_weights
from bitswitch_deploy.master import Master
from bitswitch_deploy.master.container import raw_bytes
from bitswitch_deploy.package.weights_index import (
    ALIGNMENT_BYTES,
    NOT_DERIVED,
    Factors,
    Packed,
    SharedGraph,
    StoredTensor,
    WeightsIndex,
)
from bitswitch_deploy.package.writer import PackageWriter
from bitswitch_deploy.quantization import BlockPacking
from bitswitch_deploy.target import Target


def check_sharing(target: Target) -> None:
    """Refuse targets whose runtime takes no arithmetic between a quantized constant and its DequantizeLinear.

    Raises:
        UsageError: TensorRT, in each of its forms.
    """
    if target.engine.name == "onnxruntime":
        return
    raise UsageError(
        where="--shared-weights",
        got=f"target {target.name}: TensorRT accepts no arithmetic between a quantized constant and its "
        "DequantizeLinear, so its graphs cannot derive their weights",
        allowed="targets that onnxruntime runs, which folds the derivation when it loads a graph",
        do="leave out --shared-weights: each engine holds its own weights anyway; to send less over a network, send "
        "the master and export on the board",
    )


class SharedWeights:
    """Tensors that all graphs of a package read, appended to one file, and the index of them.

    Args:
        writer: of the package.
        master: every tensor that is derived is one of its.
        stem: name of the file without `.weights`.
    """

    def __init__(self, writer: PackageWriter, master: Master, stem: str) -> None:
        self._writer, self._master, self.name = writer, master, f"{stem}.weights"
        self._tensors: dict[str, StoredTensor] = {}
        self._others: dict[bytes, int] = {}
        self._graphs: dict[str, SharedModel] = {}
        self._unshared: dict[str, str] = {}
        self.size_bytes = 0
        (writer.folder / self.name).touch()

    def share(self, lowered: LoweredGraph, weight_bits: Mapping[str, int], path: str) -> bytes:
        """The bytes of the graph `path`, with its tensors in the weights file; its model is used up.

        Raises:
            GraphError: a weight is not the double rounding of the master.
            OSError: the file cannot be written.
        """
        shared = share_weights(lowered, self._master, weight_bits, self)
        self._graphs[path] = shared
        packed = [name for name in weight_bits if name not in shared.tensors]
        if packed:
            said = f"{len(packed)} of {len(weight_bits)} layers keep packed weights of their own in the graph"
            self._unshared[path] = f"shared weights: {said}"
        return shared.data

    def unshared(self, path: str) -> tuple[str, ...]:
        """What a graph says of weights that a pass packed into a form that no graph derives; nothing without them."""
        return (self._unshared[path],) if path in self._unshared else ()

    def finish(self) -> str:
        """List the weights file and write its index; return the name of the file.

        Raises:
            OutputError: the package cannot be written.
        """
        self._writer.add(self.name, role="weights")
        derived = self._derived()
        index = WeightsIndex(
            file=self.name,
            bits=self._master.spec.bits,
            rounding=self._master.spec.rounding,
            tensors=tuple(self._tensors[name] for name in derived),
            graphs=tuple(self._entry(path, shared, derived) for path, shared in self._graphs.items()),
        )
        self._writer.write(f"{self.name}.json", index.to_json().encode(), role="index")
        return self.name

    def place(self, name: str, tensor: npt.NDArray[Any]) -> int:
        """Offset of a tensor of the master, which is written when it is first asked for.

        Raises:
            OSError: the file cannot be written.
        """
        if name not in self._tensors:
            offset = self._append(tensor)
            dtype, shape = _dtype(tensor), tuple(tensor.shape)
            self._tensors[name] = StoredTensor(name=name, dtype=dtype, shape=shape, offset=offset)
        return self._tensors[name].offset

    def store(self, array: npt.NDArray[Any]) -> int:
        """Offset of any other array, which is written unless the same bytes were stored before.

        Raises:
            OSError: the file cannot be written.
        """
        content = array.tobytes()
        if content not in self._others:
            self._others[content] = self._append(array)
        return self._others[content]

    def _append(self, array: npt.NDArray[Any]) -> int:
        offset = -(-self.size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        with (self._writer.folder / self.name).open("r+b") as file:
            file.seek(offset)
            # a view of the master where that is in row-major order, which those of a file are
            file.write(raw_bytes(array))
        self.size_bytes = offset + array.nbytes
        return offset

    def _derived(self) -> list[str]:
        """Tensors that some graph derives its own of, in the order of the file."""
        return [
            name
            for name in self._tensors
            if any(name in shared.tensors and shared.tensors[name].bits is not None for shared in self._graphs.values())
        ]

    def _entry(self, path: str, shared: SharedModel, derived: Sequence[str]) -> SharedGraph:
        found = [shared.tensors.get(name) for name in derived]
        multiplied: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for place, tensor in enumerate(found):
            if tensor is not None and tensor.factors is not None:
                multiplied.setdefault(tensor.factors, []).append(place)
        factors = (
            Factors(tensors=tuple(places), offset=offset, shape=shape) for (offset, shape), places in multiplied.items()
        )
        packed: dict[BlockPacking, list[int]] = {}
        for place, tensor in enumerate(found):
            if tensor is not None and tensor.packing is not None:
                packed.setdefault(tensor.packing, []).append(place)
        return SharedGraph(
            path=path,
            derivation_bytes=shared.derivation_bytes,
            bits=tuple(NOT_DERIVED if tensor is None or tensor.bits is None else tensor.bits for tensor in found),
            factors=tuple(factors),
            packed=tuple(Packed(tensors=tuple(places), packing=packing) for packing, places in packed.items()),
        )


def _dtype(tensor: npt.NDArray[Any]) -> Any:
    return tensor.dtype.name
