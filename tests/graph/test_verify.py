"""Each way to break the Q/DQ invariants is refused with the name of the node."""

from __future__ import annotations

import onnx.parser
import pytest

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.model_io import import_model
from bitswitch_deploy.graph.verify import verify_qdq

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[2] x, float s, uint8 u) => (float[2] y)
<float scale = {0.5}, float[2] scales = {0.5, 0.25}, uint8 zero = {0}, uint8[2] zeros = {0, 0}, float bad = {BAD}> {
    none = Constant <value_float: float = 0.5> ()
    q = QuantizeLinear (x, Q)
    y = DequantizeLinear (q, D)
}"""


def verify(q: str = "scale, zero", d: str = "scale, zero", bad: str = "1") -> None:
    text = TEXT.replace("(x, Q)", f"(x, {q})").replace("(q, D)", f"(q, {d})").replace("BAD", bad)
    verify_qdq(import_model(onnx.parser.parse_model(text)), where="here")


def test_sound_graphs() -> None:
    verify()
    verify("scales, zeros", "scales, zeros")


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ("scale", "no zero-point"),
        ('scale, ""', "no zero-point"),
        ("s, zero", "scale or zero-point is not a constant"),
        ("scale, u", "scale or zero-point is not a constant"),
        ("none, zero", "scale or zero-point is not a constant"),
        ("scales, zero", r"scale of shape \(2,\) with a zero-point of shape \(\)"),
        ("scale, zeros", r"scale of shape \(\) with a zero-point of shape \(2,\)"),
    ],
)
def test_broken_graphs(inputs: str, problem: str) -> None:
    with pytest.raises(GraphError, match=rf"^here: QuantizeLinear QuantizeLinear_1: {problem}\n"):
        verify(q=inputs)
    with pytest.raises(GraphError, match=rf"^here: DequantizeLinear DequantizeLinear_2: {problem}\n"):
        verify(d=inputs)


@pytest.mark.parametrize("bad", ["0", "-0.5", "nan", "inf", "-inf"])
def test_scales_that_are_not_positive_and_finite(bad: str) -> None:
    with pytest.raises(GraphError, match=rf"DequantizeLinear_2: scale in {bad}(\.0)? \.\. {bad}(\.0)?\n"):
        verify(d="bad, zero", bad=bad)


@pytest.mark.parametrize(("bad", "sound"), [("-0.5", True), ("0", False), ("-inf", False), ("nan", False)])
def test_scales_of_constants_may_be_negative(bad: str, sound: bool) -> None:
    text = TEXT.replace("q = QuantizeLinear (x, Q)", "i = Identity (codes)").replace("(q, D)", "(i, bad, zero)")
    model = onnx.parser.parse_model(text.replace("BAD}", f"{bad}}}, uint8[2] codes = {{1, 2}}".replace("}}", "}")))
    if sound:
        verify_qdq(import_model(model), where="here")
    else:
        with pytest.raises(GraphError, match=rf"scale in {bad}"):
            verify_qdq(import_model(model), where="here")
