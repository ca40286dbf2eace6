"""QuantizeBias: the integer codes behind a layer, with every optimisation of onnxruntime, are the canonical ones.

The last layer of each network, z, has the identity as its weight: the codes of its input are read off the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.lowering.approximation import USUAL, Approximation
from bitswitch_deploy.lowering.lower import LoweredGraph
from bitswitch_deploy.master import Master
from bitswitch_deploy.master.spec import LayerSpec, Operator
from bitswitch_deploy.tensors import PER_TENSOR, Granularity, Rounding
from tests.graph import slow
from tests.graph.masters import build, layer, per_block, per_channel
from tests.graph.running import initializer, look, needs_current_onnxruntime, operators, run
from tests.lowering.lowered import applied, canonical, fast_operators, is_untouched, lowered, profile

Array = np.ndarray[Any, np.dtype[Any]]

X86, ARM = profile("x86-cpu"), profile("arm64-cpu")
PER_CHANNEL = per_channel(0)
CONV = 'a = Conv (x, "a.weight", "a.bias")'


def network(
    compute: str, *, weight: str = "6, 4, 3, 3", bias: str = "6", data: str = "n, 4, 5, 5", more: str = ""
) -> str:
    """Give a network that ends in z, a 1x1 convolution or a product with the identity."""
    flat = data.count(",") == 1
    eye, last, out = ("6, 6", "MatMul", "n, 6") if flat else ("6, 6, 1, 1", "Conv", "n, 6, h, w")
    return (
        f'net (float[{data}] x, float[{weight}] "a.weight", float[{bias}] "a.bias", float[{eye}] "z.weight"{more})'
        f' => (float[{out}] y) {{ {compute} y = {last} (s, "z.weight") }}'
    )


def master_of(
    text: str,
    operator: Operator = "Conv",
    granularity: Granularity = PER_CHANNEL,
    activation: str = "unsigned",
    *,
    more: tuple[LayerSpec, ...] = (),
    tensors: dict[str, Any] | None = None,
    **changes: Any,
) -> Master:
    last: Operator = "MatMul" if "MatMul (s" in text else "Conv"
    identity = np.eye(6) * 64
    given: dict[str, Any] = {"z.weight": identity if last == "MatMul" else identity[:, :, None, None]}
    layers = (layer("a", operator, granularity), *more, layer("z", last, activation=activation))
    # ranges that the outputs of these layers fill
    probe = build(text, layers, tensors={**given, **(tensors or {})}, **changes)
    ends = [activation_top(bits, activation) for bits in probe.spec.widths]
    given["z.input.scale"] = [spread_of(probe, bits) / end for bits, end in zip(probe.spec.widths, ends)]
    return build(text, layers, tensors={**given, **(tensors or {})}, **changes)


def activation_top(bits: int, activation: str) -> int:
    return int(2 ** (bits - (activation == "signed"))) - 1


def spread_of(master: Master, bits: int) -> float:
    model = canonical(master, bits).model
    shape = [dim.dim_value or 50 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    source = next(node.input[0] for node in model.graph.node if node.name == "z.input/QuantizeLinear")
    return float(np.quantile(np.abs(look(model, inputs(*shape), source)), 0.98)) or 1.0


def inputs(*shape: int) -> Array:
    return np.random.default_rng(11).uniform(-1, 3, shape).astype(np.float32)


def revealed(master: Master, bits: int, y: Array) -> Array:
    """Give the codes of the input of z."""
    step = float(master.tensors["z.input.scale"][master.spec.widths.index(bits)])
    return np.rint(y / (step * 64 * float(master.tensors["z.weight.scale"]))).astype(np.int64)


def codes_of_both(
    master: Master,
    bits: int,
    target: Any,
    x: Array,
    *,
    without: str = "",
    approximations: frozenset[Approximation] = USUAL,
) -> tuple[Array, Array, LoweredGraph]:
    """Give the codes of the canonical graph, and those of the lowered one with all optimisations."""
    if without:
        target = profile(target.name, {"lowering": [name for name in target.lowering if name != without]})
    before, after = lowered(master, bits, target, approximations=approximations)
    fast = run(after.model, x, optimisation="all", session=dict(target.engine.session))
    return revealed(master, bits, run(before.model, x)), revealed(master, bits, fast), after


# --- every layer that onnxruntime rounds the bias of ---------------------------------------------------------------

RELU = CONV + " s = Relu (a)"
GEMM = 'a = Gemm (x, "a.weight", "a.bias") s = Relu (a)'
TRANSPOSED = 'a = ConvTranspose (x, "a.weight", "a.bias") s = Relu (a)'
MATMUL = 'm = MatMul (x, "a.weight") a = Add (m, "a.bias") s = Relu (a)'
BOUNDS = "low = Constant <value_float: float = 0.0> () high = Constant <value_float: float = 6.0> ()"
IMAGES, ROWS = (400, 4, 5, 5), (3000, 4)
DENSE = {"data": "n, 4", "weight": "4, 6"}
COLUMNS = per_channel(1)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and the kind of its first layer."""

    text: str
    operator: Operator = "Conv"
    granularity: Granularity = PER_CHANNEL
    activation: str = "unsigned"

    @property
    def shape(self) -> tuple[int, ...]:
        return ROWS if "float[n, 4] x" in self.text else IMAGES

    def master(self, bits: int) -> Master:
        return master_of(self.text, self.operator, self.granularity, self.activation, widths=(bits,))


