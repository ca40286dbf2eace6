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
from tests.graph.running import needs_current_onnxruntime, operators, run
from tests.lowering.lowered import Applied, applied, profile

Array = np.ndarray[Any, np.dtype[Any]]


IMAGES, ROWS, WHOLE = "float[a, b, c, d] y", "float[a, b] y", "int64[s] y"


@dataclass(frozen=True)
class Case:
    """A node, the first opset that has its form, and the operators that are left below it, down to the oldest."""

    border: int
    body: str
    below: str = ""
    constants: str = ""
    output: str = IMAGES
    data: tuple[int, ...] = (2, 3, 4, 5)
    oldest: int = 13

    def model(self) -> onnx.ModelProto:
        constants = f"<{self.constants}>" if self.constants else ""
        shape = ", ".join(map(str, self.data))
        return onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["" : 21]> net (float[{shape}] x) => ({self.output}) {constants}'
            f" {{ {self.body} }}"
        )

    def x(self) -> Array:
        return np.random.default_rng(2).normal(0, 2, self.data).astype(np.float32)


def at(opset: int) -> Target:
    return profile("x86-cpu", {"stack.opset": opset})


def rewritten(model: onnx.ModelProto, opset: int) -> Applied:
    return applied("SetOpset", model, at(opset))


AXES = "int64[2] axes = {-1, 1}"
NORM = "float[5] w = {1, 2, -1, 0.5, 0}, float[5] b = {0, 1, 2, 3, 4}"
PLANE = "float[4, 5] w = {1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7,8,9,0}"
CHANNELS = "float[4] w = {1, -2, 0.5, 3}, float[4] b = {0, 1, -1, 2}"
GRID = "float[2, 2, 2, 2] g = {0, 0, 0.5, 0.5, -0.25, 0.75, -1, 1, 0, 0, 0.1, 0.2, 0.3, 0.4, -0.5, -0.6}"
LAYER_NORM = "ReduceMean Sub Mul ReduceMean Add Sqrt Div Mul"
GROUP_NORM = "Reshape InstanceNormalization Reshape Reshape Mul Reshape Add Shape Reshape"
REDUCTIONS = ("Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")
RESIZE = 'y = Resize <mode = "nearest", antialias = 0, keep_aspect_ratio_policy = "stretch"> (x, "", s)'
ROIS = "float[2, 4] r = {0, 0.5, 3, 4, 1, 1, 1.2, 1.1}, int64[2] i = {0, 1}"
ROI_ALIGN = 'y = RoiAlign <coordinate_transformation_mode = "output_half_pixel", output_width = 2> (x, r, i)'
SPLIT = "s, t = Split <axis = 3> (x, sizes) y = Concat <axis = 3> (t, s)"
TANH_GELU = "Mul Mul Mul Add Mul Tanh Mul Add Mul"
CASES = {
    **{
        kind: Case(18, f"p = Abs (x) y = Reduce{kind} <keepdims = 1> (p, axes)", f"Abs Reduce{kind}", AXES)
        for kind in REDUCTIONS
    },
    "reduce, axes dropped": Case(18, "y = ReduceMean <keepdims = 0> (x, axes)", "ReduceMean", AXES, ROWS),
    "reduce all": Case(18, "y = ReduceMax (x)", "ReduceMax"),
    "reduce all, empty name": Case(18, 'y = ReduceMax (x, "")', "ReduceMax"),
    "reduce all, empty axes": Case(18, "y = ReduceMax (x, axes)", "ReduceMax", "int64[0] axes = {}"),
    **{
        f"{kind} of nothing": Case(18, f"y = Reduce{kind} <noop_with_empty_axes = 1> (x)", "Identity")
        for kind in ("Mean", "Min", "Prod", "LogSumExp")
    },
    "reduce nothing, empty axes": Case(
        18, "y = ReduceMax <noop_with_empty_axes = 1> (x, no)", "Identity", "int64[0] no = {}"
    ),
    "reduce, noop with axes": Case(18, "y = ReduceMin <noop_with_empty_axes = 1> (x, axes)", "ReduceMin", AXES),
    "pad": Case(18, 'y = Pad (x, pads, "", axes)', "Pad", "int64[4] pads = {1, 0, 2, 3}, int64[2] axes = {-1, 2}"),
    "pad with a value": Case(
        18, "y = Pad (x, pads, v, axes)", "Pad", "int64[2] pads = {1, 2}, float v = {9}, int64[1] axes = {1}"
    ),
    "pad all axes": Case(18, "y = Pad (x, pads)", "Pad", "int64[8] pads = {0, 0, 1, 0, 0, 2, 0, 0}"),
    "split": Case(18, "s, t = Split <axis = 2, num_outputs = 2> (x) y = Sub (s, t)", "Split Sub"),
    "split by sizes": Case(18, SPLIT, "Split Concat", "int64[2] sizes = {2, 3}"),
    "average pool": Case(19, "y = AveragePool <kernel_shape = [2, 2], dilations = [1, 1]> (x)", "AveragePool"),
    "cast": Case(19, "i = Cast <to = 6, saturate = 1> (x) y = Cast <to = 1> (i)", "Cast Cast"),
    "resize": Case(18, RESIZE, "Resize", "float[4] s = {1, 1, 2, 2}"),
    "grid sample": Case(20, "y = GridSample (x, g)", "GridSample", GRID, oldest=16),
    "grid sample, linear": Case(20, 'y = GridSample <mode = "linear"> (x, g)', "GridSample", GRID, oldest=16),
    "grid sample, cubic": Case(20, 'y = GridSample <mode = "cubic"> (x, g)', "GridSample", GRID, oldest=16),
    "grid sample, nearest": Case(20, 'y = GridSample <mode = "nearest"> (x, g)', "GridSample", GRID, oldest=16),
    **{
        f"dft, {name}": Case(20, f"y = DFT ({inputs})", "DFT", axis, data=(2, 3, 4, 1), oldest=17)
        for name, inputs, axis in (
            ("default axis", "x", ""),
            ("axis", 'x, "", axis', "int64 axis = {1}"),
            ("length, axis from the end", "x, n, axis", "int64 n = {5}, int64 axis = {-2}"),
        )
    },
    "roi align": Case(16, ROI_ALIGN, "RoiAlign", ROIS),
    "lp pool": Case(18, "y = LpPool <kernel_shape = [2, 2], dilations = [1, 1]> (x)", "LpPool"),
    "gelu": Case(20, "y = Gelu (x)", "Mul Erf Mul Add Mul"),
    "gelu, tanh": Case(20, 'y = Gelu <approximate = "tanh"> (x)', TANH_GELU),
    "mish": Case(18, "y = Mish (x)", "Softplus Tanh Mul"),
    "hard swish": Case(14, "y = HardSwish (x)", "HardSigmoid Mul"),
    "group norm": Case(
        21,
        "y = GroupNormalization <num_groups = 2, epsilon = 0.1> (x, w, b)",
        GROUP_NORM,
        CHANNELS,
        data=(2, 4, 3, 5),
    ),
    "group norm, default epsilon": Case(
        21, "y = GroupNormalization <num_groups = 4> (x, w, b)", GROUP_NORM, CHANNELS, data=(2, 4, 3, 5)
    ),
    "layer norm": Case(17, "y = LayerNormalization <epsilon = 0.1> (x, w, b)", f"{LAYER_NORM} Add", NORM),
    "layer norm, no bias": Case(17, "y = LayerNormalization <axis = -1> (x, w)", LAYER_NORM, NORM),
    "layer norm, two axes": Case(17, "y = LayerNormalization <axis = -2> (x, w)", LAYER_NORM, PLANE),
    "shape": Case(15, "y = Shape <start = 1, end = -1> (x)", "Shape Slice", "", WHOLE),
    "shape from": Case(15, "y = Shape <start = -2> (x)", "Shape Slice", "", WHOLE),
    "shape to": Case(15, "y = Shape <end = 3> (x)", "Shape Slice", "", WHOLE),
    "shape of nothing": Case(15, "y = Shape <start = 3, end = 2> (x)", "Shape Slice", "", WHOLE),
    "shape of all": Case(15, "y = Shape (x)", "Shape", "", WHOLE),
    "shape from the first": Case(15, "y = Shape <start = 0> (x)", "Shape", "", WHOLE),
    "reshape": Case(14, "y = Reshape <allowzero = 1> (x, to)", "Reshape", "int64[2] to = {-1, 12}", ROWS),
    "reshape, zero copies": Case(14, "y = Reshape <allowzero = 0> (x, to)", "Reshape", "int64[2] to = {0, -1}", ROWS),
    "batch norm": Case(
        14,
        "y = BatchNormalization <training_mode = 0> (x, w, b, b, w)",
        "BatchNormalization",
        "float[3] w = {1, 2, 3}, float[3] b = {0, 1, 2}",
    ),
}


