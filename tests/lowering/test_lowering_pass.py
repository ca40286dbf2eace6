"""Recording a change, and putting nodes in the place of another."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.model_io import export_model, import_model
from bitswitch_deploy.lowering.lowering_pass import Change, LoweringContext, LoweringPass, replace_node
from tests.graph.masters import HEADER
from tests.graph.running import run
from tests.lowering.lowered import profile


class Nothing(LoweringPass):
    def apply(self, graph: gs.Graph) -> bool:
        self.record("here", "nothing", exact=True)
        self.record("there", "something", exact=False)
        return False


def test_changes_are_signed_by_the_pass() -> None:
    context = LoweringContext(target=profile("rtx"), weight_bits={}, ranges={})
    Nothing(context).apply(gs.Graph())
    assert context.changes == [
        Change(by="Nothing", where="here", what="nothing", exact=True),
        Change(by="Nothing", where="there", what="something", exact=False),
    ]


def test_replaced_node_keeps_its_outputs_and_place() -> None:
    text = "net (float[n] x) => (float[n] y) { a = Abs (x) b = Neg (a) y = Exp (b) }"
    graph = import_model(onnx.parser.parse_model(HEADER + text))
    tensors = graph.tensors()
    half = gs.Variable("half", dtype=np.float32)
    scale = gs.Constant("minus", np.array(-0.5, np.float32))
    two = gs.Constant("two", np.array(2, np.float32))
    new = [gs.Node("Mul", inputs=[tensors["a"], scale], outputs=[half]), gs.Node("Mul", inputs=[half, two])]
    replace_node(graph, graph.nodes[1], new)
    assert [node.op for node in graph.nodes] == ["Abs", "Mul", "Mul", "Exp"]
    assert tensors["b"].inputs == [new[1]]
    model = export_model(graph, opset=21, ir_version=10)
    np.testing.assert_array_equal(run(model, np.array([0, -2], np.float32)), np.exp(np.array([0, -2], np.float32)))
