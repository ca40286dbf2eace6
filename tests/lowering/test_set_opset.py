"""Each rewrite of SetOpset computes the same numbers one opset below its border, and is not done at the border."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.target import Target
from tests.graph.running import operators, run
from tests.lowering.lowered import Applied, applied, profile

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A node, the first opset that has its form, and what is left of it below; `data` is the shape of x."""

    border: int
    body: str
    below: list[str]
    constants: str = ""
    data: str = "n, 3, 4, 5"
    output: str = "float[a, b, c, d] y"
    text: str = ""

    def model(self) -> onnx.ModelProto:
        constants = f"<{self.constants}>" if self.constants else ""
        return onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["" : 21]> net (float[{self.data}] x) => ({self.output}) {constants}'
            f" {{ {self.body} }}"
        )


def at(opset: int) -> Target:
    return profile("x86-cpu", {"stack.opset": opset})


def rewritten(model: onnx.ModelProto, opset: int) -> Applied:
    return applied("SetOpset", model, at(opset))


def images() -> Array:
    return np.random.default_rng(2).normal(0, 2, (2, 3, 4, 5)).astype(np.float32)


AXES = "int64[2] axes = {-1, 1}"
NORM = "float[5] w = {1, 2, -1, 0.5, 0}, float[5] b = {0, 1, 2, 3, 4}"
PLANES = "float[4, 5] w = {1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7,8,9,0}"
CHANNELS = "float[4] w = {1, -2, 0.5, 3}, float[4] b = {0, 1, -1, 2}"
GRID = "float[2, 2, 2, 2] g = {0, 0, 0.5, 0.5, -0.25, 0.75, -1, 1, 0, 0, 0.1, 0.2, 0.3, 0.4, -0.5, -0.6}"
REDUCTIONS = ("Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")
CASES = {
    **{
        f"Reduce{kind}": Case(
            border=18,
            body=f"p = Abs (x) y = Reduce{kind} <keepdims = 1> (p, axes)",
            below=["Abs", f"Reduce{kind}"],
            constants=AXES,
        )
        for kind in REDUCTIONS
    },
    "Reduce, axes dropped": Case(
        border=18, body="y = ReduceMean <keepdims = 0> (x, axes)", below=["ReduceMean"], constants=AXES, output="float[a, b] y"
    ),
    "Reduce everything": Case(border=18, body="y = ReduceMax (x)", below=["ReduceMax"]),
    "Reduce, no axes given": Case(border=18, body='y = ReduceMax (x, "")', below=["ReduceMax"]),
    "Reduce, empty axes": Case(border=18, body="y = ReduceMax (x, axes)", below=["ReduceMax"], constants="int64[0] axes = {}"),
    **{
        f"Reduce{kind} nothing": Case(
            border=18, body=f"y = Reduce{kind} <noop_with_empty_axes = 1> (x{axes})", below=["Identity"], constants="int64[0] no = {}"
        )
        for kind, axes in (("Mean", ""), ("Max", ", no"), ("Min", ""), ("Prod", ""), ("LogSumExp", ""))
    },
    "Reduce, noop with axes": Case(
        border=18, body="y = ReduceMin <noop_with_empty_axes = 1> (x, axes)", below=["ReduceMin"], constants=AXES
    ),
    "Pad": Case(
        border=18, body='y = Pad (x, pads, "", axes)', below=["Pad"], constants="int64[4] pads = {1, 0, 2, 3}, int64[2] axes = {-1, 2}"
    ),
    "Pad with a value": Case(
        border=18, body="y = Pad (x, pads, v, axes)", below=["Pad"], constants="int64[2] pads = {1, 2}, float v = {9}, int64[1] axes = {1}"
    ),
    "Pad all axes": Case(border=18, body="y = Pad (x, pads)", below=["Pad"], constants="int64[8] pads = {0, 0, 1, 0, 0, 2, 0, 0}"),
    "Split": Case(
        border=18, body="s, t = Split <axis = 2, num_outputs = 2> (x) y = Sub (s, t)", below=["Split", "Sub"]
    ),
    "Split by sizes": Case(
        border=18, body="s, t = Split <axis = 3> (x, sizes) y = Concat <axis = 3> (t, s)", below=["Split", "Concat"],
        constants="int64[2] sizes = {2, 3}",
    ),
    "AveragePool": Case(border=19, body="y = AveragePool <kernel_shape = [2, 2], dilations = [1, 1]> (x)", below=["AveragePool"]),
    "Cast": Case(border=19, body="i = Cast <to = 6, saturate = 1> (x) y = Cast <to = 1> (i)", below=["Cast", "Cast"]),
    "Resize": Case(
        border=18,
        body='y = Resize <mode = "nearest", antialias = 0, keep_aspect_ratio_policy = "stretch"> (x, "", scales)',
        below=["Resize"],
        constants="float[4] scales = {1, 1, 2, 2}",
    ),
    "GridSample": Case(border=20, body='y = GridSample <mode = "linear"> (x, g)', below=["GridSample"], constants=GRID, data="2, 3, 4, 5"),
    "GridSample, default": Case(border=20, body="y = GridSample (x, g)", below=["GridSample"], constants=GRID, data="2, 3, 4, 5"),
    "GridSample, cubic": Case(border=20, body='y = GridSample <mode = "cubic"> (x, g)', below=["GridSample"], constants=GRID, data="2, 3, 4, 5"),
    "GridSample, nearest": Case(border=20, body='y = GridSample <mode = "nearest"> (x, g)', below=["GridSample"], constants=GRID, data="2, 3, 4, 5"),
    "Gelu": Case(border=20, body="y = Gelu (x)", below=["Mul", "Erf", "Mul", "Add", "Mul"]),
    "Gelu, tanh": Case(
        border=20,
        body='y = Gelu <approximate = "tanh"> (x)',
        below=["Mul", "Mul", "Mul", "Add", "Mul", "Tanh", "Mul", "Add", "Mul"],
    ),
    "Mish": Case(border=18, body="y = Mish (x)", below=["Softplus", "Tanh", "Mul"]),
    "HardSwish": Case(border=14, body="y = HardSwish (x)", below=["HardSigmoid", "Mul"]),
    "GroupNormalization": Case(
        border=21,
        body="y = GroupNormalization <num_groups = 2, epsilon = 0.1> (x, w, b)",
        below=["Reshape", "InstanceNormalization", "Reshape", "Reshape", "Mul", "Reshape", "Add", "Shape", "Reshape"],
        constants=CHANNELS,
        data="n, 4, 3, 5",
    ),
    "LayerNormalization": Case(
        border=17,
        body="y = LayerNormalization <epsilon = 0.1> (x, w, b)",
        below=["ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add"],
        constants=NORM,
    ),
    "LayerNormalization without bias": Case(
        border=17,
        body="y = LayerNormalization <axis = -1> (x, w)",
        below=["ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul"],
        constants=NORM,
    ),
    "LayerNormalization over two axes": Case(
        border=17,
        body="y = LayerNormalization <axis = -2> (x, w)",
        below=["ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul"],
        constants=PLANES,
    ),
    "Shape": Case(
        border=15, body="y = Shape <start = 1, end = -1> (x)", below=["Shape", "Slice"], output="int64[s] y"
    ),
    "Shape from": Case(border=15, body="y = Shape <start = -2> (x)", below=["Shape", "Slice"], output="int64[s] y"),
    "Shape to": Case(border=15, body="y = Shape <end = 3> (x)", below=["Shape", "Slice"], output="int64[s] y"),
    "Shape of nothing": Case(border=15, body="y = Shape <start = 3, end = 2> (x)", below=["Shape", "Slice"], output="int64[s] y"),
    "Shape of all": Case(border=15, body="y = Shape (x)", below=["Shape"], output="int64[s] y"),
    "Shape of all, start given": Case(border=15, body="y = Shape <start = 0> (x)", below=["Shape"], output="int64[s] y"),
    "Reshape": Case(
        border=14, body="y = Reshape <allowzero = 1> (x, to)", below=["Reshape"], constants="int64[2] to = {-1, 12}", output="float[a, b] y"
    ),
    "Reshape, zero copies": Case(
        border=14, body="y = Reshape <allowzero = 0> (x, to)", below=["Reshape"], constants="int64[2] to = {0, -1}", output="float[a, b] y"
    ),
    "BatchNormalization": Case(
        border=14,
        body="y = BatchNormalization <training_mode = 0> (x, w, b, b, w)",
        below=["BatchNormalization"],
        constants="float[3] w = {1, 2, 3}, float[3] b = {0, 1, 2}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_same_numbers_below_the_border(case: str) -> None:
    x = images() if CASES[case].data != "n, 4, 3, 5" else images().reshape(2, 4, 3, 5)
    expected = run(CASES[case].model(), x)
    for opset in sorted({13, CASES[case].border - 1}):
        if opset < 16 and case.startswith("GridSample"):
            continue  # the operator itself is of 16
        result = rewritten(CASES[case].model(), opset)
        assert operators(result.model) == CASES[case].below
        assert result.model.opset_import[0].version == opset
        found = run(result.model, x)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_left_alone_at_the_border(case: str) -> None:
    before = CASES[case].model()
    result = rewritten(before, CASES[case].border)
    assert operators(result.model) == operators(before)
    for old, new in zip(before.graph.node, result.model.graph.node):
        assert [name for name in new.input if name] == [name for name in old.input if name]
        assert {each.name: each.SerializeToString() for each in new.attribute} == {
            each.name: each.SerializeToString() for each in old.attribute
        }


@pytest.mark.parametrize("opset", [13, 17, 20, 21, 25])
def test_opset_is_set(opset: int) -> None:
    model = Case(border=13, body="y = Relu (x)", below=[]).model()
    result = applied("SetOpset", model, profile("x86-cpu", {"stack.opset": opset, "stack.ir_version": 13}))
    assert result.modified is (opset != 21)
    assert [(entry.domain, entry.version) for entry in result.model.opset_import] == [("", opset)]
    assert result.changes == []


def test_intermediate_names_do_not_clash() -> None:
    case = Case(border=20, body="g = Gelu (x) h = Gelu (g) l = LayerNormalization (h, w) y = LayerNormalization (l, w)",
                below=[], constants=NORM)  # fmt: skip
    result = rewritten(case.model(), 13)
    np.testing.assert_allclose(run(result.model, images()), run(case.model(), images()), rtol=1e-4, atol=1e-5)


# --- refused by the pass -------------------------------------------------------------------------------------------

REFUSED = {
    r"ReduceMean ReduceMean_1: input 1 is computed": (17, "axes = Neg (n) y = ReduceMean (x, axes)", "int64[1] n = {1}"),
    r"ReduceL1 ReduceL1_0: noop_with_empty_axes without axes": (17, "y = ReduceL1 <noop_with_empty_axes = 1> (x)", ""),
    r"ReduceL2 ReduceL2_0: noop_with_empty_axes": (17, "y = ReduceL2 <noop_with_empty_axes = 1> (x)", ""),
    r"ReduceSumSquare ReduceSumSquare_0: noop": (17, "y = ReduceSumSquare <noop_with_empty_axes = 1> (x)", ""),
    r"ReduceLogSum ReduceLogSum_0: noop": (17, "y = ReduceLogSum <noop_with_empty_axes = 1> (x)", ""),
    r"Pad Pad_1: axes on data of unknown rank": (17, 'r = Relu (x) y = Pad (r, p, "", a)', "int64[2] p = {1, 1}, int64[1] a = {1}"),
    r"Pad Pad_1: input 1 is computed": (17, 'q = Neg (p) y = Pad (x, q, "", a)', "int64[2] p = {0, 0}, int64[1] a = {1}"),
    r"Pad Pad_0: mode=wrap": (18, 'y = Pad <mode = "wrap"> (x, p)', "int64[8] p = {0, 0, 1, 0, 0, 2, 0, 0}"),
    r"AveragePool AveragePool_0: dilations=\[2, 2\]": (18, "y = AveragePool <kernel_shape = [2, 2], dilations = [2, 2]> (x)", ""),
    r"Cast Cast_0: saturate=0": (18, "f = Cast <to = 6, saturate = 0> (x) y = Cast <to = 1> (f)", ""),
    r"Resize Resize_0: antialias=1": (17, 'y = Resize <mode = "linear", antialias = 1> (x, "", s)', "float[4] s = {1, 1, 0.5, 0.5}"),
    r"Resize Resize_0: keep_aspect_ratio_policy=not_larger": (
        17, 'y = Resize <keep_aspect_ratio_policy = "not_larger"> (x, "", "", s)', "int64[4] s = {1, 3, 8, 8}"),
    r"Resize Resize_0: coordinate_transformation_mode=half_pixel_symmetric": (
        18, 'y = Resize <coordinate_transformation_mode = "half_pixel_symmetric"> (x, "", s)', "float[4] s = {1, 1, 2, 2}"),
    r"ScatterElements ScatterElements_0: reduction=max": (
        17, 'y = ScatterElements <reduction = "max"> (x, i, u)', "int64[1, 1, 1, 1] i = {0}, float[1, 1, 1, 1] u = {5}"),
    r"ScatterND ScatterND_0: reduction=min": (
        17, 'y = ScatterND <reduction = "min"> (x, i, u)', "int64[1, 4] i = {0, 0, 0, 0}, float[1] u = {5}"),
    r"Reshape Reshape_0: allowzero with a shape that may hold a zero": (13, "y = Reshape <allowzero = 1> (x, to)", "int64[4] to = {2, 3, 4, 0}"),
    r"Reshape Reshape_1: allowzero with a shape": (13, "to = Shape (x) y = Reshape <allowzero = 1> (x, to)", ""),
    r"BatchNormalization BatchNormalization_0: training_mode=1": (
        13, "y, m, v = BatchNormalization <training_mode = 1> (x, w, w, w, w)", "float[3] w = {1, 2, 3}"),
    r"LayerNormalization LayerNormalization_0: axis 3 with 1 outputs": (16, "y = LayerNormalization <axis = 3> (x, w)", NORM),
    r"LayerNormalization LayerNormalization_0: axis -1 with 2 outputs": (16, "y, m = LayerNormalization (x, w)", NORM),
    r"GroupNormalization GroupNormalization_1: a computed scale": (
        20, "v = Neg (w) y = GroupNormalization <num_groups = 3> (x, v, w)", "float[3] w = {1, 2, 3}"),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message: str) -> None:
    opset, body, constants = REFUSED[message]
    with pytest.raises(GraphError, match=rf"^{message}(.|\n)*  do: .*newer"):
        rewritten(Case(border=0, body=body, below=[], constants=constants).model(), opset)


@pytest.mark.parametrize(
    ("opset", "body"),
    [
        (17, 'y = CenterCropPad (x, to)'),
        (17, 'y = BitwiseOfNothing (x)'),
        (15, "y = GridSample (x, x)"),
        (13, "y = CastLike (x, x)"),
        (17, 'y = Resize <axes = [2, 3]> (x, "", s)'),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_refused_by_the_checker(opset: int, body: str) -> None:
    constants = "int64[2] to = {2, 2}, float[2] s = {2, 2}"
    model = Case(border=0, body=body, below=[], constants=constants).model()
    with pytest.raises(GraphError, match=rf"net: not valid ONNX at opset {opset}: "):
        rewritten(model, opset)
