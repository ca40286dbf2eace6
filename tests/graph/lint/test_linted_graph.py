"""The index of foreign graphs: where constants come from, who reads what, and graphs that are none."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.lint.linted_graph import LintedGraph, Node
from tests.graph.lint.graphs import IN, WEIGHT, found, linted, model, nodes, pair, with_zero


def index(text: str, *, header: str = "(float[2, 4] x) => (float[a, b] y)") -> LintedGraph:
    parsed = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> net {header} {{ {text} }}')
    return LintedGraph(parsed, where="test")


def named(graph: LintedGraph, name: str) -> Node:
    return next(node for node in graph.nodes if node.name == name)


def test_every_form_of_a_constant() -> None:
    graph = index(
        """
        a = Constant <value = float[2] {1, 2}> () b = Constant <value_float = 3.0> ()
        c = Constant <value_floats = [4.0, 5.0]> () d = Constant <value_int = 6> ()
        e = Constant <value_ints = [7, 8]> ()
        [all] y = Concat <axis = 0> (a, b, c, d, e, x)"""
    )
    values = [graph.values(tensor) for tensor in named(graph, "all").inputs]
    assert [None if each is None else each.tolist() for each in values] == [[1, 2], 3, [4, 5], 6, [7, 8], None]


def test_what_depends_on_constants_alone() -> None:
    graph = index(
        "a = Constant <value_float = 3.0> () b = Neg (a) c = Add (a, b) d = Add (c, x)"
        " r = RandomNormal <shape = [1]> () [end] y = Sum (a, b, c, d, r)"
    )
    assert [graph.is_constant(tensor) for tensor in named(graph, "end").inputs] == [True, True, True, False, False]


FOLDED = [
    ("Neg (a)", [-2, -4]),
    ("Cast <to = 3> (a)", [2, 4]),
    ("Mul (a, b)", [6, 12]),
    ("Div (b, a)", [1.5, 0.75]),
    ("Reshape (a, to)", [[2], [4]]),
    ("Unsqueeze (a, one)", [[2], [4]]),
    ("Squeeze (a)", [2, 4]),
    ("Expand (b, to)", [[3], [3]]),
    ("ConstantOfShape (to)", [[0], [0]]),
    ("ConstantOfShape <value = int8[1] {7}> (one)", [7]),
    ("DequantizeLinear (codes, b, one_code)", [0, 3]),
    ("DequantizeLinear (codes, b)", [3, 6]),
    # nothing is said of these
    ("Add (a, x)", None),
    ("ReduceMax (a)", None),
    ("ConstantOfShape (huge)", None),
    ("Expand (a, huge)", None),
    ("Reshape (a, huge)", None),
    ("Cast <to = 99> (a)", None),
    ("DequantizeLinear (codes, a)", None),
]


@pytest.mark.parametrize(("text", "value"), FOLDED)
def test_what_is_computed_from_constants(text: str, value: object) -> None:
    graph = index(
        "a = Constant <value_floats = [2.0, 4.0]> () b = Constant <value_float = 3.0> ()"
        " to = Constant <value_ints = [2, 1]> () one = Constant <value_ints = [1]> ()"
        " huge = Constant <value_ints = [100000, 100000]> () codes = Constant <value = int8[2] {1, 2}> ()"
        f" one_code = Constant <value = int8 {{1}}> () k = {text} [end] y = Neg (k)"
    )
    values = graph.values(named(graph, "end").inputs[0])
    assert (None if values is None else values.tolist()) == value


def test_a_long_chain_is_not_folded() -> None:
    text = "t0 = Constant <value_float = 3.0> () " + " ".join(f"t{i + 1} = Neg (t{i})" for i in range(3000))
    graph = index(text + " [end] y = Neg (t3000)")
    assert graph.values(named(graph, "end").inputs[0]) is None


def test_identities_are_passed_over() -> None:
    graph = index("[first] a = Relu (x) b = Identity (a) c = Identity (b) [one] d = Neg (c) [two] y = Add (a, d)")
    first = named(graph, "first").outputs[0]
    assert first is not None
    assert [node.name for node in graph.readers(first)] == ["two", "one"]
    assert graph.source(named(graph, "one").inputs[0] or first) is first
    assert not graph.is_output(first)
    graph = index("[first] a = Relu (x) y = Identity (a)")
    result = named(graph, "first").outputs[0]
    assert result is not None
    assert graph.is_output(result)


def test_a_long_chain_of_identities() -> None:
    n = 3000
    text = "t0 = Relu (x) " + " ".join(f"t{i + 1} = Identity (t{i})" for i in range(n)) + f" [end] y = Neg (t{n})"
    graph = index(text)
    start = graph.nodes[0].outputs[0]
    assert start is not None
    assert [node.name for node in graph.readers(start)] == ["end"]


BRANCHES = """
    {0} c = Constant <value = bool {{1}}> ()
    [if] y = If (c) <
        then_branch = then () => (float[2, 4] r) <float s = {{-1}}, int8 i = {{0}}> {{
            [q] q = QuantizeLinear (x, s, i) [dq] r = DequantizeLinear (q, s, i)
        }},
        else_branch = other () => (float[2, 4] r) <float s = {{0.5}}, int8 i = {{0}}> {{
            [q] q = QuantizeLinear (x, s, i) [dq] r = DequantizeLinear (q, s, i)
        }}
    >"""


def test_branches_have_names_of_their_own() -> None:
    """Both hold an `s`; one of them is negative."""
    parsed = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> net (float[2, 4] x) => (float[2, 4] y) {{ {BRANCHES.format("")} }}'
    )
    assert nodes(parsed, "scale-not-positive") == ["if/then_branch/q", "if/then_branch/dq"]
    assert not found(parsed, "dangling")


def test_names_of_a_branch_hide_those_around_it() -> None:
    body = BRANCHES.format("s = Constant <value_float = -2.0> () k = Neg (s)")
    parsed = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> net (float[2, 4] x) => (float[2, 4] y) {{ {body} }}'
    )
    assert nodes(parsed, "scale-not-positive") == ["if/then_branch/q", "if/then_branch/dq"]


def test_a_node_with_a_subgraph_is_not_constant() -> None:
    parsed = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> net (float[2, 4] x) => (float[2, 4] y) {{ {BRANCHES.format("")} }}'
    )
    graph = LintedGraph(parsed, where="test")
    assert not graph.is_constant(named(graph, "if").outputs[0])


def test_local_functions_are_inlined() -> None:
    parsed = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21, "acme" : 1]>
        net (float[2] x) => (float[2] y) <float s = {-1}, int8 i = {0}> { y = acme.fake (x, s, i) }
        <domain: "acme", opset_import: ["" : 21]>
        fake (a, scale, zero) => (r) { q = QuantizeLinear (a, scale, zero) r = DequantizeLinear (q, scale, zero) }"""
    )
    assert len(nodes(parsed, "scale-not-positive")) == 2


