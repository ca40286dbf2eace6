"""Each case of FoldBatchNorm: same numbers, same integers; what is left alone stays and is recorded."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.master import Master
from bitswitch_deploy.master.spec import Operator
from bitswitch_deploy.target import Target
from bitswitch_deploy.tensors import PER_TENSOR, Granularity, Rounding
from tests.graph import slow
from tests.graph.masters import BATCH_NORM, build, layer, per_block, per_channel
from tests.graph.running import initializer, look, operators, run
from tests.lowering.lowered import Applied, applied, canonical, profile

X86, ARM = profile("x86-cpu"), profile("arm64-cpu")
NORM = 'BatchNormalization (a, "n.gamma", "n.beta", "n.mean", "n.var")'
NORM_INPUTS = 'float[6] "n.gamma", float[6] "n.beta", float[6] "n.mean", float[6] "n.var"'
CONV = 'a = Conv (x, "a.weight")'
GAMMA = [1.0, -1.5, 0.5, 2.0, -0.25, 0.75]


def network(compute: str, weight: str, *, data: str = "n, 4, 5, 5", out: str = "n, 6, h, w", more: str = "") -> str:
    return (
        f'net (float[{data}] x, float[{weight}] "a.weight", {NORM_INPUTS}{more}) => (float[{out}] y)'
        f" {{ {compute} b = {NORM} y = Relu (b) }}"
    )


PER_CHANNEL = per_channel(0)


def conv_master(granularity: Granularity = PER_CHANNEL, **changes: Any) -> Master:
    tensors = {"n.gamma": GAMMA, **changes.pop("tensors", {})}
    compute, weight, more = (
        changes.pop(key, default) for key, default in (("compute", CONV), ("weight", "6, 4, 3, 3"), ("more", ""))
    )
    return build(
        network(compute, weight, more=more), (layer("a", granularity=granularity),), tensors=tensors, **changes
    )


def images(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).normal(0.5, 1, shape).astype(np.float32)


def fold(master: Master, bits: int, target: Target = X86) -> tuple[onnx.ModelProto, Applied]:
    model = canonical(master, bits).model
    return model, applied("FoldBatchNorm", model, target)


def assert_same_numbers(before: onnx.ModelProto, after: onnx.ModelProto, x: np.ndarray[Any, Any]) -> None:
    expected = run(before, x)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(run(after, x), expected, rtol=1e-5, atol=1e-5 * float(np.abs(expected).max()))


def flips(*channels: int) -> str:
    return f"signs flipped in output channels {', '.join(map(str, channels))} (negative BatchNormalization gain)"


def said(result: Applied) -> list[tuple[str, str, bool]]:
    return [(change.where, change.what, change.exact) for change in result.changes]


# --- folded --------------------------------------------------------------------------------------------------------

FOLDED = {
    "conv": (CONV, "6, 4, 3, 3", "Conv", per_channel(0), (30, 4, 5, 5)),
    "conv, per tensor": (CONV, "6, 4, 3, 3", "Conv", PER_TENSOR, (30, 4, 5, 5)),
    "grouped conv": ('a = Conv <group: int = 2> (x, "a.weight")', "6, 2, 3, 3", "Conv", per_channel(0), (30, 4, 5, 5)),
    "transposed conv": (
        'a = ConvTranspose (x, "a.weight")',
        "4, 6, 3, 3",
        "ConvTranspose",
        per_channel(1),
        (30, 4, 5, 5),
    ),
    "transposed conv, per tensor": (
        'a = ConvTranspose (x, "a.weight")',
        "4, 6, 3, 3",
        "ConvTranspose",
        PER_TENSOR,
        (30, 4, 5, 5),
    ),
    "gemm": ('a = Gemm (x, "a.weight")', "4, 6", "Gemm", per_channel(1), (100, 4)),
    "gemm, per tensor": ('a = Gemm (x, "a.weight")', "4, 6", "Gemm", PER_TENSOR, (100, 4)),
    "transposed gemm": ('a = Gemm <transB: int = 1> (x, "a.weight")', "6, 4", "Gemm", per_channel(0), (100, 4)),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", FOLDED)
@pytest.mark.parametrize("bits", [8, 5, 2])
def test_folded(bits: int, case: str, bias: bool) -> None:
    compute, weight, operator, granularity, shape = FOLDED[case]
    data, out = ("n, 4", "n, 6") if len(shape) == 2 else ("n, 4, 5, 5", "n, 6, h, w")
    more = ', float[6] "a.bias"' if bias else ""
    text = network(
        compute.replace('"a.weight")', '"a.weight", "a.bias")') if bias else compute,
        weight,
        data=data,
        out=out,
        more=more,
    )
    shape_of_weight = tuple(int(size) for size in weight.split(","))
    codes = np.random.default_rng(4).integers(-127, 128, shape_of_weight)
    master = build(text, (layer("a", operator, granularity),), tensors={"n.gamma": GAMMA, "a.weight": codes})  # type: ignore[arg-type]
    before, result = fold(master, bits)
    assert result.modified
    assert "BatchNormalization" not in operators(result.model)
    assert_same_numbers(before, result.model, images(*shape))
    derived = slow.derived(master.tensors["a.weight"], 8, bits, Rounding.HALF_UP)
    np.testing.assert_array_equal(initializer(result.model, "a.weight"), derived)
    axis = 1 if "transposed conv" in case or case in ("gemm", "gemm, per tensor") else 0
    signs = np.sign(GAMMA).reshape([-1 if index == axis else 1 for index in range(derived.ndim)])
    np.testing.assert_array_equal(look(result.model, images(*shape), "a.weight.multiplied"), derived * signs)
    assert (initializer(result.model, "a.weight.scale") > 0).all()
    assert said(result) == [("a.weight", flips(1, 4), True)]


def test_scale_and_bias_by_hand() -> None:
    tensors = {
        "a.weight": np.ones((6, 4, 3, 3)),
        "a.weight.scale": [0.5] * 6,
        "a.bias": [8] * 6,
        "n.gamma": [2, -2, 2, 2, 2, 2],
        "n.beta": [1, 2, 3, 4, 5, 6],
        "n.mean": [0, 4, 8, 0, 0, 0],
        "n.var": [3, 3, 3, 15, 15, 15],
    }
    norm = CONV.replace('"a.weight")', '"a.weight", "a.bias")')
    master = conv_master(compute=norm, more=', float[6] "a.bias"', tensors=tensors)
    model = canonical(master, 8).model
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute.append(onnx.helper.make_attribute("epsilon", 1.0))
    folded = applied("FoldBatchNorm", model, X86).model
    # gains 2 / sqrt(3 + 1) = 1, -1, 1, and 2 / sqrt(15 + 1) = 1 / 2
    np.testing.assert_array_equal(initializer(folded, "a.weight.scale"), [0.5, 0.5, 0.5, 0.25, 0.25, 0.25])
    # beta + gain * (bias - mean)
    bias = initializer(folded, "a.weight.folded_bias")
    np.testing.assert_array_equal(bias, [1 + 8, 2 - (8 - 4), 3 + (8 - 8), 4 + 4, 5 + 4, 6 + 4])


def test_default_epsilon() -> None:
    master = conv_master(tensors={"n.var": np.full((6,), 1e-5), "n.gamma": [1] * 6, "a.weight.scale": [1] * 6})
    _, result = fold(master, 8)
    np.testing.assert_allclose(initializer(result.model, "a.weight.scale"), 1 / np.sqrt(2e-5), rtol=1e-6)


def test_bias_left_out_by_an_empty_name() -> None:
    before, result = fold(conv_master(compute='a = Conv (x, "a.weight", "")'), 8)
    assert result.modified
    assert_same_numbers(before, result.model, images(30, 4, 5, 5))


def test_positive_gains_leave_no_trace() -> None:
    _, result = fold(conv_master(tensors={"n.gamma": np.abs(GAMMA)}), 8)
    assert said(result) == []
    assert "Mul" not in operators(result.model)


@pytest.mark.parametrize("bits", range(2, 8))
def test_the_lowest_code_of_a_narrow_width_can_be_flipped(bits: int) -> None:
    codes = np.full((6, 4, 3, 3), -128)
    before, result = fold(conv_master(tensors={"a.weight": codes}), bits)
    assert said(result) == [("a.weight", flips(1, 4), True)]
    found = look(result.model, images(1, 4, 5, 5), "a.weight.multiplied")
    assert found[1].tolist() == np.full((4, 3, 3), 2 ** (bits - 1)).tolist()
    assert found[0].tolist() == np.full((4, 3, 3), -(2 ** (bits - 1))).tolist()
    assert_same_numbers(before, result.model, images(30, 4, 5, 5))


def test_code_minus_128_under_a_positive_gain() -> None:
    codes = np.full((6, 4, 3, 3), 3)
    codes[0, 0, 0, 0] = -128
    before, result = fold(conv_master(tensors={"a.weight": codes}), 8)
    assert said(result) == [("a.weight", flips(1, 4), True)]
    assert_same_numbers(before, result.model, images(30, 4, 5, 5))


def minus_128(operator: Operator) -> Master:
    """Give a layer with -128 in channel 1, whose gain is negative as is that of channel 4."""
    if operator == "Conv":
        codes = np.full((6, 4, 3, 3), 3)
        codes[1, 2, 0, 0] = -128
        return conv_master(tensors={"a.weight": codes})
    codes = np.full((4, 6, 3, 3), 3)
    codes[2, 1, 0, 0] = -128
    text = network('a = ConvTranspose (x, "a.weight")', "4, 6, 3, 3")
    layers = (layer("a", "ConvTranspose", per_channel(1)),)
    return build(text, layers, tensors={"a.weight": codes, "n.gamma": GAMMA})


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_negative_gain_in_a_channel_with_minus_128(operator: Operator) -> None:
    before, result = fold(minus_128(operator), 8)
    mirrored = "scale negated in output channels 1 (negative BatchNormalization gain and code -128)"
    assert said(result) == [("a.weight", flips(4), True), ("a.weight", mirrored, True)]
    assert (initializer(result.model, "a.weight.scale") < 0).tolist() == [False, True, False, False, False, False]
    assert "BatchNormalization" not in operators(result.model)
    assert_same_numbers(before, result.model, images(30, 4, 5, 5))


TWICE = network(CONV, "6, 4, 3, 3", more="".join(f', float[6] "m.{part}"' for part in BATCH_NORM)).replace(
    "y = Relu (b)", 'm = BatchNormalization (b, "m.gamma", "m.beta", "m.mean", "m.var") y = Relu (m)'
)


@pytest.mark.parametrize("target", [X86, ARM], ids=["x86", "arm64"])
@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_two_in_a_row_under_every_pair_of_signs(bits: int, target: Target) -> None:
    """Channels 0 to 3 hold -128: only the scale can carry the sign, and two negative gains make it positive again."""
    codes = np.random.default_rng(3).integers(-127, 128, (6, 4, 3, 3))
    codes[:4, 0, 0, 0] = -128
    gains = {"n.gamma": [1, -1, 0.9, -0.8, -1, -1], "m.gamma": [1, 1, -1, -1, -1, 1]}
    master = build(TWICE, (layer("a", granularity=PER_CHANNEL),), tensors={"a.weight": codes, **gains})
    before, result = fold(master, bits, target)
    assert "BatchNormalization" not in operators(result.model)
    negative = [False, True, True, False, False, False] if bits == 8 else [False] * 6
    assert (initializer(result.model, "a.weight.scale") < 0).tolist() == negative
    x = images(30, 4, 5, 5)
    assert_same_numbers(before, result.model, x)
    # each channel by itself, in front of the Relu
    expected, found = look(before, x, "m"), look(result.model, x, "m")
    for channel in range(6):
        largest = float(np.abs(expected[:, channel]).max())
        np.testing.assert_allclose(found[:, channel], expected[:, channel], atol=1e-5 * largest)


@pytest.mark.parametrize("target", [X86, profile("jetson-orin-nano")], ids=["x86", "jetson"])
@pytest.mark.parametrize(("gamma", "scale"), [(0.0, 0.01), (1e-37, 1e-3), (-1e-36, 1e-5), (1e-24, 1e-3)])
def test_channels_that_died(gamma: float, scale: float, target: Target) -> None:
    tensors = {"n.gamma": [1, 1, 1, gamma, 1, 1], "a.weight.scale": [scale] * 6, "n.beta": [0.3, 0, 0, 0.5, 0, 0]}
    before, result = fold(conv_master(tensors=tensors), 8, target)
    assert "BatchNormalization" not in operators(result.model)
    assert initializer(result.model, "a.weight.scale").min() == np.float32(2**-80)
    assert not [change for change in result.changes if not change.exact]
    x = images(30, 4, 5, 5)
    assert_same_numbers(before, result.model, x)
    np.testing.assert_array_equal(run(result.model, x)[:, 3], run(before, x)[:, 3])


def test_each_layer_is_judged_alone() -> None:
    text = """
    net (float[n, 2] x, float[2, 2] "a.weight", float[2, 2] "b.weight",
         float[2] "n.gamma", float[2] "n.beta", float[2] "n.mean", float[2] "n.var",
         float[2] "m.gamma", float[2] "m.beta", float[2] "m.mean", float[2] "m.var") => (float[n, 2] y) {
        a = Gemm (x, "a.weight")
        n = BatchNormalization (a, "n.gamma", "n.beta", "n.mean", "n.var")
        b = Gemm (n, "b.weight")
        y = BatchNormalization (b, "m.gamma", "m.beta", "m.mean", "m.var")
    }"""
    gammas = {"n.gamma": [1, 1], "n.mean": [0, -1e38], "m.gamma": [1, 1]}
    master = build(text, (layer("a", "Gemm"), layer("b", "Gemm")), tensors={**gammas, "n.gamma": [1, 1e3]})
    before, result = fold(master, 8)
    assert operators(result.model).count("BatchNormalization") == 1
    assert [(change.where, change.exact) for change in result.changes] == [("a.weight", True)]
    assert result.model.graph.output[0].name == "y"
    assert_same_numbers(before, result.model, images(50, 2))


# --- left alone ----------------------------------------------------------------------------------------------------


def assert_left_alone(before: onnx.ModelProto, result: Applied, reason: str | None) -> None:
    assert not result.modified
    assert operators(result.model) == operators(before)
    assert said(result) == ([("a.weight", f"BatchNormalization kept: {reason}", True)] if reason else [])


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_negative_gain_in_a_channel_with_minus_128_without_negative_scales(operator: Operator) -> None:
    before, result = fold(minus_128(operator), 8, profile("jetson-orin-nano"))
    assert_left_alone(before, result, "a negative gain in a channel with code -128")


@pytest.mark.parametrize(("gamma", "scale", "mean"), [(1e30, 1e30, 0), (1e3, 1e-3, -1e38)])
def test_gains_that_no_scale_can_take(gamma: float, scale: float, mean: float) -> None:
    tensors = {"n.gamma": [1, 1, 1, gamma, 1, 1], "a.weight.scale": [scale] * 6, "n.mean": [0, 0, 0, mean, 0, 0]}
    master = conv_master(tensors=tensors)
    before, result = fold(master, 8)
    assert_left_alone(before, result, "a gain too large for a float32 scale")


@pytest.mark.parametrize("granularity", [per_block(1, 2), per_channel(1)])
def test_scales_that_do_not_run_along_the_output_channels(granularity: Granularity) -> None:
    before, result = fold(conv_master(granularity), 8)
    assert_left_alone(before, result, "the scale does not run along the output channels")


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1)])
def test_grouped_transposed_convolution(granularity: Granularity) -> None:
    text = network('a = ConvTranspose <group: int = 2> (x, "a.weight")', "4, 3, 3, 3")
    before, result = fold(build(text, (layer("a", "ConvTranspose", granularity),), tensors={"n.gamma": GAMMA}), 8)
    assert_left_alone(before, result, "output channels of a grouped ConvTranspose share their scales")


@pytest.mark.parametrize("attribute", ["alpha", "beta"])
def test_gemm_with_alpha_or_beta(attribute: str) -> None:
    text = network(f'a = Gemm <{attribute}: float = 0.5> (x, "a.weight")', "4, 6", data="n, 4", out="n, 6")
    before, result = fold(build(text, (layer("a", "Gemm"),)), 8)
    assert_left_alone(before, result, "Gemm with alpha or beta")


def test_weight_of_several_nodes() -> None:
    text = network('z = Neg (x) a2 = Conv (z, "a.weight") a = Conv (x, "a.weight")', "6, 4, 3, 3")
    text = text.replace("y = Relu (b)", "y = Add (b, a2)")
    before, result = fold(build(text, (layer("a"),)), 8)
    assert_left_alone(before, result, "several nodes read the weight")


def test_computed_bias() -> None:
    compute = 'bias = Neg ("a.bias") a = Conv (x, "a.weight", bias)'
    before, result = fold(conv_master(compute=compute, more=', float[6] "a.bias"'), 8)
    assert_left_alone(before, result, "the bias is not a constant")


@pytest.mark.parametrize("change", ["gamma", "beta", "mean", "var", "training"])
def test_training_mode_and_computed_parameters(change: str) -> None:
    text = network(CONV, "6, 4, 3, 3")
    if change == "training":
        text = text.replace("b = BatchNormalization (", "b, m, v = BatchNormalization <training_mode: int = 1> (")
    else:
        text = (
            text.replace("b = B", f'p = Abs ("n.{change}") b = B')
            .replace(f'"n.{change}", "', 'p, "')
            .replace(f', "n.{change}")', ", p)")
        )
    before, result = fold(build(text, (layer("a"),)), 8)
    assert_left_alone(before, result, "training mode, or parameters that are not constants")


def test_output_that_others_read() -> None:
    text = network(CONV, "6, 4, 3, 3").replace("y = Relu (b)", "y = Add (b, a)")
    before, result = fold(build(text, (layer("a"),)), 8)
    assert_left_alone(before, result, None)


BEHIND = {
    "pinned": network(CONV, "6, 4, 3, 3"),
    "matmul": network('a = MatMul (x, "a.weight")', "4, 6", data="n, 4", out="n, 6"),
    "relu": network('c = Conv (x, "a.weight") a = Relu (c)', "6, 4, 3, 3"),
    "input": network('c = Conv (x, "a.weight") a = Identity (x)', "6, 6, 1, 1", data="n, 6, 5, 5").replace(
        "y = Relu (b)", "y = Add (b, c)"
    ),
}


@pytest.mark.parametrize("case", BEHIND)
def test_behind_anything_else(case: str) -> None:
    operator: Any = "MatMul" if case == "matmul" else "Conv"
    activation = "pinned" if case == "pinned" else "unsigned"
    before, result = fold(build(BEHIND[case], (layer("a", operator, activation=activation),)), 8)
    assert_left_alone(before, result, None)


def test_variance_that_has_no_root() -> None:
    """As a graph that was edited may have; a master with one is not read."""
    model = canonical(conv_master(), 8).model
    (variance,) = [tensor for tensor in model.graph.initializer if tensor.name == "n.var"]
    variance.CopyFrom(onnx.numpy_helper.from_array(np.array([1, 1, -0.5, 1, 1, 1], np.float32), "n.var"))
    with pytest.raises(
        GraphError, match=r"BatchNormalization_1: running variance down to -0\.5\n  allowed: more than -1"
    ):
        applied("FoldBatchNorm", model, X86)
