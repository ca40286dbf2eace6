"""A list of passes says who changed the graph and who broke it."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_graphsurgeon as gs
import pytest

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.model_io import import_model
from bitswitch_deploy.graph.passes import GraphPass, run_passes

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[n] x) => (float[n] y) <float scale = {0.5}, uint8 zero = {0}> {
    q = QuantizeLinear (x, scale, zero)
    y = DequantizeLinear (q, scale, zero)
}"""


class Look(GraphPass):
    def apply(self, graph: gs.Graph) -> bool:
        return False


class Rename(GraphPass):
    def apply(self, graph: gs.Graph) -> bool:
        graph.nodes[0].name = "renamed"
        return True


class NegateScale(GraphPass):
    def apply(self, graph: gs.Graph) -> bool:
        graph.nodes[0].inputs[1].values = np.float32(-1)
        return True


def graph() -> gs.Graph:
    return import_model(onnx.parser.parse_model(TEXT))


def test_names_of_the_passes_that_changed_something() -> None:
    assert run_passes(graph(), [Look(), Rename(), Look()]) == ("Rename",)


def test_the_pass_that_broke_the_graph_is_named() -> None:
    with pytest.raises(
        GraphError, match=r"^after NegateScale: QuantizeLinear renamed: scale in -1\.0 \.\. -1\.0(.|\n)*report it"
    ):
        run_passes(graph(), [Rename(), NegateScale(), Look()])


def test_a_graph_that_was_broken_before() -> None:
    broken = graph()
    NegateScale().apply(broken)
    with pytest.raises(GraphError, match=r"^input graph: QuantizeLinear QuantizeLinear_0: scale in(.|\n)*do: give the"):
        run_passes(broken, [Look()])