FUNCTION = """<ir_version: 10, opset_import: ["" : 21, "acme" : 1]>
    net (float[2] x) => (float[2] y) {{ y = acme.f {} }}
    <domain: "acme", opset_import: ["" : 21, "acme" : 1]> f (a) => (r) {{ r = {} (a) }}"""


@pytest.mark.parametrize("parts", [("(x)", "acme.f"), ("(x, x)", "Relu")])
def test_functions_that_call_themselves_or_are_called_with_too_much(parts: tuple[str, str]) -> None:
    with pytest.raises(GraphError, match="test: local functions that cannot be inlined"):
        LintedGraph(onnx.parser.parse_model(FUNCTION.format(*parts)), where="test")


@pytest.mark.parametrize("operator", ["acme.Print", "MaxPool", "Add", "Identity", "Clip", "Relu", "QuantizeLinear"])
def test_nodes_without_results(operator: str) -> None:
    graph = model(with_zero(IN + WEIGHT + "c = Conv (d, wd) y = Relu (c)", "i"))
    for read in ("d", "d_codes", "c", "x"):
        domain, _, kind = operator.rpartition(".")
        graph.graph.node.append(onnx.helper.make_node(kind, [read, read], [], domain=domain))
    assert linted(graph).nodes == 9


def test_nodes_in_any_order_are_sorted() -> None:
    graph = index("[b] y = Neg (a) [a] a = Relu (x)")
    assert [node.name for node in graph.nodes] == ["a", "b"]
    graph = index("[a] a = Relu (x) [c] c = Neg (x) [b] y = Add (a, c)")
    assert [node.name for node in graph.nodes] == ["a", "c", "b"]