def behind(compute: str, constants: str = "", activation: str = "unsigned") -> Case:
    """Give a convolution with `compute` behind it."""
    text = network(f"{CONV} {compute}")
    return Case(text=text.replace(" {", f" <{constants}> {{", 1) if constants else text, activation=activation)


CASES = {
    "relu": behind("s = Relu (a)"),
    "per tensor": Case(text=network(RELU), granularity=PER_TENSOR),
    "no relu": behind("s = Identity (a)"),
    "signed": behind("s = Identity (a)", activation="signed"),
    "relu, signed": behind("s = Relu (a)", activation="signed"),
    "grouped": Case(text=network(RELU.replace("Conv", "Conv <group = 2>"), weight="6, 2, 3, 3")),
    "clip, bounds not constant": behind(f"{BOUNDS} s = Clip (a, low, high)"),
    "clip": behind("s = Clip (a, low, high)", "float low = {0}, float high = {1.5}"),
    "clip below": behind("s = Clip (a, low)", "float low = {-0.5}", activation="signed"),
    "max pool": behind("r = Relu (a) s = MaxPool <kernel_shape = [2, 2]> (r)"),
    "transpose": behind("r = Relu (a) s = Transpose <perm = [0, 1, 3, 2]> (r)"),
    "reshape": behind("r = Relu (a) s = Reshape (r, to)", "int64[4] to = {0, 6, 1, 9}"),
    "slice": behind("r = Relu (a) s = Slice (r, b, e, ax)", "int64[1] b = {1}, int64[1] e = {3}, int64[1] ax = {2}"),
    "squeeze": behind("r = Relu (a) u = Unsqueeze (r, ax) s = Squeeze (u, ax)", "int64[1] ax = {1}"),
    "identity, dropout": behind("r = Relu (a) i = Identity (r) s = Dropout (i)"),
    "transposed": Case(text=network(TRANSPOSED, weight="4, 6, 3, 3"), operator="ConvTranspose", granularity=COLUMNS),
    "transposed, strides, per tensor": Case(
        text=network(TRANSPOSED.replace("Transpose", "Transpose <strides = [2, 2]>"), weight="4, 6, 3, 3"),
        operator="ConvTranspose",
        granularity=PER_TENSOR,
    ),
    "gemm": Case(text=network(GEMM, **DENSE), operator="Gemm", granularity=COLUMNS),
    "gemm, weight transposed": Case(
        text=network(GEMM.replace("Gemm", "Gemm <transB = 1>"), data="n, 4", weight="6, 4"), operator="Gemm"
    ),
    "gemm, bias is a row": Case(text=network(GEMM, bias="1, 6", **DENSE), operator="Gemm", granularity=COLUMNS),
    "matmul and add": Case(text=network(MATMUL, **DENSE), operator="MatMul", granularity=COLUMNS),
    "add and matmul": Case(
        text=network(MATMUL.replace('Add (m, "a.bias")', 'Add ("a.bias", m)'), **DENSE),
        operator="MatMul",
        granularity=PER_TENSOR,
    ),
}


@pytest.mark.parametrize("target", [X86, ARM], ids=["x86", "arm64"])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("case", CASES)
def test_same_codes_as_the_canonical_graph(case: str, bits: int, target: Any) -> None:
    expected, found, after = codes_of_both(CASES[case].master(bits), bits, target, inputs(*CASES[case].shape))
    assert after.exact
    assert "QuantizeBias" in after.passes
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(expected)) >= 2


