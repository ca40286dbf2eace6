"""Between onnx.ModelProto and the graph that passes rewrite."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from bitswitch_deploy.errors import GraphError

PRODUCER = "bitswitch-deploy"


def import_model(model: onnx.ModelProto) -> gs.Graph:
    """The editable form of a model. Names of tensors are kept; nodes have the names of `node_names`."""
    graph = gs.import_onnx(model)
    for node, name in zip(graph.nodes, node_names(model), strict=True):
        node.name = name
    return graph


def node_names(model: onnx.ModelProto) -> list[str]:
    """A name for each node of the model [nodes]: its own, or a new one where it has none or shares it with another."""
    names: dict[str, None] = {}
    for index, node in enumerate(model.graph.node):
        name = node.name if node.name and node.name not in names else f"{node.op_type}_{index}"
        while name in names:
            name += "_"
        names[name] = None
    return list(names)


def export_model(graph: gs.Graph, *, opset: int, ir_version: int) -> onnx.ModelProto:
    """The model of a graph: dead nodes removed, sorted, without anything that changes from run to run.

    Raises:
        GraphError: the result is not valid ONNX at this opset.
    """
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    model: onnx.ModelProto = gs.export_onnx(
        graph, do_type_check=True, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=ir_version
    )
    model.ir_version = ir_version
    model.producer_name, model.producer_version = PRODUCER, ""
    del model.graph.value_info[:]
    check_model(model, where=graph.name or "graph")
    return model


def check_model(model: onnx.ModelProto, *, where: str) -> None:
    """Run the ONNX checker with shape inference.

    Raises:
        GraphError: the checker refuses the model.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        opset = model.opset_import[0].version if model.opset_import else None
        raise GraphError(
            where=where,
            got=f"not valid ONNX at opset {opset}: {exc}",
            allowed="a graph that onnx.checker accepts",
            do="choose a target or stack with a newer opset, or replace the operator that the message names",
        ) from exc