def test_bytes_that_do_not_fit_are_no_value() -> None:
    graph = model(pair("x", "y", "s", "i"))
    (scale,) = (tensor for tensor in graph.graph.initializer if tensor.name == "s")
    scale.ClearField("float_data")
    scale.raw_data = bytes(3)
    assert found(graph, "byte-count") == [(name, "3 bytes in s, float []") for name in ("q_y", "dq_y")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y = Relu (z)", r"test: Relu Relu_0: tensor 'z' is read and nothing makes it"),
        ("z = Relu (x)", r"test: tensor 'y' is an output and nothing makes it"),
        ("[a] a = Add (x, b) [b] b = Relu (a) y = Neg (b)", r"test: Add a: it depends on its own result"),
        ("y = Relu (x) y = Neg (x)", r"test: tensor 'y' is made twice"),
        ("x = Relu (x) y = Neg (x)", r"test: tensor 'x' is made twice"),
    ],
)
def test_graphs_that_are_none(text: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        index(text)


def test_an_empty_graph() -> None:
    with pytest.raises(GraphError, match="test: no graph"):
        LintedGraph(onnx.ModelProto(), where="test")


def test_shapes() -> None:
    graph = index("[a] a = MatMul (x, w) y = Relu (a)", header="(float[N, 4] x, float[4, 3] w) => (float[c, d] y)")
    assert graph.shape(named(graph, "a").inputs[0]) == (None, 4)
    assert graph.shape(named(graph, "a").outputs[0]) == (None, 3)
    assert graph.shape(None) is None


def test_shapes_do_not_need_the_weights() -> None:
    parsed = model(
        "[a] a = MatMul (x, f) r = Reshape (a, to) y = Relu (r)",
        x="2, 100",
        y="a, b",
        shape=(100, 3),
        constants="int64[2] to = {3, 2}",
    )
    graph = LintedGraph(parsed, where="test")
    assert graph.shape(named(graph, "a").outputs[0]) == (2, 3)
    assert graph.shape(graph.nodes[1].outputs[0]) == (3, 2)
    assert len(next(tensor for tensor in parsed.graph.initializer if tensor.name == "f").raw_data) == 1200
    values = graph.values(named(graph, "a").inputs[1])
    assert values is not None
    assert values.shape == (100, 3)


def test_shapes_and_types_behind_operators_of_microsoft() -> None:
    codes = "q = com.microsoft.QuantizeLinear (x, s, u) d = com.microsoft.DequantizeLinear (q, s, u) [r] y = Relu (d)"
    graph = LintedGraph(model(codes), where="test")
    (read,) = named(graph, "r").inputs
    assert graph.shape(read) == (1, 4, 8, 8)
    assert graph.element_type(read) == onnx.TensorProto.FLOAT
    assert [graph.element_type(each) for each in graph.nodes[0].inputs] == [1, 1, onnx.TensorProto.UINT8]
    assert graph.element_type(None) is None


def test_a_constant_that_claims_more_than_the_file_has_is_left_out_of_the_inference() -> None:
    """It would multiply as many numbers as are claimed, which nobody waits for."""
    parsed = model("r = Cast <to = 6> (to) k = Mul (r, r) y = Relu (x)", constants="int64[2] to = {4, 64}")
    (claimed,) = (tensor for tensor in parsed.graph.initializer if tensor.name == "to")
    claimed.dims[0] = 2**40
    graph = LintedGraph(parsed, where="test")
    assert graph.shape(graph.nodes[0].outputs[0]) is None
    assert graph.shape(graph.nodes[2].outputs[0]) == (1, 4, 8, 8)


def test_inference_that_gives_up_leaves_what_the_file_says() -> None:
    parsed = model("y = Relu (x)")
    parsed.graph.node[0].op_type = "Unheard"
    assert LintedGraph(parsed, where="test").shape(LintedGraph(parsed, where="t").nodes[0].inputs[0]) == (1, 4, 8, 8)


def test_shapes_that_are_computed_from_shapes() -> None:
    graph = index(
        """
        s = Shape (x) zero = Constant <value_ints = [0]> () one = Constant <value_ints = [1]> ()
        first = Slice (s, zero, one) rest = Constant <value_ints = [2, 2]> ()
        to = Concat <axis = 0> (first, rest) [r] r = Reshape (x, to) y = Flatten (r)"""
    )
    assert graph.shape(named(graph, "r").outputs[0]) == (2, 2, 2)
