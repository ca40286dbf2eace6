"""BatchNorm statistics of one assignment, taken anew from samples, in a master of their own.

A mixed assignment runs layers with BatchNorm statistics that were collected while all layers had one width. Here every
BatchNormalization computes the mean and variance of its batch instead, in one pass over all samples, so each sees
inputs that were normalised anew already. The master handed in is not touched: the statistics go into a copy, in the
rows that this assignment reads. Other assignments of the copy read some of these rows too, so it serves this one only.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.graph.external_data import runnable
from bitswitch_deploy.master import Master, assemble_master
from bitswitch_deploy.master.container import Array
from bitswitch_deploy.search.samples import Inputs
from bitswitch_deploy.tensors import WidthAssignment

_DEFAULT_EPSILON = 1e-5


def reestimated(master: Master, assignment: WidthAssignment, x: Inputs, *, threads: int = 1) -> Master:
    """A copy of the master whose BatchNorm statistics fit `assignment`, from inputs x [n, ...] in one batch.

    Variances are unbiased, as torch keeps them. The accuracies that the trainer recorded are left out: they are those
    of other statistics.

    Raises:
        GraphError: the network cannot be run.
    """
    canonical = canonical_graph(master, assignment)
    model = onnx.ModelProto()
    model.CopyFrom(canonical.model)
    replaced = _replace_batchnorms(model)
    with runnable(model, canonical.large) as runs:
        session = ReferenceSession(runs, threads=threads)
    values = session.run_all({session.inputs[0].name: x})
    rows = {switch.parameter: switch.index for switch in canonical.plan.switches}
    tensors = dict(master.tensors)
    for node, name in replaced:
        count = int(values[f"{name}_count"])
        unbiased = values[f"{name}_var"] * (count / max(count - 1, 1))
        for parameter, measured in ((node.input[3], values[f"{name}_mean"]), (node.input[4], unbiased)):
            tensors[parameter] = _with_row(tensors[parameter], rows.get(parameter), measured)
    return assemble_master(spec=replace(master.spec, accuracy=()), tensors=tensors, skeleton=master.skeleton)


def _with_row(stored: Array, row: int | None, values: Array) -> Array:
    changed = np.array(stored)
    changed[... if row is None else row] = values.reshape(-1)
    return changed


def _replace_batchnorms(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, str]]:
    """Let each BatchNormalization normalise with its batch; the nodes that were, and the prefix of their statistics."""
    nodes, replaced = [], []
    for index, node in enumerate(model.graph.node):
        if node.op_type == "BatchNormalization":
            name = f"batchnorm_{index}"
            nodes += _with_batch_statistics(node, name)
            replaced.append((node, name))
            outputs = (f"{name}_{part}" for part in ("mean", "var", "count"))
            model.graph.output.extend(map(helper.make_empty_tensor_value_info, outputs))
        else:
            nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    replaced = [(onnx.NodeProto.FromString(node.SerializeToString()), name) for node, name in replaced]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    constants = {"flat": [0, 0, -1], "column": [1, -1, 1], "axes": [0, 2]}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), f"batchnorm_{name}") for name, value in constants.items()
    )
    return replaced


def _with_batch_statistics(node: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
    """The nodes of (x - mean) / sqrt(var + epsilon) * scale + bias with x as [n, channels, positions]."""
    epsilon = next((each.f for each in node.attribute if each.name == "epsilon"), _DEFAULT_EPSILON)
    steps = (
        ("Shape", (node.input[0],), f"{name}_shape"),
        ("Reshape", (node.input[0], "batchnorm_flat"), f"{name}_x"),
        ("ReduceMean", (f"{name}_x", "batchnorm_axes"), f"{name}_mean"),
        ("Sub", (f"{name}_x", f"{name}_mean"), f"{name}_centred"),
        ("Mul", (f"{name}_centred", f"{name}_centred"), f"{name}_square"),
        ("ReduceMean", (f"{name}_square", "batchnorm_axes"), f"{name}_var"),
        ("Size", (f"{name}_x",), f"{name}_size"),
        ("Size", (f"{name}_mean",), f"{name}_channels"),
        ("Div", (f"{name}_size", f"{name}_channels"), f"{name}_count"),
        ("Add", (f"{name}_var", f"{name}_epsilon"), f"{name}_safe"),
        ("Sqrt", (f"{name}_safe",), f"{name}_deviation"),
        ("Div", (f"{name}_centred", f"{name}_deviation"), f"{name}_normal"),
        ("Reshape", (node.input[1], "batchnorm_column"), f"{name}_scale"),
        ("Reshape", (node.input[2], "batchnorm_column"), f"{name}_bias"),
        ("Mul", (f"{name}_normal", f"{name}_scale"), f"{name}_scaled"),
        ("Add", (f"{name}_scaled", f"{name}_bias"), f"{name}_y"),
        ("Reshape", (f"{name}_y", f"{name}_shape"), node.output[0]),
    )
    constant = helper.make_node("Constant", [], [f"{name}_epsilon"], value_float=epsilon)
    return [constant, *(helper.make_node(operator, inputs, [output]) for operator, inputs, output in steps)]
