"""Layers of a TensorRT engine as the nodes of the ONNX graph that it was built from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from bitswitch_deploy.engines.onnxruntime_profile import NodeTime

_OPERATOR = "TensorRT layer"


def graph_of(path: Path) -> onnx.ModelProto:
    """A graph of a package, without the weights beside it."""
    return onnx.load(str(path), load_external_data=False)


def layer_run(layers: Sequence[tuple[str, float]], model: onnx.ModelProto) -> tuple[NodeTime, ...]:
    """One run, one layer after the other; a layer belongs to the first ONNX node in its name.

    layers: (name, ms), in the order in which they run.
    """
    names = {node.name for node in model.graph.node}
    run, start_us = [], 0.0
    for name, ms in layers:
        node = NodeTime(name=_first_node(name, names), operator=_OPERATOR, start_us=start_us, duration_us=1e3 * ms)
        run.append(node)
        start_us += node.duration_us
    return tuple(run)


def _first_node(layer: str, names: set[str]) -> str:
    """`/conv1/Conv + /relu` and `Reformatting CopyNode for Input ... /conv1/Conv` hold names between blanks."""
    return next((word for word in layer.replace(",", " ").split() if word in names), layer)
