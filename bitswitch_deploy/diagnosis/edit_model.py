"""Editing a copy of a model so that tensors in it can be seen, given from outside, or left out."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.graph.large_tensors import LargeTensor
from bitswitch_deploy.master.container import raw_bytes

# protobuf ends at 2 GiB, and taps need some of it.
_MOST_BYTES = 1900 << 20


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that can be edited."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def embedded(model: onnx.ModelProto, large: Mapping[str, LargeTensor]) -> onnx.ModelProto:
    """A copy of a model that holds its large tensors as well.

    Raises:
        UsageError: they do not fit into one model.
    """
    if sum(tensor.size_bytes for tensor in large.values()) > _MOST_BYTES:
        raise UsageError(
            where="the network",
            got="more weights than one graph in memory can hold",
            allowed=f"up to {_MOST_BYTES >> 20} MiB",
            do="use `validate`, which reads the weights from their file",
        )
    copied = copy_of(model)
    for entry in copied.graph.initializer:
        if entry.name in large:
            entry.ClearField("data_location")
            del entry.external_data[:]
            entry.raw_data = b"".join(bytes(raw_bytes(chunk)) for chunk in large[entry.name].chunks())
    return copied


def add_outputs(model: onnx.ModelProto, names: Mapping[str, int]) -> None:
    """Let tensors be outputs as well; `names` gives the element type of each."""
    known = {output.name for output in model.graph.output}
    for name, element_type in names.items():
        if name not in known:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, element_type, None))


def give_from_outside(model: onnx.ModelProto, ranks: Mapping[str, int], *, suffix: str) -> None:
    """Let every reader of the float tensors read an input of that name; what the graph computes gets the `suffix`.

    Readers inside of If and Loop see the input, too, since their name for it stays.
    """
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name in ranks:
                node.output[index] = f"{name}{suffix}"
    for output in model.graph.output:
        if output.name in ranks:
            output.name = f"{output.name}{suffix}"
    for name, rank in ranks.items():
        add_input(model, name, onnx.TensorProto.FLOAT, rank)


def add_input(model: onnx.ModelProto, name: str, element_type: int, rank: int) -> None:
    """An input of any size along each of its axes."""
    model.graph.input.append(onnx.helper.make_tensor_value_info(name, element_type, [None] * rank))
