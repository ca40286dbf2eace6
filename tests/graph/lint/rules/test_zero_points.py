from __future__ import annotations

import numpy as np
import pytest

from bitswitch_deploy.errors import GraphError
from tests.graph.lint.graphs import CONV, IN, LAYER, OUT, WEIGHT, found, model, nodes, pair, weight, with_zero
from tests.graph.running import initializer, run, watched

TAIL = with_zero(WEIGHT + LAYER + OUT, "i")


def test_a_quantizer_without_zero_point_is_uint8_to_one_and_int8_to_the_other() -> None:
    graph = model("[q] q = QuantizeLinear (x, s) [dq] d = DequantizeLinear (q, s)" + TAIL)
    assert found(graph, "missing-zero-point") == [
        ("q", "no zero-point: uint8 to ONNX and onnxruntime, int8 to TensorRT")
    ]
    assert not nodes(graph, "uint8-codes")  # one finding for one fault


def test_output_dtype_says_it_too() -> None:
    graph = model("q = QuantizeLinear <output_dtype = 3> (x, s) d = DequantizeLinear (q, s)" + TAIL)
    assert not nodes(graph, "missing-zero-point")
    assert not nodes(graph, "q-dq-types-disagree")


def test_a_dequantizer_takes_the_type_of_its_codes() -> None:
    body = "q = QuantizeLinear (x, s, i) d = DequantizeLinear (q, s) wd = DequantizeLinear <axis = 0> (w, sw)"
    assert not nodes(model(body + LAYER + with_zero(OUT, "i")), "missing-zero-point")


def test_uint8_codes_once_for_each_pair() -> None:
    graph = model(with_zero(CONV, "u"))
    lost = "uint8 codes, read as int8: the upper half of the range is lost"
    assert found(graph, "uint8-codes") == [("q_d", lost), ("q_y", lost)]
    assert not nodes(model(with_zero(CONV, "i")), "uint8-codes")


def test_uint8_weights() -> None:
    graph = model(with_zero(IN + weight(scale="s1", zero="um", codes="wu") + LAYER + OUT, "i"))
    assert found(graph, "uint8-codes") == [("dq_wd", "uint8 codes, not imported")]


def test_uint8_without_a_zero_point() -> None:
    graph = model("[q] q = QuantizeLinear <output_dtype = 2> (x, s) d = DequantizeLinear (q, s)" + TAIL)
    assert nodes(graph, "uint8-codes") == ["q"]
    graph = model(with_zero(IN + "[dq] wd = DequantizeLinear (wu, s1)" + LAYER + OUT, "i"))
    assert found(graph, "uint8-codes") == [("dq", "uint8 codes, not imported")]


def test_zero_points_other_than_zero() -> None:
    assert found(model(with_zero(CONV, "im")), "nonzero-zero-point") == [
        ("q_d", "zero-point -128"),
        ("q_y", "zero-point -128"),
    ]
    weights = with_zero(IN + weight(zero="odd") + LAYER + OUT, "i")
    graph = model(weights, constants="int8[4] odd = {0, 3, -1, 0}")
    assert found(graph, "nonzero-zero-point") == [("dq_wd", "zero-point -1 .. 3")]
    assert not nodes(model(with_zero(CONV, "i")), "nonzero-zero-point")


def test_codes_of_one_type_with_a_zero_point_of_another() -> None:
    graph = model("q = QuantizeLinear (x, s, i) [dq] d = DequantizeLinear (q, s, u)" + TAIL)
    assert found(graph, "q-dq-types-disagree") == [("dq", "int8 codes with a zero-point of type uint8")]
    graph = model("[dq] d = DequantizeLinear (w, s, u) y = Add (x, d)", x="4, 4, 3, 3")
    assert found(graph, "q-dq-types-disagree") == [("dq", "int8 codes with a zero-point of type uint8")]


@pytest.mark.parametrize(("named", "said"), [(3, ""), (2, "uint8 codes with a zero-point of type int8"), (0, "")])
def test_an_output_dtype_beside_a_zero_point_of_another_type(named: int, said: str) -> None:
    written = f"<output_dtype = {named}>" if named else ""
    graph = model(f"[q] q = QuantizeLinear {written} (x, s, i) d = DequantizeLinear (q, s, i)" + TAIL)
    assert found(graph, "q-dq-types-disagree") == ([("q", said)] if said else [])
    x = np.zeros((1, 4, 8, 8), np.float32)
    if said:
        with pytest.raises(GraphError, match="output_dtype UINT8 does not match y_zero_point type INT8"):
            run(graph, x)
    else:
        run(graph, x)


def test_types_are_followed_through_operators_on_codes() -> None:
    body = "q = QuantizeLinear (x, s, i) o = Clip (q, ilo, ihi) r = Transpose (o) [dq] d = DequantizeLinear (r, s, {})"
    assert nodes(model(body.format("u") + TAIL), "q-dq-types-disagree") == ["dq"]
    assert not nodes(model(body.format("i") + TAIL), "q-dq-types-disagree")


@pytest.mark.parametrize(("scale", "zero"), [("s2", "i"), ("s", "im")])
def test_another_grid_behind_than_in_front(scale: str, zero: str) -> None:
    graph = model(f"[q] q = QuantizeLinear (x, s, i) [dq] d = DequantizeLinear (q, {scale}, {zero})" + TAIL)
    assert found(graph, "q-dq-scales-disagree") == [
        ("dq", "another scale or zero-point than q, whose codes it reads"),
    ]


