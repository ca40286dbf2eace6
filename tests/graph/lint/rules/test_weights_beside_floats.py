"""Weights in codes beside a float activation: which layers onnxruntime makes MatMulNBits of, and which stay float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.graph.lint.graphs import OUT, model, nodes, optimised_operators, pair, weight, with_zero
from tests.graph.lint.rules.test_onnxruntime_floats import FP8, MATRIX, OTHER_TYPES, ROWS
from tests.graph.running import needs_current_onnxruntime, run

pytestmark = needs_current_onnxruntime

# name: (operator, attributes of the DQ, shape of its scale, type of codes, more nodes, whether the input is rounded)
WEIGHT_ONLY = {
    "columns": ("MatMul", "axis = 1", [8], "INT8", "", True),
    "columns, 4 bits": ("MatMul", "axis = 1", [8], "INT4", "", True),
    "columns, from the back": ("MatMul", "axis = -1", [8], "INT8", "", False),
    "rows": ("MatMul", "axis = 0", [32], "INT4", "", False),
    "one scale": ("MatMul", "axis = 1", [], "UINT4", "", True),
    "one scale in a list": ("MatMul", "axis = 1", [1], "INT8", "", False),
    "16 bits": ("MatMul", "axis = 1", [8], "INT16", "", False),
    "fp8": ("MatMul", "axis = 1", [], "FLOAT8E4M3FN", "", False),
    "blocks": ("MatMul", "axis = 0, block_size = 16", [2, 8], "INT4", "", True),
    "large blocks": ("MatMul", "axis = 0, block_size = 64", [1, 8], "INT8", "", True),
    "small blocks": ("MatMul", "axis = 0, block_size = 8", [4, 8], "INT4", "", False),
    "odd blocks": ("MatMul", "axis = 0, block_size = 24", [2, 8], "INT4", "", False),
    "blocks of columns": ("MatMul", "axis = 1, block_size = 16", [32, 1], "INT4", "", False),
    "handed out": ("MatMul", "axis = 1", [8], "INT8", "h = Neg (wd)", False),
    "gemm": ("Gemm", "axis = 1", [8], "INT8", "", True),
    "gemm, blocks": ("Gemm", "axis = 0, block_size = 16", [2, 8], "INT4", "", True),
    "gemm, bias": (
        "Gemm",
        "axis = 1",
        [8],
        "INT4",
        "row = Constant <value = float[8] {1, 2, 3, 4, 5, 6, 7, 8}> ()",
        True,
    ),
    "gemm, one bias": ("Gemm", "axis = 1", [8], "INT4", "row = Constant <value = float[1] {1}> ()", False),
    "gemm, alpha": ("Gemm <alpha = 0.5>", "axis = 1", [8], "INT8", "", False),
    "gemm, beta": ("Gemm <beta = 0.5>", "axis = 1", [8], "INT8", "", True),
}


def weight_only(name: str) -> onnx.ModelProto:
    operator, attributes, size, kind, more, _ = WEIGHT_ONLY[name]
    bias = ", row" if "row" in more else ""
    text = f"wd = DequantizeLinear <{attributes}> (k, scale, zero) {more} [layer] y = {operator} (x, wd{bias})"
    graph = model(text, x="2, 32", y="a, b", outputs="float[e, f] h" if "h =" in more else "")
    data_type = onnx.TensorProto.DataType.Value(kind)
    values = np.random.default_rng(1).integers(0, 2, 256).tolist()
    for tensor, shape, content in (("k", [32, 8], values), ("zero", size, [0] * int(np.prod(size, dtype=int)))):
        graph.graph.initializer.append(onnx.helper.make_tensor(tensor, data_type, shape, content))
    scales = np.full(size, 0.1, np.float32)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(scales, "scale"))
    return graph


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_weights_beside_a_float_activation(name: str, tmp_path: Path) -> None:
    graph, is_rounded = weight_only(name), WEIGHT_ONLY[name][-1]
    assert nodes(graph, "rounded-activation") == (["layer"] if is_rounded else [])
    assert nodes(graph, "float-input") == ([] if is_rounded else ["layer"])
    assert optimised_operators(graph, tmp_path)["MatMulNBits"] == is_rounded
    x = np.random.default_rng(2).normal(size=(2, 32)).astype(np.float32)
    computed, exact = (run(graph, x, optimisation=each) for each in ("all", "off"))
    assert (np.abs(computed - exact).max() > 1e-4) == is_rounded


FLAT: dict[str, Any] = {"constants": "int64[2] flat = {1, -1}"}
FP8_BEHIND = FP8 + pair("c", "y", zero="e")
UINT4_BEHIND = OTHER_TYPES["uint4"] + pair("c", "y", zero="e")
# name: (nodes that make y of c, options of the graph, whether the input is rounded)
BEHIND_WEIGHT_ONLY: dict[str, tuple[str, dict[str, Any], bool]] = {
    "leaky relu, q": ("r = LeakyRelu (c)" + pair("r", "y"), {}, True),
    "q": (OUT, {}, False),
    "q, opset 13": (OUT, {"opset": 13}, False),
    "q, handed out": (OUT, {"outputs": "float[e, f] c"}, False),
    "copy handed out, q": ("copied = Identity (c)" + pair("copied", "y"), {"outputs": "float[e, f] copied"}, True),
    "copy handed out beside q": ("copied = Identity (c)" + OUT, {"outputs": "float[e, f] copied"}, False),
    "q and another": (pair("c", "k") + "y = Add (k, c)", {}, False),
    "two q": (pair("c", "k") + pair("c", "v", "s") + "y = Add (k, v)", {}, False),
    "q of fp8": (FP8_BEHIND, {}, False),
    "q of uint4": (UINT4_BEHIND, {}, False),
    "q of uint16": (pair("c", "y", zero="uh"), {}, True),
    "q of int16": (pair("c", "y", zero="h"), {}, True),
    "relu": ("y = Relu (c)", {}, True),
    "relu, one reader": ("r = Relu (c) y = Neg (r)", {}, False),
    "relu, one reader twice": ("r = Relu (c) y = Mul (r, r)", {}, True),
    "clip, one reader": ("r = Clip (c, lo, hi) y = Neg (r)", {}, False),
    "relu, q": ("r = Relu (c)" + pair("r", "y"), {}, False),
    "clip, q": ("r = Clip (c, lo, hi)" + pair("r", "y"), {}, False),
    "relu, q of uint16": ("r = Relu (c)" + pair("r", "y", zero="uh"), {}, True),
    "relu, q of int16": ("r = Relu (c)" + pair("r", "y", zero="h"), {}, False),
    "clip, q of uint16": ("r = Clip (c, lo, hi)" + pair("r", "y", zero="uh"), {}, False),
    "moved, q": ("t = Transpose (c)" + pair("t", "y"), {}, False),
    "reshaped, q": ("t = Reshape (c, flat)" + pair("t", "y"), FLAT, False),
    "relu, moved, q": ("r = Relu (c) t = Transpose (r)" + pair("t", "y"), {}, False),
    "reshaped, relu, q": ("t = Reshape (c, flat) r = Relu (t)" + pair("r", "y"), FLAT, True),
    "flattened, q": ("t = Flatten (c)" + pair("t", "y"), {}, True),
    "bias": ("y = Add (c, bias)", {}, True),
    "bias, q": ("a = Add (c, bias)" + pair("a", "y"), {}, False),
    "bias, relu, one reader": ("a = Add (c, bias) r = Relu (a) y = Neg (r)", {}, False),
    "rows, bias, q": ("a = Add (c, bias)" + pair("a", "y"), ROWS | {"opset": 20}, False),
    "rows, bias, relu, q": ("a = Add (c, bias) r = Relu (a)" + pair("r", "y"), ROWS | {"opset": 20}, True),
    "open rows, bias, q": ("a = Add (c, bias)" + pair("a", "y"), ROWS | {"opset": 20, "x": "N, 2, 4"}, True),
}


@pytest.mark.parametrize("zero", ["u", "i"])
@pytest.mark.parametrize("name", BEHIND_WEIGHT_ONLY)
def test_what_stands_behind_a_weight_beside_a_float_activation(name: str, zero: str, tmp_path: Path) -> None:
    tail, options, is_rounded = BEHIND_WEIGHT_ONLY[name]
    graph = model(with_zero(weight(1) + "[layer] c = MatMul (x, wd) " + tail, zero), **MATRIX | options)
    assert optimised_operators(graph, tmp_path)["MatMulNBits"] == is_rounded
    assert nodes(graph, "rounded-activation") == (["layer"] if is_rounded else [])
    assert nodes(graph, "float-input") == ([] if is_rounded else ["layer"])


@pytest.mark.parametrize("front", ["uh", "h"])
@pytest.mark.parametrize("name", [name for name, each in BEHIND_WEIGHT_ONLY.items() if each[1].get("opset", 21) >= 21])
def test_an_activation_in_16_bit_codes_is_a_float_one(name: str, front: str, tmp_path: Path) -> None:
    tail, options, is_rounded = BEHIND_WEIGHT_ONLY[name]
    text = (
        pair("x", "xd", zero=front) + with_zero(weight(1), "i") + "[layer] c = MatMul (xd, wd) " + with_zero(tail, "u")
    )
    graph = model(text, **MATRIX | options)
    assert optimised_operators(graph, tmp_path)["MatMulNBits"] == is_rounded
    assert nodes(graph, "rounded-activation") == (["layer"] if is_rounded else [])
    assert ("layer" in nodes(graph, "sixteen-bit-codes")) == (not is_rounded)


@pytest.mark.parametrize("layer", ["MatMul (x, wd)", "Gemm (x, wd)", "Gemm (x, wd, bias)"])
@pytest.mark.parametrize("made", [weight(1), weight(1, zero="in", codes="n")])
@pytest.mark.parametrize("opset", [21, 23])
def test_a_q_behind_other_layers_beside_a_float_activation(layer: str, made: str, opset: int, tmp_path: Path) -> None:
    graph = model(with_zero(made + f"[layer] c = {layer}" + OUT, "u"), **MATRIX, opset=opset)
    assert not optimised_operators(graph, tmp_path)["MatMulNBits"]
    assert nodes(graph, "float-input") == ["layer"]


def test_a_weight_that_two_layers_read_beside_float_activations(tmp_path: Path) -> None:
    graph = model(weight(1) + "c = MatMul (x, wd) y = MatMul (c, wd)", **MATRIX)
    assert not nodes(graph, "rounded-activation")
    assert len(nodes(graph, "float-input")) == optimised_operators(graph, tmp_path)["MatMul"] == 2


@pytest.mark.parametrize(("scale", "zero", "rounded"), [("s1", "i", 1), ("sw", "iw", 0)])
def test_a_transposed_weight_beside_a_float_activation(scale: str, zero: str, rounded: int, tmp_path: Path) -> None:
    graph = model(weight(0, scale, zero) + "t = Transpose (wd) y = MatMul (x, t)", **MATRIX)
    assert len(nodes(graph, "rounded-activation")) == optimised_operators(graph, tmp_path)["MatMulNBits"] == rounded
    assert len(nodes(graph, "float-input")) == 1 - rounded
