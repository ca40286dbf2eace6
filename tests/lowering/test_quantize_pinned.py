"""QuantizePinned: which float layers get codes, which codes, and that they run in integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.lowering.approximation import EXACT, USUAL, Approximation
from bitswitch_deploy.lowering.lower import LoweredGraph, calibrated_tensors, lower
from bitswitch_deploy.lowering.ranges import RangeObserver, TensorRange, best_scale
from bitswitch_deploy.master import Master
from bitswitch_deploy.master.spec import Operator
from tests.graph.masters import build, layer, per_channel
from tests.graph.running import initializer, look, operators, run
from tests.lowering.lowered import INT8_CPU, Applied, applied, canonical, fast_operators, is_untouched, profile

Array = np.ndarray[Any, np.dtype[Any]]

X86, INT8 = profile("x86-cpu"), profile("arm64-cpu", INT8_CPU)
PINNED = frozenset({Approximation.PINNED_LAYERS})
WANTED = USUAL | PINNED


def seen(values: Array) -> TensorRange:
    observer = RangeObserver()
    observer.observe(values)
    return observer.result()


def pinned(
    compute: str, weight: str, data: str, output: str, *, more: str = "", layers: tuple[Any, ...] = (), **tensors: Any
) -> onnx.ModelProto:
    """Give a network of one pinned layer a."""
    text = f'net (float[{data}] x, float[{weight}] "a.weight"{more}) => (float[{output}] y) {{ {compute} }}'
    kinds: tuple[Operator, ...] = ("ConvTranspose", "Conv", "Gemm", "MatMul")
    operator = next(each for each in kinds if each in compute)
    given = {key.replace("_", "."): value for key, value in tensors.items()}
    master = build(text, (layer("a", operator, activation="pinned"), *layers), tensors=given)
    return canonical(master, 4).model


def quantize(
    model: onnx.ModelProto, x: Array, *, target: Any = X86, approximations: frozenset[Approximation] = PINNED
) -> Applied:
    ranges = {"x": seen(x)}
    return applied("QuantizePinned", model, target, ranges=ranges, approximations=approximations)


# operator, shape of weight, of input, of output, axis of the output channels
KINDS: dict[str, tuple[str, str, str, str, int]] = {
    "convolution": ('y = Conv <pads = [1, 1, 1, 1]> (x, "a.weight")', "6, 4, 3, 3", "n, 4, 5, 5", "n, 6, 5, 5", 0),
    "1-D": ('y = Conv (x, "a.weight")', "6, 4, 3", "n, 4, 5", "n, 6, 3", 0),
    "3-D": ('y = Conv (x, "a.weight")', "6, 4, 1, 2, 3", "n, 4, 3, 3, 3", "n, 6, 3, 2, 1", 0),
    "depthwise": ('y = Conv <group = 4> (x, "a.weight")', "4, 1, 3, 3", "n, 4, 5, 5", "n, 4, 3, 3", 0),
    "transposed": ('y = ConvTranspose (x, "a.weight")', "4, 6, 3, 3", "n, 4, 5, 5", "n, 6, 7, 7", 1),
    "gemm": ('y = Gemm (x, "a.weight")', "4, 6", "n, 4", "n, 6", 1),
    "gemm, weight transposed": ('y = Gemm <transB = 1> (x, "a.weight")', "6, 4", "n, 4", "n, 6", 0),
    "gemm, alpha": ('y = Gemm <transB = 1, alpha = 0.5> (x, "a.weight")', "6, 4", "n, 4", "n, 6", 0),
    "matmul": ('y = MatMul (x, "a.weight")', "4, 6", "n, 4", "n, 6", 1),
    "matmul, rank 3": ('y = MatMul (x, "a.weight")', "4, 6", "n, 7, 4", "n, 7, 6", 1),
}


def data_of(kind: str, *, low: float) -> Array:
    shape = [int(each) if each.strip().isdigit() else 60 for each in KINDS[kind][2].split(",")]
    return np.random.default_rng(2).uniform(low, 3, shape).astype(np.float32)


@pytest.mark.parametrize("low", [0.0, -2.0], ids=["unsigned", "signed"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_inputs(kind: str, low: float) -> None:
    *form, axis = KINDS[kind]
    before, x = pinned(*form), data_of(kind, low=low)
    weight = initializer(before, "a.weight").astype(np.float64)
    result = quantize(before, x)
    (change,) = result.changes
    assert (change.where, change.what) == (before.graph.node[0].name, "8-bit weights and inputs after training")
    assert not change.exact
    # one scale for each output channel, the largest weight of each is code 127
    codes, scale = initializer(result.model, "a.weight.codes"), initializer(result.model, "a.weight.codes.scale")
    assert codes.dtype == np.int8
    assert (codes.shape, scale.shape) == (weight.shape, (weight.shape[axis],))
    rows = np.moveaxis(codes, axis, 0).reshape(len(scale), -1).astype(np.int64)
    assert (np.abs(rows).max(axis=1) == 127).all()
    restored = rows * scale[:, None].astype(np.float64)
    exact = np.moveaxis(weight, axis, 0).reshape(len(scale), -1)
    assert (np.abs(restored - exact) <= scale[:, None] * 0.5001).all()
    (dequantize,) = [node for node in result.model.graph.node if node.input[0] == "a.weight.codes"]
    assert {attribute.name: attribute.i for attribute in dequantize.attribute} == {"axis": axis}
    # the container follows the sign of what was seen
    quantizer = next(node for node in result.model.graph.node if node.op_type == "QuantizeLinear")
    ends = (0, 255) if low == 0 else (-128, 127)
    assert initializer(result.model, quantizer.input[1]) == np.float32(best_scale(seen(x), low=ends[0], high=ends[1]))
    zero_point = initializer(result.model, quantizer.input[2])
    assert zero_point.dtype == (np.uint8 if low == 0 else np.int8)
    assert zero_point == 0
    assert "Clip" not in operators(result.model)
    # and all in all it computes nearly the same
    expected = run(before, x)
    for optimisation in ("off", "all"):
        error = run(result.model, x, optimisation=optimisation) - expected
        assert np.linalg.norm(error) / np.linalg.norm(expected) < 0.01


def test_channels_of_zeros() -> None:
    weight = np.zeros((6, 4, 3, 3))
    weight[1], weight[3] = 0.5, 1e-42  # less than any float32 with full precision: a scale of its own would be none
    before, x = pinned(*KINDS["convolution"][:4], a_weight=weight), data_of("convolution", low=0)
    result = quantize(before, x)
    scale = initializer(result.model, "a.weight.codes.scale")
    assert scale.tolist() == [1, np.float32(0.5 / 127), 1, 1, 1, 1]
    assert not initializer(result.model, "a.weight.codes")[[0, 2, 3, 4, 5]].any()
    assert np.isfinite(run(result.model, x)).all()


def test_an_input_of_zeros() -> None:
    before, x = pinned(*KINDS["gemm"][:4]), np.zeros((5, 4), np.float32)
    result = quantize(before, x)
    np.testing.assert_array_equal(run(result.model, x), run(before, x))


def test_layers_that_read_one_tensor() -> None:
    compute = 'a = Conv (x, "a.weight") b = Conv (x, "b.weight") y = Add (a, b)'
    before = pinned(
        compute,
        "6, 4, 3, 3",
        "n, 4, 5, 5",
        "n, 6, 3, 3",
        more=', float[6, 4, 3, 3] "b.weight"',
        layers=(layer("b", activation="pinned"),),
    )
    x = data_of("convolution", low=-2)
    result = quantize(before, x)
    (change,) = result.changes
    assert change.where == "Conv_0, Conv_1"
    expected = run(before, x)
    assert np.linalg.norm(run(result.model, x) - expected) / np.linalg.norm(expected) < 0.01


def test_half_of_the_codes_where_int8_begins_at_zero() -> None:
    target = profile("arm64-cpu", {"quantization.activation": {"dtype": "int8", "zero_point": 0}})
    before, x = pinned(*KINDS["gemm"][:4]), data_of("gemm", low=0)
    result = quantize(before, x, target=target)
    quantizer = next(node for node in result.model.graph.node if node.op_type == "QuantizeLinear")
    assert initializer(result.model, quantizer.input[1]) == np.float32(best_scale(seen(x), low=0, high=127))
    codes = look(
        result.model, np.full((1, 4), 1e6, np.float32), f"{quantizer.output[0].removesuffix('.codes')}.clipped"
    )
    assert codes.max() == 127


def test_codes_that_are_there_stay() -> None:
    text = """
    net (float[n, 4] x, float[4, 6] "a.weight") => (float[n, 6] y) <float s = {0.1}, uint8 z = {0}> {
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        y = MatMul (d, "a.weight")
    }"""
    before = canonical(build(text, (layer("a", "MatMul", activation="pinned"),)), 4).model
    result = applied("QuantizePinned", before, X86, approximations=PINNED)
    assert result.modified
    assert operators(result.model).count("QuantizeLinear") == 1
    assert initializer(result.model, "s") == np.float32(0.1)


LEFT_ALONE: dict[str, tuple[str, str, str, str]] = {
    "grouped transposed": ('y = ConvTranspose <group = 2> (x, "a.weight")', "4, 3, 3, 3", "n, 4, 5, 5", "n, 6, 7, 7"),
    "batched": ('y = MatMul (x, "a.weight")', "2, 4, 6", "2, n, 4", "2, n, 6"),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    before = pinned(*LEFT_ALONE[case])
    result = quantize(before, np.ones(3, np.float32))
    assert is_untouched(result, before)
    assert result.changes == []


COMPUTED = """
net (float[n, 4] x, float[4, 4] "a.kernel") => (float[n, 4] y) {
    w = BODY
    m = MatMul (x, w)
    y = MatMul (m, READ)
}"""


@pytest.mark.parametrize(
    ("body", "read"),
    [('Neg ("a.kernel")', "w"), ('Identity ("a.kernel")', '"a.kernel"')],
    ids=["computed", "read twice"],
)
def test_weights_that_are_computed_or_read_twice_are_left_alone(body: str, read: str) -> None:
    text = COMPUTED.replace("BODY", body).replace("READ", read)
    if "Identity" in body:
        text = text.replace("(x, w)", '(x, "a.kernel")')
    before = canonical(build(text, ()), 4).model
    assert is_untouched(quantize(before, np.ones(3, np.float32)), before)


@pytest.mark.parametrize("approximations", [EXACT, USUAL], ids=["exact", "usual"])
def test_not_asked_for(approximations: frozenset[Approximation]) -> None:
    before = pinned(*KINDS["gemm"][:4])
    result = quantize(before, np.ones(3, np.float32), approximations=approximations)
    assert is_untouched(result, before)


def test_a_missing_range() -> None:
    with pytest.raises(GraphError, match=r"input x of Gemm_0: no observed range\n.*\n.*observe the ranges"):
        applied("QuantizePinned", pinned(*KINDS["gemm"][:4]), X86, approximations=PINNED)


# --- a whole network -----------------------------------------------------------------------------------------------


def network(**changes: Any) -> Master:
    """Give pinned stem, BatchNorm, Relu, a convolution, mean, pinned classifier with a bias."""
    parts = ("gamma", "beta", "mean", "var")
    norm = ", ".join(f'float[6] "n.{part}"' for part in parts)
    text = f"""
    net (float[n, 3, 8, 8] x, float[6, 3, 3, 3] "stem.weight", {norm}, float[6, 6, 3, 3] "a.weight", float[6] "a.bias",
         float[5, 6] "head.weight", float[5] "head.bias") => (float[n, 5] y) {{
        stem = Conv <pads = [1, 1, 1, 1]> (x, "stem.weight")
        n = BatchNormalization (stem, {", ".join(f'"n.{part}"' for part in parts)})
        r = Relu (n)
        a = Conv <pads = [1, 1, 1, 1]> (r, "a.weight", "a.bias")
        s = Relu (a)
        m = GlobalAveragePool (s)
        flat = Flatten (m)
        y = Gemm <transB = 1> (flat, "head.weight", "head.bias")
    }}"""
    layers = (
        layer("stem", activation="pinned"),
        layer("a", "Conv", per_channel(0)),
        layer("head", "Gemm", activation="pinned"),
    )
    return build(text, layers, **changes)


def images(count: int = 60) -> Array:
    return np.random.default_rng(9).normal(0.2, 1, (count, 3, 8, 8)).astype(np.float32)


def whole(bits: int, target: Any, approximations: frozenset[Approximation]) -> tuple[onnx.ModelProto, LoweredGraph]:
    graph = canonical(network(), bits)
    names = calibrated_tensors(graph, target, approximations)
    ranges = {name: seen(images() if name == "x" else look(graph.model, images(), name)) for name in names}
    return graph.model, lower(graph, target, ranges=ranges, approximations=approximations)


# at 2 bits QuantizeBias counts in finer steps, which stay in uint8, and no convolution runs between two containers
@pytest.mark.parametrize(
    ("bits", "target"), [*((bits, X86) for bits in (8, 6, 4, 2)), *((bits, INT8) for bits in (8, 6, 4))]
)
def test_stem_and_classifier_run_in_integers(bits: int, target: Any) -> None:
    before, after = whole(bits, target, WANTED)
    assert not after.exact
    assert {"QuantizePinned", "FoldBatchNorm"} <= set(after.passes)
    found = fast_operators(after.model, X86)
    assert found.get("QLinearConv") == 2
    assert found.get("QGemm", 0) + found.get("MatMulIntegerToFloat", 0) == 1
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "BatchNormalization", "BitShift"} & found.keys()
    expected = run(before, images())
    for optimisation in ("off", "all"):
        error = run(after.model, images(), optimisation=optimisation) - expected
        # a code of two bits that moves is a third of the range
        assert np.linalg.norm(error) / np.linalg.norm(expected) < {8: 0.03, 6: 0.05, 4: 0.1, 2: 0.3}[bits]


def test_calibrated_tensors() -> None:
    graph = canonical(network(), 4)
    assert calibrated_tensors(graph, X86, EXACT) == ()
    assert calibrated_tensors(graph, X86, USUAL) == ("s",)
    assert calibrated_tensors(graph, X86, PINNED) == ("x", "flat")
    assert calibrated_tensors(graph, X86, WANTED) == ("x", "flat", "s", "m")
    assert calibrated_tensors(graph, profile("rtx"), PINNED) == ()
    without = profile("x86-cpu", {"lowering": [name for name in X86.lowering if name != "QuantizePinned"]})
    assert calibrated_tensors(graph, without, WANTED) == ("s",)


def test_the_master_s_float_weights_are_left_as_they_are() -> None:
    master = network()
    kept = np.array(master.tensors["stem.weight"])
    graph = canonical(master, 4)
    data = graph.model.SerializeToString()
    ranges = {name: seen(images()) for name in ("x", "flat")}
    lower(graph, X86, ranges=ranges, approximations=PINNED)
    assert graph.model.SerializeToString() == data
    np.testing.assert_array_equal(master.tensors["stem.weight"], kept)
