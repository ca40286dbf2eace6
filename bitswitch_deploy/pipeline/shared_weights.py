"""The weights file of a package that stores the master's weights once, written as the graphs come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.lowering.share_weights import SharedModel, share_weights
from bitswitch_deploy.master import Master
from bitswitch_deploy.package.weights_index import NOT_READ, SharedGraph, StoredTensor, WeightsIndex
from bitswitch_deploy.package.writer import PackageWriter
from bitswitch_deploy.target import Target

# A cache line: no tensor then shares one with its neighbour.
_ALIGNMENT = 64


def check_can_share(target: Target) -> None:
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
        master: every shared tensor is one of its.
        stem: name of the file without `.weights`.
    """

    def __init__(self, writer: PackageWriter, master: Master, stem: str) -> None:
        self._writer, self._master, self._file = writer, master, f"{stem}.weights"
        self._tensors: dict[str, StoredTensor] = {}
        self._graphs: dict[str, SharedModel] = {}
        self.size_bytes = 0
        (writer.folder / self._file).touch()

    def share(self, model: onnx.ModelProto, weight_bits: Mapping[str, int], path: str) -> bytes:
        """The bytes of the graph `path`, with its tensors in the weights file; `model` is used up.

        Raises:
            GraphError: a weight is not the double rounding of the master.
            OSError: the file cannot be written.
        """
        shared = share_weights(model, self._master, weight_bits, self._place)
        self._graphs[path] = shared
        return shared.data

    def finish(self) -> str:
        """List the weights file and write its index; return the name of the file.

        Raises:
            OutputError: the package cannot be written.
        """
        self._writer.add(self._file, role="weights")
        index = WeightsIndex(
            file=self._file,
            bits=self._master.spec.bits,
            rounding=self._master.spec.rounding,
            tensors=tuple(self._tensors.values()),
            graphs=tuple(
                SharedGraph(
                    path=path,
                    derivation_bytes=shared.derivation_bytes,
                    bits=tuple(shared.bits.get(name, NOT_READ) for name in self._tensors),
                )
                for path, shared in self._graphs.items()
            ),
        )
        self._writer.write(f"{self._file}.json", index.to_json().encode(), role="index")
        return self._file

    def _place(self, name: str, tensor: npt.NDArray[Any]) -> tuple[str, int]:
        if name not in self._tensors:
            offset = -(-self.size_bytes // _ALIGNMENT) * _ALIGNMENT
            with (self._writer.folder / self._file).open("r+b") as file:
                file.seek(offset)
                # a view of the master where that is in row-major order, which those of a file are
                file.write(np.ascontiguousarray(tensor).data)
            self.size_bytes = offset + tensor.nbytes
            self._tensors[name] = StoredTensor(
                name=name, dtype=_dtype(tensor), shape=tuple(tensor.shape), offset=offset
            )
        return self._file, self._tensors[name].offset


def _dtype(tensor: npt.NDArray[Any]) -> Any:
    return tensor.dtype.name
