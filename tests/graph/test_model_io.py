"""Names that survive the way in and out, and what the checker refuses."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs
import pytest

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.model_io import check_model, export_model, import_model, node_names
from tests.graph.running import run

TEXT = """
<ir_version: 10, opset_import: ["" : 21], producer_name: "someone", producer_version: "3">
net (float[n, 2] x) => (float[n, 2] y) <float[n, 2] a> {{
    {first} a = Relu (x)
    dead = Abs (x)
    {second} y = Neg (a)
}}"""


def model(first: str = "", second: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT.format(first=first, second=second))


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ("", "", ["Relu_0", "Abs_1", "Neg_2"]),
        ("[one]", "[two]", ["one", "Abs_1", "two"]),
        ("[same]", "[same]", ["same", "Abs_1", "Neg_2"]),
        ("[Neg_2]", "", ["Neg_2", "Abs_1", "Neg_2_"]),
        ("", "[Abs_1]", ["Relu_0", "Abs_1", "Neg_2"]),
    ],
)
def test_every_node_has_a_name_of_its_own(first: str, second: str, names: list[str]) -> None:
    assert node_names(model(first, second)) == names
    assert [node.name for node in import_model(model(first, second)).nodes] == names


def test_export_leaves_nothing_that_is_not_the_network() -> None:
    exported = export_model(import_model(model()), opset=21, ir_version=10)
    assert [node.op_type for node in exported.graph.node] == ["Relu", "Neg"]
    assert (exported.producer_name, exported.producer_version) == ("bitswitch-deploy", "")
    assert not exported.graph.value_info
    x = np.array([[1, -1]], np.float32)
    np.testing.assert_array_equal(run(exported, x), [[-1, 0]])


def test_export_sorts() -> None:
    graph = import_model(model())
    graph.nodes.reverse()
    assert [node.op_type for node in export_model(graph, opset=21, ir_version=10).graph.node] == ["Relu", "Neg"]


def test_unused_inputs_stay() -> None:
    text = TEXT.format(first="", second="").replace("(float[n, 2] x)", "(float[n, 2] x, float[n] unused)")
    exported = export_model(import_model(onnx.parser.parse_model(text)), opset=21, ir_version=10)
    assert [value.name for value in exported.graph.input] == ["x", "unused"]


@pytest.mark.parametrize(("opset", "ir_version"), [(13, 7), (17, 8), (25, 13)])
def test_opset_and_ir_version_are_written(opset: int, ir_version: int) -> None:
    exported = export_model(import_model(model()), opset=opset, ir_version=ir_version)
    assert [(entry.domain, entry.version) for entry in exported.opset_import] == [("", opset)]
    assert exported.ir_version == ir_version


def test_operator_that_the_opset_lacks() -> None:
    text = TEXT.format(first="", second="").replace("Neg", "Gelu")
    graph = import_model(onnx.parser.parse_model(text))
    with pytest.raises(GraphError, match=r"net: not valid ONNX at opset 17: .*Gelu(.|\n)*do: choose a target or stack"):
        export_model(graph, opset=17, ir_version=8)
    with pytest.raises(GraphError, match="do: paint it blue"):
        export_model(graph, opset=17, ir_version=8, do="paint it blue")


@pytest.mark.parametrize("place", ["input", "output"])
def test_two_tensors_of_one_name(place: str) -> None:
    graph = import_model(model())
    if place == "input":
        graph.nodes.append(gs.Node("Add", "add", {}, [graph.outputs[0], gs.Constant("x", np.zeros(2, np.float32))]))
    else:
        graph.nodes.append(gs.Node("Abs", "abs", {}, [graph.outputs[0]]))
    graph.nodes[-1].outputs = [gs.Variable("z" if place == "input" else "a", np.float32, ("n", 2))]
    graph.outputs.append(graph.nodes[-1].outputs[0])
    with pytest.raises(GraphError, match=f"^net: two tensors named '{'x' if place == 'input' else 'a'}', one of them"):
        export_model(graph, opset=21, ir_version=10)


def test_stdout_is_for_results(capsys: pytest.CaptureFixture[str]) -> None:
    """Of types that NumPy lacks graphsurgeon warns there."""
    text = TEXT.format(first="", second="").replace("Relu (x)", "Cast <to: int = 16> (x)")
    text = text.replace("<float[n, 2] a>", "").replace("Neg (a)", "Cast <to: int = 1> (a)")
    exported = export_model(import_model(onnx.parser.parse_model(text)), opset=21, ir_version=10)
    assert [node.op_type for node in exported.graph.node] == ["Cast", "Cast"]
    assert capsys.readouterr().out == ""


def test_shapes_that_contradict_each_other() -> None:
    wrong = onnx.parser.parse_model(TEXT.format(first="", second="").replace("(float[n, 2] y)", "(float[n, 3] y)"))
    with pytest.raises(
        GraphError, match=r"here: not valid ONNX at opset 21: (.|\n)*allowed: a graph that onnx.checker"
    ):
        check_model(wrong, where="here")
