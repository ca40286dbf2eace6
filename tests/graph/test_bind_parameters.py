"""Each kind of parameter becomes a constant with the master's numbers; inputs and quantized weights stay."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.bind_parameters import BindParameters
from bitswitch_deploy.graph.model_io import import_model
from bitswitch_deploy.graph.plan import plan_canonical
from bitswitch_deploy.master import Master
from bitswitch_deploy.tensors import WidthAssignment
from tests.graph.masters import BATCH_NORM, build, layer

TEXT = """
net (float[n, 2, 4, 4] x, float[3, 2, 1, 1] "stem.weight", float[3] "stem.bias", float[3] "n.gamma", float[3] "n.beta",
     float[3] "n.mean", float[3] "n.var", float[5, 3, 1, 1] "a.weight") => (float[n, 5, 4, 4] y) {
    stem = Conv (x, "stem.weight", "stem.bias")
    norm = BatchNormalization (stem, "n.gamma", "n.beta", "n.mean", "n.var")
    y = Conv (norm, "a.weight")
}"""


def master() -> Master:
    names = [f"n.{part}" for part in BATCH_NORM]
    return build(TEXT, (layer("stem", activation="pinned"), layer("a")), switchable=names)


def bound(bits: int) -> gs.Graph:
    graph = import_model(master().skeleton)
    assert BindParameters(master(), plan_canonical(master(), WidthAssignment(default=bits))).apply(graph)
    return graph


def test_plain_and_pinned_parameters() -> None:
    stem = bound(4).nodes[0]
    assert [tensor.name for tensor in stem.inputs] == ["x", "stem.weight", "stem.bias"]
    for tensor in stem.inputs[1:]:
        assert isinstance(tensor, gs.Constant)
        assert tensor.values.dtype == np.float32
        np.testing.assert_array_equal(tensor.values, master().tensors[tensor.name])


def test_switchable_parameters_give_the_planned_row() -> None:
    for row, bits in enumerate((8, 6, 4, 2)):
        norm = bound(bits).nodes[1]
        for tensor in norm.inputs[1:]:
            np.testing.assert_array_equal(tensor.values, master().tensors[tensor.name][row])
            assert tensor.values.flags["C_CONTIGUOUS"]


def test_inputs_and_quantized_weights_are_left_alone() -> None:
    graph = bound(4)
    assert [tensor.name for tensor in graph.inputs] == ["x", "a.weight"]
    assert isinstance(graph.nodes[2].inputs[1], gs.Variable)


def test_nothing_to_bind() -> None:
    plain = build(
        'net (float[n, 2] x, float[2, 2] "a.weight") => (float[n, 2] y) { y = MatMul (x, "a.weight") }',
        (layer("a", "MatMul"),),
    )
    graph = import_model(plain.skeleton)
    assert not BindParameters(plain, plan_canonical(plain, WidthAssignment(default=4))).apply(graph)