@pytest.mark.parametrize("bits", [5, 6, 7])
@pytest.mark.parametrize("case", CASES)
def test_same_codes_where_it_says_so_at_wider_codes(case: str, bits: int) -> None:
    """Most layers need shifted inputs here, and some have a channel that remains inexact."""
    expected, found, after = codes_of_both(CASES[case].master(bits), bits, X86, inputs(*CASES[case].shape))
    assert (found != expected).mean() <= (0 if after.exact else 1e-2)
    assert after.exact or bits > 5


# onnxruntime 1.23 computes a ConvTranspose in float, with any bias
MOVED = [case for case in CASES if case not in ("gemm, bias is a row", "transposed")]


@pytest.mark.parametrize("case", [*MOVED, pytest.param("transposed", marks=needs_current_onnxruntime)])
def test_without_the_pass_onnxruntime_moves_codes(case: str) -> None:
    inputs_of_case = inputs(*CASES[case].shape)
    expected, found, _ = codes_of_both(CASES[case].master(3), 3, X86, inputs_of_case, without="QuantizeBias")
    assert (found != expected).mean() > 1e-3


def test_convolutions_really_run_in_integers() -> None:
    for case in ("relu", "no relu", "signed", "max pool", "transpose"):
        _, after = lowered(CASES[case].master(4), 4, X86)
        found = fast_operators(after.model, X86)
        assert (found.get("QLinearConv"), found.get("Conv")) == (1, 1)  # z has no codes behind it


@pytest.mark.parametrize("bits", [4, 2])
def test_weights_stay_the_derived_ones(bits: int) -> None:
    master = master_of(network(RELU))
    before = canonical(master, bits).model
    result = applied("QuantizeBias", before, X86)
    derived = slow.derived(master.tensors["a.weight"], 8, bits, Rounding.HALF_UP)
    np.testing.assert_array_equal(initializer(result.model, "a.weight"), derived)
    products = look(result.model, inputs(1, 4, 5, 5), "a.weight.multiplied").astype(np.int64)
    factors = np.abs(products).max(axis=(1, 2, 3)) // np.abs(derived).max(axis=(1, 2, 3))
    assert factors.min() > 1
    np.testing.assert_array_equal(products, derived * factors.reshape(6, 1, 1, 1))
    ratio = initializer(result.model, "a.weight.scale") * factors / initializer(before, "a.weight.scale")
    assert (np.abs(ratio - 1) < 0.011).all()


def test_form_of_the_bias() -> None:
    result = applied("QuantizeBias", canonical(master_of(network(RELU)), 4).model, X86)
    node = next(node for node in result.model.graph.node if node.name == "a.weight.bias/DequantizeLinear")
    codes, scale, zero_point = (initializer(result.model, name) for name in node.input)
    assert {str(codes.dtype), str(zero_point.dtype)} == {"int32"}
    assert codes.shape == (6,)
    assert not zero_point.any()
    step = initializer(result.model, "a.input.scale") * initializer(result.model, "a.weight.scale")
    np.testing.assert_array_equal(scale, step.astype(np.float32))
    conv = next(node for node in result.model.graph.node if node.op_type == "Conv")
    assert conv.input[2] == node.output[0]


def test_shifted_inputs() -> None:
    """At 6 bits inputs times 4 fit uint8; the layer computes with the same numbers, in integers as before."""
    master = CASES["relu"].master(6)
    before, after = lowered(master, 6, X86)
    finer = next(node for node in after.model.graph.node if node.name == "a.input.fine/QuantizeLinear")
    x = inputs(50, 4, 5, 5)
    codes = look(before.model, x, "a.input.clipped")
    np.testing.assert_array_equal(look(after.model, x, finer.output[0]), 3 + codes * 4)
    assert codes.max() == 63
    found, expected = (look(model, x, "a.input.dequantized") for model in (after.model, before.model))
    np.testing.assert_array_equal(found, expected)
    assert fast_operators(after.model, X86).get("QLinearConv") == 1
    bias = next(node for node in after.model.graph.node if node.name == "a.weight.bias/DequantizeLinear")
    step = initializer(after.model, "a.input.scale") / 4 * initializer(after.model, "a.weight.scale")
    np.testing.assert_array_equal(initializer(after.model, bias.input[1]), step.astype(np.float32))