# onnxruntime 1.23 fails on noop_with_empty_axes of anything but ReduceSum and ReduceMax
MARKED = [
    pytest.param(name, marks=needs_current_onnxruntime) if name.endswith("of nothing") and "shape" not in name else name
    for name in CASES
]


@pytest.mark.parametrize("name", MARKED)
def test_same_numbers_below_the_border(name: str) -> None:
    case = CASES[name]
    expected = run(case.model(), case.x())
    for opset in sorted({case.oldest, case.border - 1}):
        result = rewritten(case.model(), opset)
        assert sorted(operators(result.model)) == sorted(case.below.split())
        assert result.model.opset_import[0].version == opset
        found = run(result.model, case.x())
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
    model = Case(13, "y = Relu (x)").model()
    result = applied("SetOpset", model, profile("x86-cpu", {"stack.opset": opset, "stack.ir_version": 13}))
    assert result.modified is (opset != 21)
    assert [(entry.domain, entry.version) for entry in result.model.opset_import] == [("", opset)]
    assert result.changes == []


def test_intermediate_names_do_not_clash() -> None:
    body = "g = Gelu (x) h = Gelu (g) l = LayerNormalization (h, w) y = LayerNormalization (l, w)"
    case = Case(20, body, "", NORM)
    result = rewritten(case.model(), 13)
    np.testing.assert_allclose(run(result.model, case.x()), run(case.model(), case.x()), rtol=1e-4, atol=1e-5)


