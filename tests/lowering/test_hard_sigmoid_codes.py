"""HardSigmoidCodes: every code of x becomes the code of HardSigmoid(x), by an Add that saturates."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.graph.running import look
from tests.lowering.lowered import applied, fast_operators, is_untouched, profile
from tests.lowering.test_requantize import parsed

X86, ARM = profile("x86-cpu"), profile("arm64-cpu")


def chain(
    *,
    scale: float = 0.04,
    zero_point: int = 128,
    attributes: str = "alpha = 0.16666667, beta = 0.5",
    end: float = 1 / 255,
    last: int = 0,
    tail: str = "y = DequantizeLinear (to, t, w)",
) -> onnx.ModelProto:
    """Give x -> codes -> HardSigmoid -> codes -> y."""
    return parsed(f"""
    net (float[n] x) => (float[n] y)
        <float s = {{{scale}}}, uint8 z = {{{zero_point}}}, float t = {{{end:.12g}}}, uint8 w = {{{last}}}> {{
        from = QuantizeLinear (x, s, z)
        d = DequantizeLinear (from, s, z)
        [gate] h = HardSigmoid <{attributes}> (d)
        to = QuantizeLinear (h, t, w)
        {tail}
    }}""")


@pytest.mark.parametrize(
    "attributes",
    [
        "alpha = 0.16666667, beta = 0.5",
        "alpha = 0.2, beta = 0.4",
        "beta = 0.3",
        "alpha = 0.2",
        "beta = 0.0",
        "beta = -0.25",
    ],
)
@pytest.mark.parametrize(("scale", "zero_point"), [(0.04, 128), (0.011, 0), (0.3, 13), (1.0, 255)])
def test_same_codes(scale: float, zero_point: int, attributes: str) -> None:
    before = chain(scale=scale, zero_point=zero_point, attributes=attributes)
    result = applied("HardSigmoidCodes", before, X86)
    assert (result.modified, result.changes) == (True, [])
    assert "HardSigmoid" not in {node.op_type for node in result.model.graph.node}
    x = ((np.arange(256) - zero_point) * np.float32(scale)).astype(np.float32)
    expected = look(before, x, "y")
    for optimisation in ("off", "all"):
        found = look(result.model, x, "y", optimisation=optimisation)
        steps = expected.astype(np.float64) * 255
        # next to the middle between two codes either may come out
        np.testing.assert_allclose(found * 255, steps, atol=1.001)
        assert np.mean(np.abs(found * 255 - steps) > 0.01) <= 0.04


def test_one_operator_on_bytes() -> None:
    result = applied("HardSigmoidCodes", chain(), X86)
    assert fast_operators(result.model, X86) == {"QLinearAdd": 1, "QuantizeLinear": 1, "DequantizeLinear": 1}
    assert fast_operators(chain(), X86)["HardSigmoid"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"end": 1 / 200},
        {"last": 1},
        {"attributes": "alpha = -0.2, beta = 0.5"},
        {"tail": "e = DequantizeLinear (to, t, w) y = Add (e, h)"},
    ],
    ids=["another-end", "another-zero", "falling", "two-readers"],
)
def test_left_alone(changes: dict[str, float]) -> None:
    before = chain(**changes)  # type: ignore[arg-type]
    assert is_untouched(applied("HardSigmoidCodes", before, X86), before)


def test_floats_in_front() -> None:
    before = parsed("""
    net (float[n] x) => (float[n] y) <float t = {0.00392156886}, uint8 w = {0}> {
        h = HardSigmoid (x)
        to = QuantizeLinear (h, t, w)
        y = DequantizeLinear (to, t, w)
    }""")
    assert is_untouched(applied("HardSigmoidCodes", before, ARM), before)
