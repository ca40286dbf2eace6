"""Local functions whose opset is not that of the model."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.lint.linted_graph import LintedGraph
from tests.graph.lint.graphs import linted, nodes

CALL = """<ir_version: 8, opset_import: ["" : {opset}, "acme" : 2]>
    net (float[2] x) => (float[2] y) {{ [one] a = acme.f (x) [two] y = acme.f (a) }}
    <domain: "acme", opset_import: ["" : {own}, "acme" : 1]> f (a) => (r) {{ {body} }}
    <domain: "acme", opset_import: ["" : 17]> inner (a) => (r) {{
        s = Constant <value = float {{-1}}> () i = Constant <value = int8 {{0}}> ()
        q = QuantizeLinear (a, s, i) r = DequantizeLinear (q, s, i)
    }}"""
PAIR = """s = Constant <value = float {-1}> () i = Constant <value = int8 {0}> ()
    q = QuantizeLinear (a, s, i) k = DequantizeLinear (q, s, i) """


def called(body: str, own: int, opset: int) -> onnx.ModelProto:
    return onnx.parser.parse_model(CALL.format(body=body, own=own, opset=opset))


@pytest.mark.parametrize(
    ("body", "own", "opset"),
    [
        (PAIR + "r = Relu (k)", 17, 17),
        (PAIR + "r = Relu (k)", 17, 21),
        (PAIR + "r = Relu (k)", 17, 13),
        (PAIR + "r = Relu (k)", 13, 23),
        (PAIR + "r = Relu (k)", 10, 25),
        (PAIR + "r = Clip (k)", 10, 21),
        (PAIR + "r = Softmax <axis = 0> (k)", 11, 21),
        (PAIR + "r = Squeeze (k)", 11, 21),
        (PAIR + "r = BatchNormalization (k, k, k, k, k)", 13, 21),
        (PAIR + "r = acme.Unheard (k)", 17, 21),
        ("r = acme.inner (a)", 21, 21),
        ("r = acme.inner (a)", 19, 21),
    ],
)
def test_functions_of_another_opset_are_inlined(body: str, own: int, opset: int) -> None:
    model = called(body, own, opset)
    before = model.SerializeToString()
    assert len(nodes(model, "scale-not-positive")) == 4
    assert linted(model).opset == opset
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("body", "own", "opset", "got"),
    [
        ("r = Clip <max = 6.0> (k)", 10, 21, "Clip of opset 10 is another operator than that of 21"),
        ("r = Squeeze <axes = [0]> (k)", 11, 21, "Squeeze of opset 11"),
        ("r = Softmax (k)", 11, 21, "Softmax of opset 11"),
        ("r = Resize (k, s)", 10, 21, "Resize of opset 10"),
        ("r = Relu (k)", 21, 13, "QuantizeLinear of opset 21 is another operator than that of 13"),
        ("r = Unheard (k)", 17, 21, "Unheard of opset 17"),
        (
            """t = Constant <value = bool {1}> () r = If (t) <
                then_branch = one () => (float[2] b) { b = Clip <max = 6.0> (k) },
                else_branch = two () => (float[2] c) { c = Neg (k) }
            >""",
            10,
            21,
            "Clip of opset 10",
        ),
    ],
)
def test_functions_that_mean_something_else_at_the_opset_of_the_model(
    body: str, own: int, opset: int, got: str
) -> None:
    with pytest.raises(GraphError, match=f"test: local function f cannot be inlined: {got}"):
        LintedGraph(called(PAIR + body, own, opset), where="test")


def test_functions_without_codes_may_stay_calls() -> None:
    graph = LintedGraph(called("r = Clip <max = 6.0> (a)", 10, 21), where="test")
    assert [node.operator for node in graph.nodes] == ["f", "f"]


def test_functions_with_layers_may_not_beside_codes() -> None:
    """Their inputs may be in codes where they are called."""
    body = "m = MatMul (a, a) r = Clip <max = 6.0> (m)"
    model = called(body, 10, 21)
    with pytest.raises(GraphError, match="local function f cannot be inlined: Clip"):
        LintedGraph(model, where="test")
    del model.functions[1]  # the only one with Q and DQ
    assert [node.operator for node in LintedGraph(model, where="test").nodes] == ["f", "f"]


def test_functions_that_call_one_with_codes_may_not() -> None:
    with pytest.raises(GraphError, match="local function f cannot be inlined: Clip"):
        LintedGraph(called("k = Clip <max = 6.0> (a) r = acme.inner (k)", 10, 21), where="test")