# --- branches and loop bodies --------------------------------------------------------------------------------------


INNER = "float one = {1}, int64[2] axes = {-1, 1}, int64[2] p = {1, 2}, int64[1] a = {1}"


def branch(body: str, result: str, *, computes: str = "y") -> str:
    """An If whose first branch gives `result`; c says which one is taken."""
    then = f"then_branch = t () => (float[e, f, g, h] {result}) {{ {body} }}"
    other = f"else_branch = o () => (float[e, f, g, h] q{result}) {{ q{result} = Abs (x) }}"
    return f"{computes} = If (c) <{then}, {other}>"


WRAP = 'v = Pad <mode = "wrap"> (x, all)'
TWICE = "u = Gelu (x) v = Gelu (u)"
HELD = {
    "two of a kind": branch(TWICE, "v"),
    "inside and outside": f"z = Gelu (x) w = Gelu (z) {branch(TWICE, 'v', computes='s')} y = Add (s, w)",
    "in both": branch(TWICE, "v").replace("Abs", "Mish"),
    "axes from outside": branch("v = ReduceMean (x, axes)", "v"),
    "constants of its own": branch('v = Pad (x, p, "", a)', "v"),
    "a node more": branch("s = Shape <start = 1> (x) f = Cast <to = 1> (s) g = ReduceMax (f) v = Add (x, g)", "v"),
    "a branch in a branch": branch(branch(TWICE, "v", computes="s"), "s"),
    "a loop": "y = Loop (n, t, x) <body = l (int64 i, bool d, float[e, f, g, h] s) => (bool k, float[e, f, g, h] v)"
    " { k = Identity (d) u = HardSwish (s) v = Gelu (u) }>",
}


def held(body: str) -> Case:
    constants = f"{INNER}, int64[8] all = {{0, 0, 1, 0, 0, 2, 0, 0}}, int64 n = {{3}}, bool t = {{1}}"
    return Case(0, f"m = Neg (x) h = ReduceMax <keepdims = 0> (m) c = Greater (h, one) {body}", "", constants)


@pytest.mark.parametrize("name", HELD)
def test_branches_and_bodies_are_rewritten(name: str) -> None:
    case = held(HELD[name])
    expected = run(case.model(), case.x())
    for opset in (13, 17):
        np.testing.assert_allclose(run(rewritten(case.model(), opset).model, case.x()), expected, rtol=1e-5, atol=1e-6)


def test_branches_are_left_alone_where_nothing_is_too_new() -> None:
    model = held(HELD["a branch in a branch"]).model()
    names = [node.name for node in model.graph.node[-1].attribute[0].g.node]
    found = rewritten(model, 21).model.graph.node[-1]
    assert [node.name for node in found.attribute[0].g.node] == names


@pytest.mark.parametrize(
    ("body", "node"),
    [
        (branch(WRAP, "v"), "Pad If_3/then_branch/Pad_0"),
        (branch(branch(WRAP, "v", computes="s"), "s"), "Pad If_3/then_branch/If_0/then_branch/Pad_0"),
    ],
)
def test_what_is_refused_is_refused_in_a_branch(body: str, node: str) -> None:
    with pytest.raises(GraphError, match=rf"^{node}: mode=wrap"):
        rewritten(held(body).model(), 17)


# --- refused by the pass -------------------------------------------------------------------------------------------

