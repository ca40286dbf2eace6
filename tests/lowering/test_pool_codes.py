"""PoolCodes: the largest code is the code of the largest value, whatever the window, and padding is no value."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.graph.model_io import export_model, import_model
from bitswitch_deploy.graph.qdq import activation_patterns, refine_activation
from bitswitch_deploy.lowering.approximation import EXACT
from tests.graph.masters import build, layer, per_channel
from tests.graph.running import look, operators
from tests.lowering.critical_values import critical
from tests.lowering.lowered import INT8_CPU, Applied, applied, canonical, fast_operators, is_untouched, lowered, profile

Array = np.ndarray[Any, np.dtype[Any]]

X86, INT8 = profile("x86-cpu"), profile("arm64-cpu", INT8_CPU)
PADDED = "p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)"


def text(pool: str, *, data: str = "n, 2, 7, 8", kernel: str = "1, 1", more: str = "") -> str:
    rank = data.count(",") + 1
    out = ", ".join("nchwd"[:rank])
    return (
        f'net (float[{data}] x, float[2, 2, {kernel}] "a.weight") => (float[{out}] y) '
        f'{{ {pool} {more} y = Conv (p, "a.weight") }}'
    )


def before_of(source: str, bits: int = 4, activation: str = "unsigned", container: str = "uint8") -> onnx.ModelProto:
    layers = (layer("a", activation=activation),)
    tensors = {"a.input.scale": [0.1]}
    return canonical(build(source, layers, widths=(bits,), tensors=tensors, activation_container=container), bits).model


def pooled(model: onnx.ModelProto) -> Applied:
    return applied("PoolCodes", model, X86, approximations=EXACT)


def codes(model: onnx.ModelProto, x: Array, optimisation: Any = "off") -> Array:
    last = next(node.input[0] for node in model.graph.node if node.name == "a.input/DequantizeLinear")
    return look(model, x, last, optimisation=optimisation)


def data(bits: int, activation: str, shape: tuple[int, ...] = (60, 2, 7, 8)) -> Array:
    """Give images of critical values; in half of them all are negative, so that a zero from the padding would win."""
    low = -int(2 ** (bits - 1)) if activation == "signed" else 0
    values = critical(np.float32(0.1), low, low + 2**bits - 1).ravel()
    images = np.random.default_rng(3).choice(values, shape)
    images[::2] = -np.abs(images[::2])
    images[1::4] += 0.1
    return np.asarray(images, np.float32)


POOLS = {
    "padding": PADDED,
    "ceil mode": "p = MaxPool <kernel_shape = [2, 3], strides = [2, 3], ceil_mode = 1> (x)",
    "ceil mode, padding": "p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 1>"
    " (x)",
    "dilations": "p = MaxPool <kernel_shape = [2, 2], dilations = [2, 3]> (x)",
    "same": 'p = MaxPool <kernel_shape = [2, 2], auto_pad = "SAME_UPPER"> (x)',
}
KINDS = [
    *((bits, "unsigned", "uint8") for bits in (8, 6, 5, 4, 2)),
    (8, "unsigned", "int8"),
    *((bits, "signed", "uint8") for bits in (8, 7, 4, 3, 2)),
]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("bits", "activation", "container"), KINDS)
def test_same_codes(bits: int, activation: str, container: str, pool: str) -> None:
    before = before_of(text(POOLS[pool]), bits, activation, container)
    result = pooled(before)
    assert (result.modified, result.changes) == (True, [])
    x = data(bits, activation)
    expected = codes(before, x)
    assert len(np.unique(expected)) > 2
    for optimisation in ("off", "all"):
        np.testing.assert_array_equal(codes(result.model, x, optimisation), expected)
    # it is the codes that are pooled
    pool_node = next(node for node in result.model.graph.node if node.op_type == "MaxPool")
    assert pool_node.input[0].endswith(".pooled.dequantized")


@pytest.mark.parametrize(
    ("kernel", "shape"), [("[3]", (40, 2, 9)), ("[2, 3, 2]", (10, 2, 4, 5, 6))], ids=["1-D", "3-D"]
)
@pytest.mark.parametrize("activation", ["unsigned", "signed"])
def test_other_ranks(activation: str, kernel: str, shape: tuple[int, ...]) -> None:
    rank = len(shape) - 2
    pads = [1] * (2 * rank)
    source = text(
        f"p = MaxPool <kernel_shape = {kernel}, pads = {pads}> (x)",
        data=", ".join(["n", *map(str, shape[1:])]),
        kernel=", ".join(["1"] * rank),
    )
    before = before_of(source, 4, activation)
    result = pooled(before)
    assert result.modified
    x = data(4, activation, shape)
    for optimisation in ("off", "all"):
        np.testing.assert_array_equal(codes(result.model, x, optimisation), codes(before, x))


@pytest.mark.parametrize("target", [X86, INT8], ids=["uint8", "int8"])
@pytest.mark.parametrize(("bits", "activation"), [(b, kind) for b in (8, 6, 4, 2) for kind in ("unsigned", "signed")])
def test_whole_target_around_another_zero_point(bits: int, activation: str, target: Any) -> None:
    """Signed codes lie around 128 in the end, or unsigned ones from -128: padding is neither."""
    master = build(text(PADDED), (layer("a", activation=activation),), widths=(bits,), tensors={"a.input.scale": [0.1]})
    before, after = lowered(master, bits, target, approximations=EXACT)
    assert "PoolCodes" in after.passes
    x = data(bits, activation)
    expected = look(before.model, x, "a.input.dequantized")
    for optimisation in ("off", "all"):
        found = look(after.model, x, "a.input.dequantized", optimisation=optimisation)
        np.testing.assert_array_equal(found, expected)


def test_pools_in_a_row() -> None:
    row = PADDED.replace("p = ", "q = ") + " p = MaxPool <kernel_shape = [2, 2]> (q)"
    before = before_of(text(row))
    result = pooled(before)
    assert operators(result.model).count("QuantizeLinear") == 3
    x = data(4, "unsigned")
    np.testing.assert_array_equal(codes(result.model, x), codes(before, x))


STEM = """
net (float[n, 4, 9, 9] x, float[4, 4, 3, 3] "a.weight", float[4] "a.bias", float[4, 4, 3, 3] "b.weight",
     float[4] "b.bias", float[4, 4, 1, 1] "z.weight") => (float[n, 4, h, w] y) {
    a = Conv (x, "a.weight", "a.bias")
    r = Relu (a)
    p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r)
    b = Conv <pads = [1, 1, 1, 1]> (p, "b.weight", "b.bias")
    s = Relu (b)
    y = Conv (s, "z.weight")
}"""


@pytest.mark.parametrize("bits", [4, 2])
def test_pool_between_two_layers_moves_bytes(bits: int) -> None:
    master = build(STEM, [layer(name, "Conv", per_channel(0)) for name in "abz"])
    _, after = lowered(master, bits, X86)
    found = fast_operators(after.model, X86)
    assert found.get("QLinearConv") == 2
    assert found.get("NhwcMaxPool") == 1
    assert "MaxPool" not in found
    assert found.get("Transpose", 0) <= 2


# --- left alone ----------------------------------------------------------------------------------------------------

LEFT_ALONE = {
    "in codes already": "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) " + PADDED.replace("(x)", "(d)"),
    "others read the input": f"r = Relu (x) {PADDED.replace('(x)', '(r)')} e = MaxPool <kernel_shape = [1, 1]> (r)",
    "a float node reads the output": PADDED.replace("p =", "q =") + " p = Sigmoid (q)",
    "indices": PADDED.replace("p =", "p, i ="),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    source = text(LEFT_ALONE[case]).replace(") {", ") <float s = {0.2}, uint8 z = {0}> {", 1)
    if case.startswith("others"):
        source = source.replace("w] y)", "w] y, float[n, c, e, f] e)")
    before = before_of(source)
    if case == "indices":
        before.graph.output.append(onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, ["n", 2, "e", "f"]))
    assert is_untouched(pooled(before), before)


@pytest.mark.parametrize("name", ["p", "r"])
def test_graph_outputs_are_left_alone(name: str) -> None:
    before = before_of(text("r = Relu (x) " + PADDED.replace("(x)", "(r)")))
    value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 2, "e", "f"])
    before.graph.output.append(value)
    assert not pooled(before).modified


def test_shifted_codes_are_left_alone() -> None:
    graph = import_model(before_of(text(PADDED)))
    refine_activation(graph, activation_patterns(graph)[0], 2)
    assert not pooled(export_model(graph, opset=21, ir_version=10)).modified
