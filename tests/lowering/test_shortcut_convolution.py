"""ShortcutConvolution: the same codes from one convolution, and every other Slice and Pad as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from tests.graph.masters import HEADER
from tests.graph.running import look, operators
from tests.lowering.lowered import Applied, applied, fast_operators, is_untouched, profile

Array = np.ndarray[Any, np.dtype[Any]]

X86 = profile("x86-cpu")
WHOLE = 9223372036854775807


def chain(
    *,
    steps: tuple[int, ...] = (2, 2),
    axes: tuple[int, ...] = (2, 3),
    starts: tuple[int, ...] = (0, 0),
    ends: tuple[int, ...] = (WHOLE, WHOLE),
    pads: tuple[int, ...] = (0, 2, 0, 0, 0, 3, 0, 0),
    value: float | None = 0.0,
    mode: str = "constant",
    zero_point: int = 0,
    second: float = 0.1,
    source: str = "r = Conv (x, w)",
    more: str = "",
    clip: bool = False,
) -> onnx.ModelProto:
    """Give a convolution to 4 channels, codes, the Slice and the Pad, codes, and a float behind them."""

    def numbers(values: tuple[int, ...]) -> str:
        return ", ".join(map(str, values))

    text = f"""
    net (float[n, 4, 9, 8] x) => (float[a, b, c, d] y)
        <float s = {{0.1}}, float t = {{{second}}}, uint8 z = {{{zero_point}}}, float v = {{{value or 0.0}}},
         uint8 top = {{200}}, float[4, 4, 1, 1] w = {{{numbers(tuple(np.eye(4, dtype=int).ravel()))}}},
         float[1, 4, 1, 1] narrow = {{1, 0, 0, 0}},
         int64[{len(starts)}] from = {{{numbers(starts)}}}, int64[{len(ends)}] to = {{{numbers(ends)}}},
         int64[{len(axes)}] axes = {{{numbers(axes)}}}, int64[{len(steps)}] steps = {{{numbers(steps)}}},
         int64[{len(pads)}] pads = {{{numbers(pads)}}}> {{
        {source}
        q = QuantizeLinear (r, s, z)
        e = DequantizeLinear (q, s, z)
        part = Slice (e, from, to, axes, steps)
        padded = Pad <mode = "{mode}"> (part, pads{"" if value is None else ", v"})
        codes = QuantizeLinear (padded, t, z)
        {"kept = Clip (codes, z, top)" if clip else ""}
        last = DequantizeLinear ({"kept" if clip else "codes"}, t, z)
        y = Sigmoid (last)
        {more}
    }}"""
    model = onnx.parser.parse_model(HEADER + text)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.output[0]}/{node.op_type}" if node.op_type == "QuantizeLinear" else f"node{index}"
    return model


def replace(model: onnx.ModelProto) -> Applied:
    return applied("ShortcutConvolution", model, X86)


def images() -> Array:
    """Give images whose codes are all of 0..255 and beyond both ends, on ties as well."""
    steps = np.random.default_rng(3).integers(-300, 600, (150, 4, 9, 8))
    return np.asarray(steps * np.float32(0.05), np.float32)


REPLACED: dict[str, dict[str, Any]] = {
    "option A": {},
    "around 128": {"zero_point": 128},
    "no value": {"value": None},
    "rows": {"steps": (2,), "axes": (2,), "starts": (0,), "ends": (WHOLE,)},
    "columns": {"steps": (3,), "axes": (3,), "starts": (0,), "ends": (WHOLE,)},
    "different steps": {"steps": (3, 2)},
    "no channels added": {"pads": (0,) * 8},
    "channels at the end": {"pads": (0, 0, 0, 0, 0, 5, 0, 0)},
    "behind a sum with one broadcast channel": {"source": "n1 = Conv (x, narrow) f = Conv (x, w) r = Add (n1, f)"},
    "behind a relu": {"source": "f = Conv (x, w) r = Relu (f)"},
}


@pytest.mark.parametrize("case", REPLACED)
def test_same_codes(case: str) -> None:
    before = chain(**REPLACED[case])
    result = replace(before)
    assert (result.modified, result.changes) == (True, [])
    assert not {"Slice", "Pad"} & set(operators(result.model))
    expected = look(before, images(), "codes")
    assert len(np.unique(expected)) == 256
    for optimisation in ("off", "all"):
        np.testing.assert_array_equal(look(result.model, images(), "codes", optimisation=optimisation), expected)
    found = fast_operators(result.model, X86)
    assert found.get("QLinearConv") == 1


def test_sizes_that_the_step_does_not_divide() -> None:
    """The last row and column count when a step lands on them."""
    for steps in ((4, 3), (8, 7), (9, 8), (20, 20)):
        before = chain(steps=steps)
        result = replace(before)
        assert result.modified
        np.testing.assert_array_equal(look(result.model, images(), "codes"), look(before, images(), "codes"))


@pytest.mark.parametrize("axis", [2, 3])
def test_slices_in_a_row(axis: int) -> None:
    before = chain(steps=(2,), axes=(2,), starts=(0,), ends=(WHOLE,))
    (node,) = [node for node in before.graph.node if node.op_type == "Slice"]
    place = list(before.graph.node).index(node)
    columns = onnx.parser.parse_graph(
        "g (float[a, b, c, d] part) => (float[a, b, c, d] more)"
        f" <int64[1] o = {{0}}, int64[1] p = {{{WHOLE}}}, int64[1] q3 = {{{axis}}}, int64[1] two = {{2}}>"
        " { more = Slice (part, o, p, q3, two) }"
    )
    before.graph.initializer.extend(columns.initializer)
    before.graph.node.insert(place + 1, columns.node[0])
    next(each for each in before.graph.node if each.op_type == "Pad").input[0] = "more"
    result = replace(before)
    assert operators(result.model).count("Conv") == 2
    np.testing.assert_array_equal(look(result.model, images(), "codes"), look(before, images(), "codes"))


LEFT_ALONE: dict[str, dict[str, Any]] = {
    "does not begin at the first pixel": {"starts": (1, 0)},
    "ends before the last": {"ends": (4, WHOLE)},
    "backwards": {"steps": (-1, 2), "starts": (0, 0)},
    "channels": {"axes": (1, 2)},
    "no step": {"steps": (1, 1)},
    "rows are padded": {"pads": (0, 2, 1, 0, 0, 3, 0, 0)},
    "pixels are cut": {"pads": (0, -1, 0, 0, 0, 3, 0, 0)},
    "padded with a number": {"value": 1.0},
    "padded with its edge": {"mode": "edge", "value": None},
    "another scale": {"second": 0.2},
    "a clip on the codes": {"clip": True},
    "number of channels not known": {"source": "r = Sigmoid (x)"},
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    before = chain(**LEFT_ALONE[case])
    assert is_untouched(replace(before), before)


@pytest.mark.parametrize("tensor", ["part", "padded"])
def test_what_others_read_is_left_alone(tensor: str) -> None:
    before = chain()
    before.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, ["a", "b", "c", "d"]))
    assert is_untouched(replace(before), before)


def test_what_others_read_in_front_of_it_is_shared() -> None:
    before = chain(more="other = Relu (e)")
    before.graph.output.append(
        onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, ["a", "b", "c", "d"])
    )
    result = replace(before)
    assert result.modified
    for name in ("codes", "other"):
        np.testing.assert_array_equal(look(result.model, images(), name), look(before, images(), name))