PADS = "int64[2] p = {1, 1}, int64[1] a = {1}"
SCALES = "float[4] s = {1, 1, 2, 2}"
REFUSED = {
    "ReduceMean ReduceMean_1: input 1 is computed": (
        17,
        "axes = Neg (n) y = ReduceMean (x, axes)",
        "int64[1] n = {1}",
    ),
    **{
        f"Reduce{kind} Reduce{kind}_0: noop_with_empty_axes without axes": (
            17,
            f"y = Reduce{kind} <noop_with_empty_axes = 1> (x)",
            "",
        )
        for kind in ("L1", "L2", "SumSquare", "LogSum")
    },
    "Pad Pad_1: axes on data of unknown rank": (17, 'r = Relu (x) y = Pad (r, p, "", a)', PADS),
    "Pad Pad_1: input 1 is computed": (17, 'q = Neg (p) y = Pad (x, q, "", a)', PADS),
    "Pad Pad_1: input 3 is computed": (17, 'b = Neg (a) y = Pad (x, p, "", b)', PADS),
    "Pad Pad_0: mode=wrap": (18, 'y = Pad <mode = "wrap"> (x, p)', "int64[8] p = {0, 0, 1, 0, 0, 2, 0, 0}"),
    r"AveragePool AveragePool_0: dilations=\[2, 2\]": (
        18,
        "y = AveragePool <kernel_shape = [2, 2], dilations = [2, 2]> (x)",
        "",
    ),
    "Cast Cast_0: saturate=0": (18, "f = Cast <to = 6, saturate = 0> (x) y = Cast <to = 1> (f)", ""),
    "Resize Resize_0: antialias=1": (17, 'y = Resize <mode = "linear", antialias = 1> (x, "", s)', SCALES),
    "Resize Resize_0: keep_aspect_ratio_policy=not_larger": (
        17,
        'y = Resize <keep_aspect_ratio_policy = "not_larger"> (x, "", "", s)',
        "int64[4] s = {1, 3, 8, 8}",
    ),
    "Resize Resize_0: coordinate_transformation_mode=half_pixel_symmetric": (
        18,
        'y = Resize <coordinate_transformation_mode = "half_pixel_symmetric"> (x, "", s)',
        SCALES,
    ),
    **{
        f"ScatterElements ScatterElements_0: reduction={reduction}": (
            17,
            f'y = ScatterElements <reduction = "{reduction}"> (x, i, u)',
            "int64[1, 1, 1, 1] i = {0}, float[1, 1, 1, 1] u = {5}",
        )
        for reduction in ("max", "min")
    },
    "ScatterND ScatterND_0: reduction=min": (
        17,
        'y = ScatterND <reduction = "min"> (x, i, u)',
        "int64[1, 4] i = {0, 0, 0, 0}, float[1] u = {5}",
    ),
    "RoiAlign RoiAlign_0: coordinate_transformation_mode=half_pixel": (15, "y = RoiAlign (x, r, i)", ROIS),
    "DFT DFT_1: input 2 is computed": (19, 'b = Neg (k) y = DFT (x, "", b)', "int64 k = {2}"),
    "LpPool LpPool_0: ceil_mode=1": (17, "y = LpPool <kernel_shape = [2, 2], ceil_mode = 1> (x)", ""),
    "Reshape Reshape_0: allowzero with a shape that may hold a zero": (
        13,
        "y = Reshape <allowzero = 1> (x, to)",
        "int64[4] to = {2, 3, 4, 0}",
    ),
    "Reshape Reshape_1: allowzero with a shape": (13, "to = Shape (x) y = Reshape <allowzero = 1> (x, to)", ""),
    "BatchNormalization BatchNormalization_0: training_mode=1": (
        13,
        "y, m, v = BatchNormalization <training_mode = 1> (x, w, w, w, w)",
        "float[3] w = {1, 2, 3}",
    ),
    "LayerNormalization LayerNormalization_0: axis 3 with 1 outputs": (
        16,
        "y = LayerNormalization <axis = 3> (x, w)",
        NORM,
    ),
    "LayerNormalization LayerNormalization_0: axis -1 with 2 outputs": (16, "y, m = LayerNormalization (x, w)", NORM),
    "GroupNormalization GroupNormalization_1: a computed scale": (
        20,
        "v = Neg (w) y = GroupNormalization <num_groups = 3> (x, v, w)",
        "float[3] w = {1, 2, 3}",
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message: str) -> None:
    opset, body, constants = REFUSED[message]
    with pytest.raises(GraphError, match=rf"^{message}(.|\n)*  do: .*newer"):
        rewritten(Case(0, body, "", constants).model(), opset)


@pytest.mark.parametrize(
    ("opset", "body"),
    [
        (17, "y = CenterCropPad (x, to)"),
        (15, "y = GridSample (x, x)"),
        (13, "y = CastLike (x, x)"),
        (17, "s, t = Split <axis = 3, num_outputs = 2> (x) y = Concat <axis = 3> (t, s)"),
        (17, 'y = Resize <axes = [2, 3]> (x, "", s)'),
    ],
)
def test_what_does_not_exist_is_refused_by_the_checker(opset: int, body: str) -> None:
    model = Case(0, body, "", "int64[4] to = {1, 1, 2, 2}, float[2] s = {2, 2}").model()
    with pytest.raises(GraphError, match=rf"net: not valid ONNX at opset {opset}: "):
        rewritten(model, opset)
