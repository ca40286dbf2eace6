from __future__ import annotations

import onnx
import pytest

from tests.graph.lint.graphs import CONV, IN, LAYER, OUT, found, model, nodes, pair, weight, with_zero

INT8_OUT = '<ir_version: 10, opset_import: ["" : 21]> net (float[2] x) => (int8[2] y) <float s = {1}, int8 i = {0}>'


def test_codes_that_something_else_reads() -> None:
    graph = model("[q] q = QuantizeLinear (x, s, i) [cast] c = Cast <to = 1> (q) y = Relu (c)")
    assert found(graph, "q-without-dq") == [("q", "its codes are read by Cast cast")]
    graph = model("[q] q = QuantizeLinear (x, s, i) t = Transpose (q) [abs] a = Abs (t) y = Cast <to = 1> (a)")
    assert found(graph, "q-without-dq") == [("q", "its codes are read by Abs abs")]
    graph = model("[q] q = QuantizeLinear (x, s, i) [abs] a = Abs (q) y = Cast <to = 1> (a)")
    assert found(graph, "q-without-dq") == [("q", "its codes are read by Abs abs")]


def test_codes_that_leave_the_graph() -> None:
    graph = onnx.parser.parse_model(f"{INT8_OUT} {{ [q] y = QuantizeLinear (x, s, i) }}")
    assert found(graph, "q-without-dq") == [("q", "its codes leave the graph")]
    graph = onnx.parser.parse_model(f"{INT8_OUT} {{ [q] z = QuantizeLinear (x, s, i) y = Identity (z) }}")
    assert found(graph, "q-without-dq") == [("q", "its codes leave the graph")]


def test_moved_codes_that_leave_the_graph() -> None:
    graph = onnx.parser.parse_model(f"{INT8_OUT} {{ [q] z = QuantizeLinear (x, s, i) t = Transpose (z) y = Clip (t) }}")
    assert found(graph, "q-without-dq") == [("q", "its codes leave the graph")]


@pytest.mark.parametrize(
    "tail",
    [
        "c = ConvInteger (q, w) y = Cast <to = 1> (c)",
        "c = com.microsoft.QLinearSigmoid (q, s, i, s, i) y = DequantizeLinear (c, s, i)",
        "c = com.microsoft.QLinearConcat <axis = 1> (s, i, q, s, i, q, s, i) y = DequantizeLinear (c, s, i)",
        "c = Concat <axis = 1> (q, q) y = DequantizeLinear (c, s, i)",
        "k = Shape (q) d = DequantizeLinear (q, s, i) y = Reshape (d, k)",
        "c = Cast <to = 6> (q) t = Transpose (c) e = Cast <to = 3> (t) y = DequantizeLinear (e, s, i)",
    ],
)
def test_codes_that_are_read_as_codes(tail: str) -> None:
    graph = model("q = QuantizeLinear (x, s, i) " + tail)
    assert not nodes(graph, "q-without-dq")
    assert not nodes(graph, "dq-without-q")
    assert bool(nodes(graph, "operator-on-codes")) == ("Cast <to = 6>" in tail)


TABLE = """<ir_version: 10, opset_import: ["" : 21]> net (int64[3] at) => (float[a, b] y)
    <float s = {0.1}, int8[2, 2] table = {1, 2, 3, 4}>"""


def test_a_table_of_codes_that_a_gather_looks_up() -> None:
    graph = onnx.parser.parse_model(TABLE + "{ [look] g = Gather (table, at) y = DequantizeLinear (g, s) }")
    assert not nodes(graph, "dq-without-q")
    assert found(graph, "constant-codes") == [("look", "table, a constant in int8")]
    graph = onnx.parser.parse_model(TABLE + "{ t = DequantizeLinear (table, s) y = Gather (t, at) }")
    assert not nodes(graph, "constant-codes")


def test_constant_codes_of_a_weight_are_another_rule() -> None:
    body = IN + "o = Transpose (w)" + weight(codes="o") + LAYER + OUT
    graph = model(with_zero(body, "i"))
    assert not nodes(graph, "constant-codes")
    assert nodes(graph, "weight-path")


def test_codes_from_outside() -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> net (int8[2] x) => (float[2] y) <float s = {1}>'
    graph = onnx.parser.parse_model(f"{text} {{ [dq] y = DequantizeLinear (x, s) }}")
    assert found(graph, "dq-without-q") == [("dq", "codes from x, which no node makes")]
    graph = onnx.parser.parse_model(f"{text} {{ [abs] a = Abs (x) [dq] y = DequantizeLinear (a, s) }}")
    assert found(graph, "dq-without-q") == [("dq", "codes from Abs abs")]


@pytest.mark.parametrize(
    "body",
    [
        with_zero(CONV, "i"),
        pair("x", "y", "s", "i", on_codes="Transpose (*)"),
        "q = QuantizeLinear (x, s, i) c = QLinearConv (q, s, i, w, s1, i, s2, i) y = DequantizeLinear (c, s2, i)",
    ],
)
def test_pairs(body: str) -> None:
    for rule in ("q-without-dq", "dq-without-q", "dangling"):
        assert not nodes(model(body), rule)


def test_results_that_nobody_reads() -> None:
    graph = model("[q] q = QuantizeLinear (x, s, i) [dq] d = DequantizeLinear (q, s, i) y = Relu (x)")
    assert found(graph, "dangling") == [("dq", "a result that nobody reads")]
    graph = model("[q] q = QuantizeLinear (x, s, i) y = Relu (x)")
    assert nodes(graph, "dangling") == ["q"]


@pytest.mark.parametrize(
    ("body", "operator"),
    [
        ("q = QuantizeLinear (x, s, i) [op] c = ConvInteger (q, w) y = Cast <to = 1> (c)", "ConvInteger"),
        (
            "q = QuantizeLinear (x, s, i) [op] c = QLinearConv (q, s, i, w, s1, i, s2, i)"
            " y = DequantizeLinear (c, s2, i)",
            "QLinearConv",
        ),
        (
            "q = QuantizeLinear (x, s, i) [op] c = com.microsoft.QLinearAdd (q, s, i, q, s, i, s2, i)"
            " y = DequantizeLinear (c, s2, i)",
            "QLinearAdd",
        ),
        ("[op] q, m, k = DynamicQuantizeLinear (x) y = DequantizeLinear (q, m, k)", "DynamicQuantizeLinear"),
    ],
)
def test_operators_that_compute_with_codes(body: str, operator: str) -> None:
    assert found(model(body), "integer-operator") == [("op", operator)]


@pytest.mark.parametrize(
    "operator",
    [
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "GatherBlockQuantized",
        "MatMulBnb4",
        "MatMulFpQ4",
        "QEmbedLayerNormalization",
        "QMoE",
        "QOrderedMatMul",
    ],
)
def test_operators_that_quantizers_of_onnxruntime_write(operator: str) -> None:
    graph = model(f"[op] y = com.microsoft.{operator} (x, w, s)")
    assert found(graph, "integer-operator") == [("op", operator)]
    assert not nodes(graph, "constant-codes")


def test_operators_of_other_domains_are_none() -> None:
    graph = model("y = Relu (x)")
    graph.graph.node[0].op_type, graph.graph.node[0].domain = "QLinearConv", "acme"
    assert not nodes(graph, "integer-operator")
