"""The canonical graph in onnxruntime with optimisations off, against exact fractions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.graph.plan import LayerPlan
from bitswitch_deploy.master import Master
from bitswitch_deploy.tensors import PER_TENSOR, Rounding, WidthAssignment
from tests.graph import masters, slow
from tests.graph.masters import build, layer, per_block, per_channel
from tests.graph.running import initializer, look, operators, run

Array = np.ndarray[Any, np.dtype[Any]]

# every operator, every granularity, signed and unsigned and float inputs, a pinned layer
ZOO = """
net (float[n, 4, 5, 5] x, float[4, 4, 3, 3] "stem.weight", float[6, 4, 3, 3] "conv.weight", float[6] "conv.bias",
     float[6, 3, 2, 2] "up.weight", float[4, 6, 1, 1] "tensor.weight", float[10, 64] "dense.weight",
     float[10, 5] "last.weight") => (float[n, 5] y) {
    stem = Conv <pads: ints = [1, 1, 1, 1]> (x, "stem.weight")
    r0 = Relu (stem)
    conv = Conv (r0, "conv.weight", "conv.bias")
    up = ConvTranspose <group: int = 2> (conv, "up.weight")
    r1 = Relu (up)
    tensor = Conv (r1, "tensor.weight")
    flat = Flatten (tensor)
    dense = Gemm <transB: int = 1> (flat, "dense.weight")
    y = MatMul (dense, "last.weight")
}"""
LAYERS = (
    layer("stem", activation="pinned"),
    layer("conv", granularity=per_channel(0)),
    layer("up", "ConvTranspose", per_channel(1), "signed"),
    layer("tensor", granularity=PER_TENSOR),
    layer("dense", "Gemm", per_block(1, 24), "none"),
    layer("last", "MatMul", per_channel(1), "signed"),
)


def zoo(**changes: Any) -> Master:
    return build(ZOO, LAYERS, **changes)


def uniform(bits: int) -> WidthAssignment:
    return WidthAssignment(default=bits)


def images(count: int = 6) -> Array:
    return np.random.default_rng(3).normal(0, 2, (count, 4, 5, 5)).astype(np.float32)


@pytest.mark.parametrize("rule", Rounding)
@pytest.mark.parametrize("bits", range(2, 9))
def test_integer_weights_of_every_layer(bits: int, rule: Rounding) -> None:
    master = zoo(rounding=rule)
    model = canonical_graph(master, uniform(bits)).model
    for spec in LAYERS[1:]:
        codes = initializer(model, spec.weight)
        assert codes.dtype == np.int8
        expected = slow.derived(master.tensors[spec.weight], 8, bits, rule)
        np.testing.assert_array_equal(codes, expected)
        scales = slow.spread(
            master.tensors[spec.weight_scale], codes.shape, spec.granularity.axis, spec.granularity.block_size
        )
        float_weight = look(model, images(1), f"{spec.weight}.dequantized")
        np.testing.assert_array_equal(
            float_weight, expected.astype(np.float32) * (scales * np.float32(2 ** (8 - bits)))
        )


def test_master_of_fewer_bits() -> None:
    master = zoo(bits=6, widths=(6, 4, 2))
    model = canonical_graph(master, uniform(3)).model
    expected = slow.derived(master.tensors["conv.weight"], 6, 3, Rounding.HALF_UP)
    np.testing.assert_array_equal(initializer(model, "conv.weight"), expected)
    np.testing.assert_array_equal(
        initializer(model, "conv.weight.scale"), master.tensors["conv.weight.scale"] * np.float32(8)
    )


@pytest.mark.parametrize("container", ["uint8", "int8"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_integer_activations_of_every_layer(bits: int, container: str) -> None:
    canonical = canonical_graph(zoo(activation_container=container), uniform(bits))
    for name, source in (("conv", "r0"), ("up", "conv"), ("tensor", "r1"), ("last", "dense")):
        plan = next(each for each in canonical.plan.layers if each.layer.name == name)
        assert plan.activation is not None
        x = look(canonical.model, images(), source) * np.float32(3)  # past both ends
        found = quantized_alone(plan, x)
        limits = plan.activation.codes
        expected = slow.activation_codes(x, np.float32(plan.activation.scale), limits.low, limits.high)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == (np.int8 if plan.activation.signed else np.uint8)
        assert {limits.high} <= set(found.ravel().tolist())


def quantized_alone(plan: LayerPlan, x: Array) -> Array:
    """Give the codes of a layer's input for chosen numbers, by a network of nothing but such a layer."""
    assert plan.activation is not None
    scales = {f"{plan.layer.name}.input.scale": [plan.activation.scale]}
    container = (
        "int8" if plan.activation.codes.high == 127 and plan.bits == 8 and not plan.activation.signed else "uint8"
    )
    alone = build(
        f'net (float[n] x, float[1, 1] "{plan.layer.weight}") => (float[n, 1] y) <int64[1] axis = {{1}}>'
        f' {{ column = Unsqueeze (x, axis) y = MatMul (column, "{plan.layer.weight}") }}',
        (layer(plan.layer.name, "MatMul", activation=plan.layer.activation),),
        widths=(plan.bits,),
        tensors=scales,
        activation_container=container,
    )
    model = canonical_graph(alone, uniform(plan.bits)).model
    last = "clipped" if "Clip" in operators(model) else "codes"
    codes = look(model, x.ravel(), f"{plan.layer.name}.input.{last}")
    return np.reshape(codes, x.shape)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("activation", ["unsigned", "signed"])