@pytest.mark.parametrize("zero", ["h", "e"])
def test_another_grid_of_other_types(zero: str) -> None:
    body = f"e = Cast <to = 17> (lo) q = QuantizeLinear (x, s, {zero}) [dq] d = DequantizeLinear (q, s2, {zero})"
    assert nodes(model(body + TAIL), "q-dq-scales-disagree") == ["dq"]


AXES = "[q] k = QuantizeLinear <{}> (f, {scale}, {zero}) [dq] wd = DequantizeLinear <{}> (k, {scale}, {zero})"
BLOCKS = "float[2, 4] s8 = {0.2, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1}, int8[2, 4] z8 = {0, 0, 0, 0, 0, 0, 0, 0}"


@pytest.mark.parametrize(
    ("front", "behind", "scale", "said"),
    [
        ("axis = 0", "axis = 1", "sw", "scales along axis 1, those of q along axis 0"),
        ("axis = -2", "axis = -1", "sw", "scales along axis -1, those of q along axis -2"),
        ("axis = 0", "axis = -1", "sw", "scales along axis -1, those of q along axis 0"),
        ("axis = 0", "axis = -2", "sw", ""),
        ("axis = 1", "axis = -1", "sw", ""),
        ("axis = 0", "axis = 1", "one", ""),
        ("axis = 0", "axis = 1", "s", ""),
        ("axis = 0, block_size = 2", "axis = 0, block_size = 2", "s8", ""),
        (
            "axis = 0, block_size = 2",
            "axis = 0, block_size = 3",
            "s8",
            "scales along axis 0 in blocks of 3, those of q along axis 0 in blocks of 2",
        ),
    ],
)
def test_scales_along_another_axis_behind_than_in_front(front: str, behind: str, scale: str, said: str) -> None:
    zero = {"s": "i", "s8": "z8"}.get(scale, "iw")
    body = AXES.format(front, behind, scale=scale, zero=zero) + "y = MatMul (x, wd)"
    graph = model(body, x="2, 4", y="a, b", shape=(4, 4), constants=BLOCKS)
    assert found(graph, "q-dq-axes-disagree") == ([("dq", said)] if said else [])
    exact = initializer(graph, "f")
    error = np.abs(run(watched(graph, ("wd",)), np.zeros((2, 4), np.float32)) - exact).max()
    assert (error > initializer(graph, scale).max() / 2 + 1e-6) == bool(said)


def test_equal_values_in_other_tensors_are_one_grid() -> None:
    body = "q = QuantizeLinear (x, s, i) d = DequantizeLinear (q, same, zero)"
    graph = model(body + TAIL, constants="float[1] same = {0.05}, int8[1] zero = {0}")
    assert not nodes(graph, "q-dq-scales-disagree")
    graph = model("q = QuantizeLinear (x, s, i) d = DequantizeLinear (q, s)" + TAIL)
    assert not nodes(graph, "q-dq-scales-disagree")


def test_finer_steps_behind_a_shift_are_meant() -> None:
    body = 'q = QuantizeLinear (x, s, u) r = BitShift <direction = "LEFT"> (q, uhi) d = DequantizeLinear (r, s2, u)'
    assert not nodes(model(body + TAIL), "q-dq-scales-disagree")


def test_the_pair_in_front_of_a_pair() -> None:
    body = pair("x", "a", "s", "i") + pair("a", "d", "s2", "i")
    assert not nodes(model(body + TAIL), "q-dq-scales-disagree")


BORDER = "int64[8] border = {0, 0, 1, 1, 0, 0, 1, 1}, int64[8] channels = {0, 0, 0, 0, 0, 4, 0, 0}, uint8 fill = {128}"


def test_a_border_of_no_number() -> None:
    graph = model(pair("x", "y", "s", "u", on_codes="Pad (*, border, bad)"), constants=BORDER + ", float bad = {nan}")
    assert "a border of code nan by" in found(graph, "padded-codes")[0][1]


def test_a_zero_point_of_no_number() -> None:
    graph = model(
        "[q] q = QuantizeLinear (x, s, bad) [dq] y = DequantizeLinear (q, s, bad)", constants="float bad = {nan}"
    )
    assert found(graph, "nonzero-zero-point") == [("q", "zero-point nan")]


@pytest.mark.parametrize("operator", ["Pad (*, border)", 'Pad <mode = "constant"> (*, border, u)'])
def test_a_border_of_codes_that_are_not_zero(operator: str) -> None:
    graph = model(pair("x", "y", "s", "um", on_codes=operator), constants=BORDER)
    for node in graph.graph.node:
        node.name = node.name or "pad"
    assert found(graph, "padded-codes") == [
        ("dq_y", "a border of code 0 by pad, which stands for another number than 0")
    ]


@pytest.mark.parametrize(
    ("operator", "zero"),
    [
        ("Pad (*, border, fill)", "um"),
        ("Pad (*, border)", "u"),
        ("Pad (*, border)", "i"),
        ('Pad <mode = "edge"> (*, border)', "um"),
        ("Pad (*, channels)", "um"),
        ("Pad (*, four, u, axes)", "um"),
        ("Transpose (*)", "um"),
        ("Pad (*, none)", "um"),
    ],
)
def test_other_borders(operator: str, zero: str) -> None:
    constants = f"{BORDER}, int64[2] four = {{0, 4}}, int64[1] axes = {{1}}, int64[0] none = {{}}"
    assert not nodes(model(pair("x", "y", "s", zero, on_codes=operator), constants=constants), "padded-codes")
