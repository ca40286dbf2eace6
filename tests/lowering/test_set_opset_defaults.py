"""Operators whose specification changed between opsets 13 and 21 compute the same at older ones, or are refused there.

Attributes are left out, or given with the defaults that they have at 21: it is absence that may mean something else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.defs import OpSchema

from bitswitch_deploy.errors import GraphError
from tests.graph.running import run
from tests.lowering.lowered import applied, profile

OLDEST, NEWEST = 13, 21
SCHEMAS = [each for each in onnx.defs.get_all_schemas_with_history() if not each.domain]


@dataclass(frozen=True)
class Node:
    """What computes y, of `rank` axes, from x [1, 2, 6, 4], and the oldest opset that can."""

    body: str
    constants: str = ""
    oldest: int = OLDEST
    rank: int = 4

    def model(self) -> onnx.ModelProto:
        constants = f"<{self.constants}>" if self.constants else ""
        model = onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["" : {NEWEST}]> net (float[1, 2, 6, 4] x) => (float y) {constants}'
            f" {{ {self.body} }}"
        )
        for axis in range(self.rank):
            model.graph.output[0].type.tensor_type.shape.dim.add(dim_param=f"d{axis}")
        return model


def recurrent(kind: str, gates: int) -> Node:
    """Three units over six steps of two samples."""
    rows = gates * 3
    w, r = (", ".join(f"{np.sin(k):.3f}" for k in range(rows * columns)) for columns in (4, 3))
    constants = f"int64[3] to = {{6, 2, 4}}, float[1, {rows}, 4] w = {{{w}}}, float[1, {rows}, 3] r = {{{r}}}"
    return Node(f"s = Reshape (x, to) y = {kind} <hidden_size = 3> (s, w, r)", constants)


AXES = "int64[2] axes = {-1, 1}"
BATCH_NORM = "float[2] w = {1, 2}, float[2] b = {0.5, 3}"
BRANCHES = "<then_branch = t () => (float[] p) { p = Neg (x) }, else_branch = e () => (float[] q) { q = Abs (x) }>"
CODES = "float s = {0.1}, uint8 z = {100}"
GRID = "float[1, 2, 2, 2] g = {0, 0, 0.5, 0.5, -0.25, 0.75, -1, 1}"
LOOP = "<body = l (int64 i, bool c, float[] a) => (bool d, float[] b) { d = Identity (c) b = Add (a, a) }>"
PADS = "int64[8] p = {0, 0, 1, 0, 0, 2, 0, 1}"
ROIS = "float[1, 4] r = {0.5, 0.5, 3, 4}, int64[1] i = {0}"
SCAN = "<num_scan_inputs = 1, body = b (float[] a, float[] v) => (float[] c, float[] w) { c = Neg (a) w = Add (a, v) }>"
SCATTERED = "int64[1, 1, 1, 2] i = {1, 2}, float[1, 1, 1, 2] u = {7, 8}"
ON_FLOATS = ("Add", "Div", "Mul", "Sub")
COMPARED = ("Equal", "GreaterOrEqual", "LessOrEqual")
REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
NODES = {
    **{operator: Node(f"y = {operator} (x, k)", "float k = {1.5}") for operator in ON_FLOATS},
    **{operator: Node(f"c = {operator} (x, k) y = Cast <to = 1> (c)", "float k = {0.5}") for operator in COMPARED},
    **{f"Reduce{kind}": Node(f"p = Abs (x) y = Reduce{kind} (p, axes)", AXES) for kind in REDUCTIONS},
    **{operator: Node(f"c = {operator} (x) y = Cast <to = 1> (c)") for operator in ("IsInf", "IsNaN")},
    **{operator: Node(f"y = {operator} (x)") for operator in ("Identity", "LeakyRelu", "Relu", "Transpose")},
    "AveragePool": Node("y = AveragePool <kernel_shape = [2, 3]> (x)"),
    "BatchNormalization": Node("y = BatchNormalization (x, w, b, b, w)", BATCH_NORM),
    "Cast": Node("i = Cast <to = 6> (x) y = Cast <to = 1> (i)"),
    "CastLike": Node("i = CastLike (x, k) y = Cast <to = 1> (i)", "int32 k = {0}", oldest=15),
    "Constant": Node("k = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> () y = Add (x, k)"),
    "ConstantOfShape": Node("s = Shape (x) k = ConstantOfShape (s) y = Add (x, k)"),
    "CumSum": Node("y = CumSum (x, a)", "int64 a = {2}"),
    "DFT": Node("s = Reshape (x, to) y = DFT (s)", "int64[4] to = {2, 3, 8, 1}", oldest=17),
    "DequantizeLinear": Node("q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)", CODES),
    "Flatten": Node("y = Flatten (x)", rank=2),
    "GRU": recurrent("GRU", 3),
    "GridSample": Node("y = GridSample (x, g)", GRID, oldest=16),
    "GroupNormalization": Node("y = GroupNormalization <num_groups = 2> (x, w, b)", BATCH_NORM),
    "If": Node(f"m = ReduceMax <keepdims = 0> (x) c = Cast <to = 9> (m) y = If (c) {BRANCHES}"),
    "LSTM": recurrent("LSTM", 4),
    "Loop": Node(f"y = Loop (n, c, x) {LOOP}", "int64 n = {3}, bool c = {1}"),
    "LpPool": Node("y = LpPool <kernel_shape = [2, 3]> (x)"),
    "OptionalGetElement": Node("o = Optional (x) y = OptionalGetElement (o)", oldest=15),
    "OptionalHasElement": Node("o = Optional (x) h = OptionalHasElement (o) y = Cast <to = 1> (h)", oldest=15, rank=0),
    "PRelu": Node("y = PRelu (x, k)", "float[2, 1, 1] k = {0.5, -1}"),
    "Pad": Node("y = Pad (x, p)", PADS),
    "Pow": Node("y = Pow (x, k)", "float k = {2}"),
    "QLinearMatMul": Node(
        "a = QuantizeLinear (x, s, z) m = QLinearMatMul (a, s, z, w, s, z, s, z) y = DequantizeLinear (m, s, z)",
        f"{CODES}, uint8[4, 2] w = {{90, 100, 110, 120, 130, 140, 150, 160}}",
    ),
    "QuantizeLinear": Node("q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)", CODES),
    "RNN": recurrent("RNN", 1),
    "Reshape": Node("y = Reshape (x, to)", "int64[3] to = {0, -1, 3}", rank=3),
    "Resize": Node('y = Resize (x, "", s)', "float[4] s = {1, 1, 1.7, 0.6}"),
    "RoiAlign": Node("y = RoiAlign <output_height = 2, output_width = 2> (x, r, i)", ROIS, oldest=16),
    "Scan": Node(f"z, y = Scan (k, x) {SCAN}", "float[1] k = {0.5}"),
    "ScatterElements": Node("y = ScatterElements <axis = 2> (x, i, u)", SCATTERED),
    "ScatterND": Node("y = ScatterND (x, i, u)", "int64[1, 4] i = {0, 1, 2, 3}, float[1] u = {7}"),
    "Shape": Node("s = Shape (x) y = Cast <to = 1> (s)", rank=1),
    "Size": Node("s = Size (x) y = Cast <to = 1> (s)", rank=0),
    "Split": Node("y, t = Split <axis = 2> (x, k)", "int64[2] k = {2, 4}"),
    "Squeeze": Node("y = Squeeze (x)", rank=3),
    "Unsqueeze": Node("y = Unsqueeze (x, a)", "int64[1] a = {0}", rank=5),
    "Where": Node("c = Cast <to = 9> (x) y = Where (c, x, k)", "float k = {3}"),
}


def changed(operator: str) -> list[OpSchema]:
    """The schemas of an operator that hold between the two opsets, oldest first."""
    all_of_it = sorted((each for each in SCHEMAS if each.name == operator), key=lambda each: each.since_version)
    before = [each for each in all_of_it if each.since_version <= OLDEST]
    return before[-1:] + [each for each in all_of_it if OLDEST < each.since_version <= NEWEST]


def defaults(operator: str) -> list[onnx.AttributeProto]:
    """What the newest form has for its attributes that an older one lacks, or has with another default."""
    *older, newest = changed(operator)
    return [
        attribute.default_value
        for name, attribute in newest.attributes.items()
        if attribute.default_value.name
        and any(
            name not in each.attributes or each.attributes[name].default_value != attribute.default_value
            for each in older
        )
    ]


def test_every_operator_that_changed_has_a_node() -> None:
    names = {each.name for each in SCHEMAS}
    assert set(NODES) == {name for name in names if len(changed(name)) > 1}


@pytest.mark.parametrize("given", [False, True], ids=["left out", "given"])
@pytest.mark.parametrize("operator", NODES)
def test_defaults_mean_the_same(operator: str, given: bool) -> None:
    node = NODES[operator]
    model = node.model()
    for each in model.graph.node:
        if each.op_type == operator and given:
            each.attribute.extend(defaults(operator))
    data = np.random.default_rng(3).normal(0, 2, (1, 2, 6, 4)).astype(np.float32)
    expected = run(model, data)
    for opset in {OLDEST, node.oldest, *(each.since_version - 1 for each in changed(operator)[1:])}:
        target = profile("x86-cpu", {"stack.opset": opset})
        if opset < node.oldest:
            with pytest.raises(GraphError, match=f"{operator[:8]}(.|\n)*do: .*newer opset"):
                applied("SetOpset", model, target)
        else:
            found = run(applied("SetOpset", model, target).model, data)
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
