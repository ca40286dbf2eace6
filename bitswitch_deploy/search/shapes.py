"""Shapes inside of the network, by running it on one sample: always right, where inference gives up on reshapes."""

from __future__ import annotations

import onnx

from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.graph.external_data import runnable
from bitswitch_deploy.master import Master
from bitswitch_deploy.search.resources import layer_nodes
from bitswitch_deploy.search.samples import Inputs
from bitswitch_deploy.tensors import WidthAssignment


def layer_shapes(master: Master, sample: Inputs) -> dict[str, tuple[int, ...]]:
    """Shapes of what enters and leaves each quantized layer, by its name in the skeleton.

    sample: input of the network, batch size 1; repeated where the network is fixed to another one.
    """
    canonical = canonical_graph(master, WidthAssignment(default=master.spec.widths[0]))
    model = onnx.ModelProto()
    model.CopyFrom(canonical.model)
    nodes = {node.name: node for node in model.graph.node}
    wanted: dict[str, str] = {}
    for name, node in layer_nodes(master):
        quantized = nodes[name]
        wanted |= {node.input[0]: quantized.input[0], node.output[0]: quantized.output[0]}
    known = {output.name for output in model.graph.output} | {each.name for each in model.graph.input}
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(wanted.values()) if name not in known
    )
    with runnable(model, canonical.large) as runs:
        session = ReferenceSession(runs)
    fixed = session.inputs[0].shape[0] if session.inputs[0].shape else None
    if isinstance(fixed, int) and len(sample) == 1:
        sample = sample.repeat(fixed, axis=0)
    values = session.run_all({session.inputs[0].name: sample})
    shapes = {name: value.shape for name, value in values.items()} | {session.inputs[0].name: sample.shape}
    return {name: _of_one_sample(shapes[tap], len(sample)) for name, tap in wanted.items()}


def _of_one_sample(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """With the batch size taken out where it stands in front, as it does in every layer that is fed samples."""
    return (shape[0] // batch, *shape[1:]) if shape and shape[0] % batch == 0 else shape