def test_integer_activations_at_every_tie_and_end(bits: int, activation: str) -> None:
    """Scale 1: every half and its neighbours, from far below to far above the codes."""
    master = build(
        'net (float[n, 1] x, float[1, 1] "a.weight") => (float[n, 1] y) { y = MatMul (x, "a.weight") }',
        (layer("a", "MatMul", activation=activation),),
        widths=(bits,),
        tensors={"a.input.scale": [1.0]},
    )
    canonical = canonical_graph(master, uniform(bits))
    halves = np.arange(-600, 601, dtype=np.float32) / 2
    x = np.concatenate([np.nextafter(halves, -np.inf), halves, np.nextafter(halves, np.inf), [-1e30, 1e30]])
    x = x.astype(np.float32)[:, None]
    last = "clipped" if "Clip" in operators(canonical.model) else "codes"
    low, high = (0, 2**bits - 1) if activation == "unsigned" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    expected = slow.activation_codes(x, np.float32(1), low, high)
    np.testing.assert_array_equal(look(canonical.model, x, f"a.input.{last}"), expected)
    assert {low, high} <= set(expected.ravel().tolist())


@pytest.mark.parametrize("bits", range(2, 9))
def test_network_computes_with_the_codes(bits: int) -> None:
    master = build(
        'net (float[n, 6] x, float[6, 5] "a.weight", float[5, 4] "b.weight") => (float[n, 4] y) {'
        ' a = MatMul (x, "a.weight") r = Relu (a) y = MatMul (r, "b.weight") }',
        (layer("a", "MatMul", per_channel(1), "signed"), layer("b", "MatMul", per_block(0, 2))),
    )
    canonical = canonical_graph(master, uniform(bits))
    x = np.random.default_rng(1).normal(0, 2, (50, 6)).astype(np.float32)
    value: Array = x
    for plan in canonical.plan.layers:
        assert plan.activation is not None
        limits = plan.activation.codes
        codes = slow.activation_codes(value, np.float32(plan.activation.scale), limits.low, limits.high)
        weight = slow.derived(master.tensors[plan.layer.weight], 8, bits, Rounding.HALF_UP)
        spec = plan.layer.granularity
        scale = slow.spread(master.tensors[plan.layer.weight_scale], weight.shape, spec.axis, spec.block_size)
        product = (codes * plan.activation.scale) @ (weight * scale.astype(np.float64) * 2 ** (8 - bits))
        value = np.maximum(product, 0).astype(np.float32) if plan.layer.name == "a" else product
    np.testing.assert_allclose(run(canonical.model, x), value, rtol=2e-5, atol=2e-5 * float(np.abs(value).max()))


def test_layers_at_widths_of_their_own() -> None:
    master = zoo()
    model = canonical_graph(master, WidthAssignment(default=8, overrides=(("conv", 2), ("last", 4)))).model
    for name, bits in (("conv", 2), ("up", 8), ("tensor", 8), ("dense", 8), ("last", 4)):
        expected = slow.derived(master.tensors[f"{name}.weight"], 8, bits, Rounding.HALF_UP)
        np.testing.assert_array_equal(initializer(model, f"{name}.weight"), expected)


def test_same_call_same_bytes_and_an_untouched_skeleton() -> None:
    master = zoo()
    before = master.skeleton.SerializeToString()
    first, second = (canonical_graph(master, uniform(4)).model.SerializeToString() for _ in range(2))
    assert first == second
    assert master.skeleton.SerializeToString() == before


def test_form_of_the_model() -> None:
    model = canonical_graph(zoo(), uniform(4)).model
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]
    assert (model.ir_version, model.producer_name, model.producer_version) == (10, "bitswitch-deploy", "")
    assert [value.name for value in model.graph.input] == ["x"]
    assert not model.graph.value_info
    weights = model.graph.node[: len(LAYERS) - 1]
    assert [node.op_type for node in weights] == ["DequantizeLinear"] * 5  # they stand at the front


@pytest.mark.parametrize("opset", [13, 20, 22])
def test_skeleton_of_another_opset(opset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masters, "HEADER", f'<ir_version: 10, opset_import: ["" : {opset}]>\n')
    master = build(
        'net (float[n, 6] x, float[6, 5] "a.weight") => (float[n, 5] y) { y = MatMul (x, "a.weight") }',
        (layer("a", "MatMul"),),
    )
    with pytest.raises(GraphError, match=rf"skeleton of the master: opset {opset}\n  allowed: opset 21"):
        canonical_graph(master, uniform(4))


def test_a_network_of_many_layers() -> None:
    """Deeper than Python recurses."""
    names = [f"l{index}" for index in range(300)]
    weights = ", ".join(f'float[2, 2] "{name}.weight"' for name in names)
    steps = "\n".join(f'{after} = MatMul ({before}, "{after}.weight")' for before, after in pairwise(("x", *names)))
    text = f"net (float[n, 2] x, {weights}) => (float[n, 2] l299) {{ {steps} }}"
    master = build(text, [layer(name, "MatMul", activation="signed") for name in names], widths=(8,))
    assert operators(canonical_graph(master, uniform(4)).model).count("MatMul") == 300


@pytest.mark.parametrize("taken", ["a.weight.scale", "a.weight.zero_point", "a.input.scale", "a.input.high"])
def test_a_name_that_a_quantizer_takes(taken: str) -> None:
    text = f"""net (float[n, 6] x, float[6, 5] "a.weight") => (float[n, 5] y) <float "{taken}" = {{3}}> {{
        a = MatMul (x, "a.weight")
        y = Mul (a, "{taken}")
    }}"""
    with pytest.raises(GraphError, match=f"^net: two tensors named '{taken}'(.|\n)*do: rename the tensor"):
        canonical_graph(build(text, (layer("a", "MatMul"),)), uniform(4))