UNSHIFTED = {
    "exact without": (CASES["relu"].text, 4, "unsigned"),
    "no bits to spare": (CASES["relu"].text, 8, "unsigned"),
    "signed": (CASES["relu"].text, 6, "signed"),
    "one bit, which is not enough": (CASES["relu"].text, 7, "unsigned"),
}


@pytest.mark.parametrize("case", UNSHIFTED)
def test_inputs_that_are_not_shifted(case: str) -> None:
    text, bits, activation = UNSHIFTED[case]
    layers = (layer("a", "Conv", PER_CHANNEL, activation), layer("z"))
    _, after = lowered(build(text, layers), bits, X86)
    assert "QuantizeBias" in after.passes
    # a BitShift is what Requantize makes finer steps of
    assert not [node.name for node in after.model.graph.node if node.op_type == "BitShift" or ".fine" in node.name]


def test_inputs_of_several_readers_are_not_shifted() -> None:
    before = canonical(CASES["relu"].master(6), 6).model
    value = onnx.helper.make_tensor_value_info("a.input.dequantized", onnx.TensorProto.FLOAT, ("n", 4, 5, 5))
    before.graph.output.append(value)
    result = applied("QuantizeBias", before, X86)
    assert result.modified
    assert "BitShift" not in operators(result.model)


# --- channels that training left odd --------------------------------------------------------------------------------

NORM_INPUTS = ", ".join(f'float[6] "n.{part}"' for part in ("gamma", "beta", "mean", "var"))
NORMED = network(
    f'{CONV} b = BatchNormalization (a, "n.gamma", "n.beta", "n.mean", "n.var") s = Relu (b)', more=f", {NORM_INPUTS}"
)


SIGNS = np.where([False, True, False, False, True, False], -1, 1)


def backwards(model: onnx.ModelProto, signs: Array) -> onnx.ModelProto:
    """Let scales of the first weight be negative."""
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == "a.weight.scale")
    negative = np.asarray(onnx.numpy_helper.to_array(scale) * signs, np.float32)
    scale.CopyFrom(onnx.numpy_helper.from_array(negative, scale.name))
    return model


@pytest.mark.parametrize("case", ["relu", "no relu", "grouped", "gemm, weight transposed"])
@pytest.mark.parametrize("bits", [2, 4])
def test_negative_scales(case: str, bits: int) -> None:
    """Two channels count backwards: same codes, in integers."""
    before = backwards(canonical(CASES[case].master(bits), bits).model, SIGNS)
    after = applied("QuantizeBias", before, X86)
    assert after.modified
    assert not after.changes
    assert np.sign(initializer(after.model, "a.weight.scale")).tolist() == SIGNS.tolist()
    x = inputs(*CASES[case].shape)
    expected = run(before, x)
    # one code differs by more than this
    np.testing.assert_allclose(run(after.model, x, optimisation="all"), expected, rtol=1e-5, atol=1e-6)
    if CASES[case].operator == "Conv":
        assert len(np.unique(expected[:, SIGNS < 0])) >= 2
        assert fast_operators(after.model, X86).get("QLinearConv") == 1


def test_under_a_negative_scale_sums_reach_the_other_way() -> None:
    """All weights are positive, so outputs lie below the bias: thresholds there decide, those above do not."""
    weights = np.random.default_rng(8).integers(1, 8, (6, 4, 3, 3)) * 16
    master = master_of(network(RELU), tensors={"a.weight": weights, "a.bias": [0.5] * 6}, widths=(4,))
    # the outputs of the first layer are in 0..0.5
    before = backwards(canonical(master, 4).model, -np.ones(6))
    for name, value in (("a.weight.scale", -2e-3), ("z.input.scale", 0.5 / 15)):
        tensor = next(each for each in before.graph.initializer if each.name == name)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tensor.dims, value, np.float32), name))
    after = applied("QuantizeBias", before, X86)
    assert not after.changes
    expected = run(before, inputs(*IMAGES))
    np.testing.assert_allclose(run(after.model, inputs(*IMAGES), optimisation="all"), expected, rtol=1e-5, atol=1e-6)
    assert len(np.unique(expected)) > 5


