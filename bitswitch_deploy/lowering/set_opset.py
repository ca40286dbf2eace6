"""SetOpset: operators newer than the target's opset are written in older ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.lowering.decompositions import (
    decompose_gelu,
    decompose_group_norm,
    decompose_hard_swish,
    decompose_layer_norm,
    decompose_mish,
)
from bitswitch_deploy.lowering.lowering_pass import LoweringPass

Rewrite = Callable[[gs.Graph, gs.Node], None]


class SetOpset(LoweringPass):
    """Rewrite what the target's opset does not have, and set that opset. Exact up to float rounding.

    Cases, each below the opset that brought the newer form: axes of Reduce* as input (18), axes of Pad (18),
    num_outputs of Split (18), allowzero of Reshape (14), training_mode of BatchNormalization (14), start and end of
    Shape (15), axis of DFT as input (20), attributes that say what older forms do anyway (14 to 21), modes of
    GridSample (20), GroupNormalization (21), Gelu (20), Mish (18), LayerNormalization (17), HardSwish (14). Branches
    and loop bodies are rewritten like the graph. Refused here: RoiAlign whose half-pixel shift, the default since 16,
    older ones lack, and newer values of older attributes of Pad, Resize, ScatterElements and ScatterND: the checker
    sees neither. What is left and does not exist at the opset is refused by the checker when the graph is written.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Rewrite every operator that is too new; see the class for the cases."""
        opset = self.context.target.stack.opset
        modified = bool(graph.opset != opset)
        _rewrite(graph, opset)
        graph.opset = opset
        graph.import_domains = None
        return modified


def _rewrite(graph: gs.Graph, opset: int, inside: str = "") -> None:
    """Rewrite the nodes of a graph and of the graphs in their attributes; `inside`: the attribute that holds this one.

    New tensors are named after their node, and nodes of inner graphs have no names to rely on: those are made here.
    """
    for index, node in enumerate(list(graph.nodes)):
        name = f"{inside}/{node.op}_{index}" if inside else node.name
        for key, value in node.attrs.items():
            if isinstance(value, gs.Graph):
                _rewrite(value, opset, f"{name}/{key}")
        for operator, introduced, rewrite in _REWRITES:
            if node.op == operator and opset < introduced:
                node.name = name
                rewrite(graph, node)


def _reduce_axes_to_attribute(graph: gs.Graph, node: gs.Node) -> None:
    given = len(node.inputs) > 1 and not node.inputs[1].is_empty()
    axes = [int(axis) for axis in _constant(node, 1).ravel()] if given else []
    keeps_input = node.attrs.pop("noop_with_empty_axes", 0) and not axes
    node.inputs = node.inputs[:1]
    if axes:
        node.attrs["axes"] = axes
    elif keeps_input and node.op in _SAME_OF_ONE:
        node.op = "Identity"
        node.attrs.clear()
    elif keeps_input:
        # the specification was read in two ways: the input itself, or its square, absolute value, logarithm
        raise _refusal(node, "noop_with_empty_axes without axes", "leave the node out")


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


def _drop_default(name: str, default: object, *, older: object = None) -> Rewrite:
    """older: what operators without the attribute do, where this is not the default."""
    dropped = default if older is None else older

    def rewrite(graph: gs.Graph, node: gs.Node) -> None:
        value = node.attrs.pop(name, default)
        if value != dropped and not (isinstance(value, list) and set(value) == {dropped}):
            raise _refusal(node, f"{name}={value}", f"use {name}={dropped}")

    return rewrite


def _refuse_value(name: str, *newer: str) -> Rewrite:
    def rewrite(graph: gs.Graph, node: gs.Node) -> None:
        if node.attrs.get(name) in newer:
            raise _refusal(node, f"{name}={node.attrs[name]}", f"use another {name}")

    return rewrite


def _dft_axis_to_attribute(graph: gs.Graph, node: gs.Node) -> None:
    """The attribute's own default is 1, the input's -2."""
    given = len(node.inputs) > 2 and not node.inputs[2].is_empty()
    node.attrs["axis"] = int(_constant(node, 2).item()) if given else -2
    node.inputs = node.inputs[:2]


def _older_grid_mode(graph: gs.Graph, node: gs.Node) -> None:
    mode = node.attrs.get("mode", "linear")
    node.attrs["mode"] = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)


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


# ReduceSum has had its axes as input since 13
_SAME_OF_ONE = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp")
_REDUCTIONS = (*_SAME_OF_ONE, "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum")

# (operator, first opset that needs no rewrite, rewrite); decompositions are written in the oldest form at once
_REWRITES: tuple[tuple[str, int, Rewrite], ...] = (
    ("GroupNormalization", 21, decompose_group_norm),
    ("Gelu", 20, decompose_gelu),
    ("GridSample", 20, _older_grid_mode),
    ("Pad", 19, _refuse_value("mode", "wrap")),
    ("Resize", 19, _refuse_value("coordinate_transformation_mode", "half_pixel_symmetric")),
    *((operator, 18, _refuse_value("reduction", "max", "min")) for operator in ("ScatterElements", "ScatterND")),
    ("Mish", 18, decompose_mish),
    ("LayerNormalization", 17, decompose_layer_norm),
    *((operator, 18, _reduce_axes_to_attribute) for operator in _REDUCTIONS),
    ("Pad", 18, _pad_axes_to_all),
    ("Split", 18, _drop_num_outputs),
    ("DFT", 20, _dft_axis_to_attribute),
    ("RoiAlign", 16, _drop_default("coordinate_transformation_mode", "half_pixel", older="output_half_pixel")),
    *((operator, 21, _drop_default("block_size", 0)) for operator in ("QuantizeLinear", "DequantizeLinear")),
    ("QuantizeLinear", 21, _drop_default("output_dtype", 0)),
    *((operator, 19, _drop_default("saturate", 1)) for operator in ("Cast", "CastLike", "QuantizeLinear")),
    ("AveragePool", 19, _drop_default("dilations", 1)),
    ("LpPool", 18, _drop_default("dilations", 1)),
    ("LpPool", 18, _drop_default("ceil_mode", 0)),
    ("Resize", 18, _drop_default("antialias", 0)),
    ("Resize", 18, _drop_default("keep_aspect_ratio_policy", "stretch")),
    *((operator, 16, _drop_default("reduction", "none")) for operator in ("ScatterElements", "ScatterND")),
    *((operator, 14, _drop_default("layout", 0)) for operator in ("GRU", "LSTM", "RNN")),
    ("Shape", 15, _shape_slice),
    ("Reshape", 14, _drop_allowzero),
    ("HardSwish", 14, decompose_hard_swish),
    ("BatchNormalization", 14, _drop_default("training_mode", 0)),
)
