"""SetOpset: operators newer than the target's opset are written in older ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.lowering.decompositions import decompose_gelu, decompose_layer_norm
from bitswitch_deploy.lowering.lowering_pass import LoweringPass

Rewrite = Callable[[gs.Graph, gs.Node], None]


class SetOpset(LoweringPass):
    """Rewrite what the target's opset does not have, and set that opset. Exact up to float rounding.

    Cases, each below the opset that brought the newer form: axes of Reduce* as input (18), axes of Pad (18),
    num_outputs of Split (18), allowzero of Reshape (14), training_mode of BatchNormalization (14), start and end of
    Shape (15), defaults of AveragePool, Cast, Resize (18, 19), Gelu (20), LayerNormalization (17).
    What is left and does not exist at the opset is refused by the checker when the graph is written.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Rewrite every operator that is too new; see the class for the cases."""
        opset = self.context.target.stack.opset
        modified = bool(graph.opset != opset)
        for node in list(graph.nodes):
            for operator, introduced, rewrite in _REWRITES:
                if node.op == operator and opset < introduced:
                    rewrite(graph, node)
        graph.opset = opset
        graph.import_domains = None
        return modified


def _reduce_axes_to_attribute(graph: gs.Graph, node: gs.Node) -> None:
    if len(node.inputs) > 1 and not node.inputs[1].is_empty():
        node.attrs["axes"] = [int(axis) for axis in _constant(node, 1).ravel()]
    elif node.attrs.get("noop_with_empty_axes", 0):
        node.op = "Identity"
        node.attrs.clear()
    node.attrs.pop("noop_with_empty_axes", None)
    node.inputs = node.inputs[:1]


def _pad_axes_to_all(graph: gs.Graph, node: gs.Node) -> None:
    """Only the form without axes exists below 18; the rank of the data must then be known."""
    if len(node.inputs) < 4 or node.inputs[3].is_empty():
        return
    pads, axes = _constant(node, 1).ravel(), _constant(node, 3).ravel()
    rank = len(node.inputs[0].shape) if node.inputs[0].shape is not None else None
    if rank is None:
        raise _refusal(node, "axes on data of unknown rank", "give the Pad all axes before capture")
    full = np.zeros((2, rank), np.int64)
    full[:, axes % rank] = pads.reshape(2, -1)
    node.inputs = [node.inputs[0], gs.Constant(f"{node.name}.pads", full.ravel()), *node.inputs[2:3]]


def _drop_num_outputs(graph: gs.Graph, node: gs.Node) -> None:
    node.attrs.pop("num_outputs", None)


def _drop_allowzero(graph: gs.Graph, node: gs.Node) -> None:
    shape = node.inputs[1]
    if node.attrs.get("allowzero", 0) and not (isinstance(shape, gs.Constant) and np.all(shape.values != 0)):
        raise _refusal(node, "allowzero with a shape that may hold a zero", "reshape with explicit sizes")
    node.attrs.pop("allowzero", None)


def _drop_default(name: str, default: object) -> Rewrite:
    def rewrite(graph: gs.Graph, node: gs.Node) -> None:
        value = node.attrs.pop(name, default)
        if value != default and not (isinstance(value, list) and set(value) == {default}):
            raise _refusal(node, f"{name}={value}", f"use {name}={default}")

    return rewrite


def _shape_slice(graph: gs.Graph, node: gs.Node) -> None:
    """Shape(start, end) is Slice(Shape)."""
    start, end = node.attrs.pop("start", 0), node.attrs.pop("end", np.iinfo(np.int64).max)
    if (start, end) == (0, np.iinfo(np.int64).max):
        return
    output = node.outputs[0]
    whole = gs.Variable(f"{output.name}.whole", dtype=np.int64)
    node.outputs = [whole]
    bounds = [gs.Constant(f"{output.name}.{key}", np.asarray([value], np.int64)) for key, value in _bounds(start, end)]
    graph.nodes.append(gs.Node(op="Slice", name=f"{node.name}/Slice", inputs=[whole, *bounds], outputs=[output]))


def _bounds(start: int, end: int) -> tuple[tuple[str, int], tuple[str, int]]:
    return ("start", start), ("end", end)


def _constant(node: gs.Node, index: int) -> NDArray[np.int64]:
    tensor = node.inputs[index]
    if not isinstance(tensor, gs.Constant):
        raise _refusal(node, f"input {index} is computed", "make it a constant before capture")
    return np.asarray(tensor.values)


def _refusal(node: gs.Node, got: str, do: str) -> GraphError:
    return GraphError(
        where=f"{node.op} {node.name}",
        got=got,
        allowed="a form that exists at the target's opset",
        do=f"{do}, or choose a stack with a newer opset",
    )


_REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare")

# (operator, first opset that needs no rewrite, rewrite), newest first so that a decomposition is itself rewritten
_REWRITES: tuple[tuple[str, int, Rewrite], ...] = (
    ("Gelu", 20, decompose_gelu),
    ("LayerNormalization", 17, decompose_layer_norm),
    *((operator, 18, _reduce_axes_to_attribute) for operator in _REDUCTIONS),
    ("Pad", 18, _pad_axes_to_all),
    ("Split", 18, _drop_num_outputs),
    ("AveragePool", 19, _drop_default("dilations", 1)),
    ("Cast", 19, _drop_default("saturate", 1)),
    ("Resize", 18, _drop_default("antialias", 0)),
    ("Resize", 18, _drop_default("keep_aspect_ratio_policy", "stretch")),
    ("Shape", 15, _shape_slice),
    ("Reshape", 14, _drop_allowzero),
    ("BatchNormalization", 14, _drop_default("training_mode", 0)),
)
