"""Where Q, Clip and DQ stand, and with which constants. The codes themselves: test_canonical.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.graph.model_io import import_model
from bitswitch_deploy.graph.plan import plan_canonical
from bitswitch_deploy.graph.quantize_activations import QuantizeActivations
from bitswitch_deploy.tensors import WidthAssignment
from tests.graph.masters import build, layer
from tests.graph.running import initializer, run

ONE = 'net (float[n, 4] x, float[4, 3] "a.weight") => (float[n, 3] y) { y = MatMul (x, "a.weight") }'


def canonical(text: str, *layers: Any, bits: int = 4, **changes: Any) -> onnx.ModelProto:
    return canonical_graph(build(text, layers, **changes), WidthAssignment(default=bits)).model


def nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node}


@pytest.mark.parametrize("activation", ["unsigned", "signed"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_one_node(bits: int, activation: str) -> None:
    model = canonical(ONE, layer("a", "MatMul", activation=activation), bits=bits, widths=(8, 4))
    found = nodes(model)
    dtype = np.int8 if activation == "signed" else np.uint8
    chain = ["a.input/QuantizeLinear", *(["a.input/Clip"] if bits < 8 else []), "a.input/DequantizeLinear"]
    assert [name for name in found if name.startswith("a.input/")] == chain
    assert list(found["a.input/QuantizeLinear"].input) == ["x", "a.input.scale", "a.input.zero_point"]
    assert list(found["a.input/DequantizeLinear"].input[1:]) == ["a.input.scale", "a.input.zero_point"]
    assert found["MatMul_0"].input[0] == "a.input.dequantized"
    zero = initializer(model, "a.input.zero_point")
    assert zero.dtype == dtype
    assert (zero.shape, int(zero)) == ((), 0)
    assert initializer(model, "a.input.scale").shape == ()
    if bits < 8:
        ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if activation == "signed" else (0, 2**bits - 1)
        limits = initializer(model, "a.input.low"), initializer(model, "a.input.high")
        assert tuple(int(limit) for limit in limits) == ends
        assert {limit.dtype for limit in limits} == {np.dtype(dtype)}


def test_eight_unsigned_bits_in_an_int8_container_are_clipped_at_127() -> None:
    model = canonical(ONE, layer("a", "MatMul"), bits=8, activation_container="int8")
    assert int(initializer(model, "a.input.high")) == 127
    assert initializer(model, "a.input.high").dtype == np.uint8


def test_a_weight_with_several_nodes() -> None:
    text = (
        ONE.replace("[n, 3] y", "[n, 4] y")
        .replace("[4, 3]", "[4, 4]")
        .replace("y = MatMul (x,", 'm = MatMul (x, "a.weight") y = MatMul (m,')
    )
    found = nodes(canonical(text, layer("a", "MatMul")))
    assert found["MatMul_0"].input[0] == "a.input.dequantized"
    assert found["MatMul_1"].input[0] == "a.input.1.dequantized"
    assert found["a.input.1/QuantizeLinear"].input[0] == "m"
    assert found["a.input/QuantizeLinear"].input[0] == "x"


def test_layers_that_read_one_tensor_keep_their_own_scales() -> None:
    text = """
    net (float[n, 4] x, float[4, 3] "a.weight", float[4, 3] "b.weight") => (float[n, 3] y) {
        a = MatMul (x, "a.weight")
        b = MatMul (x, "b.weight")
        y = Add (a, b)
    }"""
    model = canonical(text, layer("a", "MatMul"), layer("b", "MatMul"))
    found = nodes(model)
    for name in ("a", "b"):
        assert found[f"{name}.input/QuantizeLinear"].input[0] == "x"
    assert initializer(model, "a.input.scale") != initializer(model, "b.input.scale")


def test_two_nodes_of_one_name_both_quantize() -> None:
    text = ONE.replace("[4, 3]", "[4, 4]").replace("[n, 3] y", "[n, 4] y")
    text = text.replace("y = MatMul (x,", '[same] m = MatMul (x, "a.weight") [same] y = MatMul (m,')
    found = nodes(canonical(text, layer("a", "MatMul")))
    assert (found["same"].input[0], found["MatMul_1"].input[0]) == ("a.input.dequantized", "a.input.1.dequantized")


def test_other_readers_of_the_tensor_see_the_float_value() -> None:
    text = ONE.replace("{ y = MatMul", "{ m = MatMul").replace(
        "}", " s = ReduceSum <keepdims: int = 1> (x, axis) y = Add (m, s) }"
    )
    text = text.replace("(float[n, 3] y)", "(float[n, 3] y) <int64[1] axis = {1}>")
    model = canonical(text, layer("a", "MatMul"), tensors={"a.input.scale": [1, 1, 1, 1], "a.weight": np.zeros((4, 3))})
    x = np.array([[0.25, 0.5, 100, -1]], np.float32)
    np.testing.assert_array_equal(run(model, x), np.full((1, 3), 99.75, np.float32))


def test_float_inputs_are_left_alone() -> None:
    model = canonical(ONE, layer("a", "MatMul", activation="none"))
    assert [node.op_type for node in model.graph.node] == ["DequantizeLinear", "MatMul"]
    master = build(ONE, (layer("a", "MatMul", activation="none"),))
    plan = plan_canonical(master, WidthAssignment(default=4))
    assert not QuantizeActivations(plan).apply(import_model(master.skeleton))