@pytest.mark.parametrize("bits", [2, 4])
def test_channels_that_are_their_bias(bits: int) -> None:
    """A gain of nearly nothing: the bias counts 1e9 and more of its steps, which no int32 holds."""
    gamma, beta = [1, 0, -1e-30, 1e-12, 1, 1e-38], [0.1, 0.9, 0.8, 0.7, 0.2, 0.0]
    master = master_of(NORMED, tensors={"n.gamma": gamma, "n.beta": beta}, widths=(bits,))
    expected, found, after = codes_of_both(master, bits, X86, inputs(*IMAGES))
    assert after.exact
    np.testing.assert_array_equal(found, expected)
    assert [len(np.unique(expected[:, channel])) for channel in (1, 2, 3, 5)] == [1, 1, 1, 1]
    products = look(after.model, inputs(1, 4, 5, 5), "a.weight.multiplied")
    assert products.any(axis=(1, 2, 3)).tolist() == [True, False, False, False, True, True]
    assert np.abs(initializer(after.model, "a.weight.bias.codes")[1:4]).max() < 2**15
    assert expected[:, 1:4].any(axis=(0, 2, 3)).tolist() == [True, True, True]
    assert fast_operators(after.model, X86)["QLinearConv"] == 1


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
@pytest.mark.parametrize("border", [False, True])
def test_codes_without_a_zero(bits: int, border: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of inputs of 1 and more are far from 0, which is what a channel without weights and a border sum up to."""
    kernel, pads, bias = (
        ("3, 3", "<pads = [1, 1, 1, 1]>", [-20.0] * 6) if border else ("1, 1", "", [-1, -0.5, 0.2, 0.3, 0.5, 0.1])
    )
    layers = f'r = Clip (x, low, high) a = Conv {pads} (r, "a.weight", "a.bias") s = Relu (a)'
    text = network(layers, weight=f"6, 4, {kernel}").replace(" {", " <float low = {1.0}, float high = {3.0}> {", 1)
    weights = np.full((6, 4, *map(int, kernel.split(","))), 64)
    top = 3.0 if border else 1.0
    tensors = {
        "a.weight": weights, "a.weight.scale": np.full(6, 0.01), "a.bias": bias,
        "z.weight": np.eye(6)[:, :, None, None] * 64,
        "a.input.scale": [3 / 255, 3 / 63, 3 / 15, 3 / 3], "z.input.scale": [top / 255, top / 63, top / 15, top / 3],
    }  # fmt: skip
    master = build(text, (layer("a", "Conv", PER_CHANNEL), layer("z", "Conv")), tensors=tensors)
    # as many channels as possible are called their bias
    monkeypatch.setattr("bitswitch_deploy.lowering.quantize_bias._LARGE_BIAS", 1.0)
    expected, found, after = codes_of_both(master, bits, X86, inputs(*IMAGES))
    if after.exact:
        np.testing.assert_array_equal(found, expected)
    assert np.mean(found != expected) < 0.02
    assert expected.any(axis=(0, 2, 3)).all()


@pytest.mark.parametrize("bits", [6, 4, 3, 2])
@pytest.mark.parametrize("pads", ["pads = [1, 1, 1, 1]", 'auto_pad = "SAME_UPPER"'])
def test_sums_at_a_border_count_where_codes_have_no_zero(bits: int, pads: str) -> None:
    """There are fewer products in them, which are all positive, so that they are less than any other sum."""
    layers = f'r = Clip (x, low, high) a = Conv <{pads}> (r, "a.weight", "a.bias") s = Relu (a)'
    text = network(layers, weight="6, 4, 3, 3").replace(" {", " <float low = {2.0}, float high = {3.0}> {", 1)
    top = 2**bits - 1
    seen = 0
    for seed in range(6):
        random = np.random.default_rng(seed)
        tensors = {
            "a.weight": random.integers(20, 127, (6, 4, 3, 3)), "a.weight.scale": np.full(6, 0.01),
            "a.bias": -random.uniform(5, 45, 6), "z.weight": np.eye(6)[:, :, None, None] * 64,
            "a.input.scale": [3 / top], "z.input.scale": [random.choice([10, 30]) / top],
        }  # fmt: skip
        layers_of = (layer("a", "Conv", PER_CHANNEL), layer("z", "Conv"))
        master = build(text, layers_of, tensors=tensors, widths=(bits,))
        expected, found, after = codes_of_both(master, bits, X86, inputs(100, 4, 5, 5))
        if after.exact:
            # float32 sums of the canonical graph lie on the wrong side of a threshold now and then
            assert np.sum(found != expected) <= 3
            seen += len(np.unique(expected)) > 1
    assert seen


def test_a_negative_gain_with_code_minus_128_runs_in_integers() -> None:
    weights = np.random.default_rng(3).integers(-128, 128, (6, 4, 3, 3))
    weights[:, 0, 0, 0] = -128
    tensors = {"n.gamma": [1, -1, 0.5, -0.5, 1, 1], "a.weight": weights}
    master = master_of(NORMED, tensors=tensors, widths=(8,))
    expected, found, after = codes_of_both(master, 8, X86, inputs(*IMAGES))
    assert fast_operators(after.model, X86)["QLinearConv"] == 1
    assert (found != expected).mean() <= 1e-2
    assert len(np.unique(expected[:, [1, 3]])) > 100


def test_bias_of_a_matmul_is_a_whole_number_of_steps() -> None:
    text = network(MATMUL, bias="1, 1, 6", **DENSE)
    master = master_of(text.replace("=> (float[n, 6]", "=> (float[1, n, 6]"), "MatMul", per_channel(1))
    result = applied("QuantizeBias", canonical(master, 4).model, X86)
    bias = initializer(result.model, "a.weight.bias")
    assert bias.shape == (1, 1, 6)
    steps = bias / (initializer(result.model, "a.input.scale") * initializer(result.model, "a.weight.scale"))
    np.testing.assert_allclose(steps, np.rint(steps), rtol=1e-6)
    assert "int32" not in {
        str(onnx.numpy_helper.to_array(tensor).dtype)
        for tensor in result.model.graph.initializer
        if "bias" in tensor.name
    }


@pytest.mark.parametrize("bias", ["1", ""])
def test_one_bias_for_all_channels(bias: str) -> None:
    text = network(GEMM, bias="1", **DENSE)
    text = text if bias else text.replace('float[1] "a.bias"', 'float "a.bias"')
    master = master_of(text, "Gemm", per_channel(1), tensors={"a.bias": 0.4321 if not bias else [0.4321]})
    expected, found, after = codes_of_both(master, 4, X86, inputs(3000, 4))
    assert after.exact
    np.testing.assert_array_equal(found, expected)
    assert initializer(after.model, "a.weight.bias.codes").shape == (6,)


def test_one_bias_for_two_layers() -> None:
    compute = 'a = Conv (x, "a.weight", "a.bias") r = Relu (a) b = Conv (r, "b.weight", "a.bias") s = Relu (b)'
    text = network(compute, weight="6, 4, 3, 3", more=', float[6, 6, 1, 1] "b.weight"')
    master = master_of(text, more=(layer("b", granularity=PER_CHANNEL),))
    expected, found, after = codes_of_both(master, 4, X86, inputs(*IMAGES))
    assert after.exact
    np.testing.assert_array_equal(found, expected)
    assert {"a.weight.bias.codes", "b.weight.bias.codes"} <= {tensor.name for tensor in after.model.graph.initializer}


def test_behind_a_folded_batch_norm_with_flipped_signs() -> None:
    norms = "".join(f', float[6] "n.{part}"' for part in ("gamma", "beta", "mean", "var"))
    text = network(
        f'{CONV} n = BatchNormalization (a, "n.gamma", "n.beta", "n.mean", "n.var") s = Relu (n)', more=norms
    )
    master = master_of(text, tensors={"n.gamma": [1, -1, 0.5, -2, 1, 0.3]}, widths=(3,))
    expected, found, after = codes_of_both(master, 3, X86, inputs(*IMAGES))
    assert after.passes == ("FoldBatchNorm", "QuantizeBias")
    assert after.exact
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bias", [1e9, -1e9, 3e38])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_bias_beyond_int32(bias: float, bits: int) -> None:
    master = master_of(network(RELU), tensors={"a.bias": [bias, 0, bias, 0, 0, bias], "z.input.scale": [0.01] * 4})
    expected, found, after = codes_of_both(master, bits, X86, inputs(*IMAGES))
    assert np.abs(initializer(after.model, "a.weight.bias.codes")[[0, 2, 5]]).max() < 2**15
    np.testing.assert_array_equal(found[:, [0, 2, 5]], expected[:, [0, 2, 5]])
    assert set(expected[:, 0].ravel().tolist()) == {2**bits - 1 if bias > 0 else 0}


def test_eight_bits_confess_what_they_move() -> None:
    _, after = lowered(master_of(network(RELU)), 8, X86)
    (change,) = after.changes
    assert (change.by, change.where, change.exact) == ("QuantizeBias", "biases", False)
    assert change.what in [f"int32 rounding moves a code threshold in {moved} of 6 channels" for moved in range(1, 7)]
    assert not after.exact


def test_int32_bias_is_refused_for_tensorrt() -> None:
    for name in ("rtx", "jetson-orin-nano", "jetson-xavier-nx"):
        passes = ["ClampActivations", "QuantizeBias", "SetOpset"]
        with pytest.raises(GraphError, match=r"DequantizeLinear a\.weight\.bias/DequantizeLinear: int32 codes"):
            lowered(master_of(network(RELU)), 4, profile(name, {"lowering": passes}))
        _, after = lowered(master_of(network(RELU)), 4, profile(name))
        assert "a.bias" in {tensor.name for tensor in after.model.graph.initializer}


def test_a_clip_leaves_fewer_thresholds_to_keep() -> None:
    """At 8 bits 255 thresholds have no exact bias, the few below a low Clip have one."""
    compute = f"{CONV} s = Clip (a, low, high)"
    for high, exact in ((100.0, False), (0.012, True)):
        text = network(compute).replace(" {", f" <float low = {{0}}, float high = {{{high}}}> {{", 1)
        master = build(text, (layer("a", "Conv", PER_CHANNEL), layer("z")), tensors={"z.input.scale": [0.01] * 4})
        assert lowered(master, 8, X86)[1].exact is exact


# --- left alone ----------------------------------------------------------------------------------------------------

LEFT_ALONE: dict[str, tuple[str, dict[str, Any]]] = {
    "input in float": (RELU, {"a": "none"}),
    "output in float": (CONV + " r = Relu (a) s = Sigmoid (r)", {}),
    "output pooled": (CONV + " r = Relu (a) s = AveragePool <kernel_shape = [2, 2]> (r)", {}),
    "output read twice": (CONV + " r = Relu (a) f = ReduceMax <keepdims = 1> (r) s = Add (r, f)", {}),
    "no bias": ('a = Conv (x, "a.weight") s = Relu (a)', {}),
    "bias from data": (
        'f = ReduceMax <keepdims = 0> (x) c = Add ("a.bias", f) a = Conv (x, "a.weight", c) s = Relu (a)',
        {},
    ),
    "scale per block": (RELU, {"granularity": per_block(1, 2)}),
    "scale along the input": (RELU, {"granularity": per_channel(1)}),
    "pinned": (RELU, {"a": "pinned"}),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    compute, options = LEFT_ALONE[case]
    granularity = options.get("granularity", PER_CHANNEL)
    layers = (layer("a", "Conv", granularity, options.get("a", "unsigned")), layer("z"))
    master = build(network(compute), layers, tensors={"z.weight": np.eye(6)[:, :, None, None] * 64})
    before, after = lowered(master, 4, X86)
    assert after.passes == ()
    assert after.changes == ()
    x = inputs(50, 4, 5, 5)
    fast = run(after.model, x, optimisation="all", session=dict(X86.engine.session))
    np.testing.assert_array_equal(revealed(master, 4, fast), revealed(master, 4, run(before.model, x)))


@pytest.mark.parametrize("case", ["gemm", "matmul"])
def test_a_bias_that_differs_within_a_channel_is_left_alone(case: str) -> None:
    operator: Operator = "MatMul" if case == "matmul" else "Gemm"
    text = network(MATMUL if case == "matmul" else GEMM, data="6, 4", weight="4, 6", bias="6, 1")
    expected, found, after = codes_of_both(master_of(text, operator, COLUMNS), 4, X86, inputs(6, 4))
    assert (after.passes, after.changes) == ((), ())
    np.testing.assert_array_equal(found, expected)


def test_grouped_transposed_convolution_with_many_scales_is_left_alone() -> None:
    text = network(TRANSPOSED.replace("Transpose", "Transpose <group = 2>"), weight="4, 3, 3, 3")
    master = master_of(text, "ConvTranspose", COLUMNS, widths=(3,))
    expected, found, after = codes_of_both(master, 3, X86, inputs(*IMAGES))
    assert (after.passes, after.changes) == ((), ())
    np.testing.assert_array_equal(found, expected)


def test_batched_weight_is_left_alone() -> None:
    text = """
    net (float[1, n, 6] x, float[1, 6, 6] "a.weight", float[6] "a.bias", float[6, 6] "z.weight") => (float[1, n, 6] y) {
        m = MatMul (x, "a.weight")
        a = Add (m, "a.bias")
        y = MatMul (a, "z.weight")
    }"""
    before, after = lowered(build(text, (layer("a", "MatMul"), layer("z", "MatMul"))), 4, X86)
    assert (after.passes, after.changes) == ((), ())
    x = inputs(1, 200, 6)
    np.testing.assert_array_equal(run(after.model, x), run(before.model, x))


def test_codes_that_nothing_dequantizes_are_no_thresholds() -> None:
    text = """
    net (float[n, 4] x, float[4, 6] "a.weight", float[6] "a.bias") => (float[n, 6] y)
        <float s = {0.1}, uint8 z = {0}> {
        a = Gemm (x, "a.weight", "a.bias")
        q = QuantizeLinear (a, s, z)
        y = Cast <to: int = 1> (q)
    }"""
    graph = canonical(build(text, (layer("a", "Gemm"),)), 4)
    result = applied("QuantizeBias", graph.model, X86)
    # as a layer with a float output
    assert [node.op_type for node in result.model.graph.node].count("Sub") == 1


def test_product_of_two_data_tensors_is_left_alone() -> None:
    text = """
    net (float[n, 4] x, float[4, 6] "a.weight", float[6, 6] "z.weight") => (float[n, 6] y) {
        m = MatMul (x, "a.weight")
        t = Transpose (m)
        square = MatMul (t, m)
        y = MatMul (square, "z.weight")
    }"""
    _, after = lowered(build(text, (layer("a", "MatMul"), layer("z", "MatMul"))), 4, X86)
    assert after.passes == ()


SHARED = 'c = Conv <pads = [1, 1, 1, 1]> (x, "a.weight", "a.bias") r = Relu (c) a = Conv (r, "a.weight", "a.bias")'
CONFESSED = {
    "several nodes read the weight": Case(
        text=network(f"{SHARED} s = Relu (a)", weight="4, 4, 3, 3", bias="4")
        .replace("6, 6, 1, 1", "4, 4, 1, 1")
        .replace("n, 6, h", "n, 4, h")
    ),
    "Gemm with alpha or beta": Case(
        text=network(GEMM.replace("Gemm", "Gemm <alpha = 0.5, beta = 0.7>"), **DENSE),
        operator="Gemm",
        granularity=COLUMNS,
    ),
    "output channels of a grouped ConvTranspose share their scale": Case(
        text=network(TRANSPOSED.replace("Transpose", "Transpose <group = 2>"), weight="4, 3, 3, 3"),
        operator="ConvTranspose",
        granularity=PER_TENSOR,
    ),
    "it is computed in the graph": Case(
        text=network(f"{BOUNDS} b = Add ({{}}, high) {RELU}".replace("{}", '"a.bias"').replace(', "a.bias")', ", b)"))
    ),
}


@pytest.mark.parametrize("reason", CONFESSED)
def test_left_alone_and_confessed(reason: str) -> None:
    case = CONFESSED[reason]
    last: Operator = "MatMul" if "MatMul (s" in case.text else "Conv"
    master = build(case.text, (layer("a", case.operator, case.granularity), layer("z", last)))
    before = canonical(master, 4).model
    result = applied("QuantizeBias", before, X86)
    what = f"onnxruntime rounds the bias to steps of s_x * s_w: {reason}"
    assert {(change.where, change.what, change.exact) for change in result.changes} == {("a.weight", what, False)}
    assert not result.modified
    assert operators(result.model) == operators(before)
    x = inputs(*case.shape)
    fast = run(result.model, x, optimisation="all")
    assert np.abs(fast - run(before, x)).max() > 1e-3  # the confession is true
    # it is an approximation where there is something else to do
    without = applied("QuantizeBias", before, X86, approximations=USUAL - {Approximation.ROUNDED_BIAS})
    named = None if is_untouched(without, before) else Approximation.ROUNDED_BIAS
    assert {change.approximation for change in result.changes} == {named}


@pytest.mark.parametrize("attribute", ["alpha", "beta"])
def test_one_of_alpha_and_beta_is_enough(attribute: str) -> None:
    text = network(GEMM.replace("Gemm", f"Gemm <{attribute} = 0.5>"), **DENSE)
    master = build(text, (layer("a", "Gemm"), layer("z", "MatMul")))
    assert not applied("QuantizeBias", canonical(master, 4).model, X86).modified
