"""FillContainer: 256 steps over the trained range, saturation instead of a Clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.graph.model_io import export_model, import_model
from bitswitch_deploy.graph.qdq import activation_patterns, limit_codes, refine_activation
from bitswitch_deploy.lowering.approximation import EXACT, USUAL, Approximation
from bitswitch_deploy.master import Master
from tests.graph import slow
from tests.graph.masters import build, layer
from tests.graph.running import initializer, look, operators
from tests.lowering.critical_values import critical
from tests.lowering.lowered import Applied, applied, canonical, lowered, profile

X86 = profile("x86-cpu")
TEXT = 'net (float[n, 1] x, float[1, 1] "a.weight") => (float[n, 1] y) { y = MatMul (x, "a.weight") }'
UNSIGNED, SIGNED = Approximation.FULL_RESOLUTION, Approximation.FULL_RESOLUTION_SIGNED
WANTED = USUAL | {UNSIGNED, SIGNED}


def master_of(bits: int, activation: str = "unsigned", container: str = "uint8") -> Master:
    tensors = {"a.input.scale": [0.1]}
    layers = (layer("a", "MatMul", activation=activation),)
    return build(TEXT, layers, widths=(bits,), tensors=tensors, activation_container=container)


def before_of(bits: int, activation: str = "unsigned", container: str = "uint8") -> onnx.ModelProto:
    return canonical(master_of(bits, activation, container), bits).model


def fill(model: onnx.ModelProto, approximations: frozenset[Approximation] = WANTED) -> Applied:
    return applied("FillContainer", model, X86, approximations=approximations)


@pytest.mark.parametrize(
    ("bits", "container", "top"), [*((bits, "uint8", 2**bits - 1) for bits in range(2, 8)), (8, "int8", 127)]
)
def test_filled(bits: int, container: str, top: int) -> None:
    before = before_of(bits, container=container)
    result = fill(before)
    assert result.modified
    assert [(each.where, each.what, each.exact) for each in result.changes] == [
        ("1 activations", "trained range in 256 steps instead of as many as were trained", False)
    ]
    assert "Clip" not in operators(result.model)
    step = initializer(result.model, "a.input.scale")
    assert step == np.float32(np.float64(np.float32(0.1)) * top / 255)
    x = critical(np.float32(step), 0, 255)[:-6]
    for optimisation in ("off", "all"):
        found = look(result.model, x, "a.input.codes", optimisation=optimisation)
        np.testing.assert_array_equal(found, slow.activation_codes(x, np.float32(step), 0, 255))
    # the range is the trained one
    ends = np.asarray([[-1e6], [1e6]], np.float32)
    old, new = (look(model, ends, "a.input.dequantized") for model in (before, result.model))
    np.testing.assert_allclose(new, old, rtol=2e-7)


# zero lies at 255 * 2^(bits - 1) / (2^bits - 1) of the 255 steps
@pytest.mark.parametrize(("bits", "zero_point"), [(2, 170), (3, 146), (4, 136), (5, 132), (6, 130), (7, 129)])
def test_signed_codes_move_their_zero(bits: int, zero_point: int) -> None:
    before = before_of(bits, "signed")
    result = fill(before)
    assert "Clip" not in operators(result.model)
    step = np.float32(np.float64(np.float32(0.1)) * (2**bits - 1) / 255)
    assert initializer(result.model, "a.input.scale") == step
    assert initializer(result.model, "a.input.zero_point") == zero_point - 128
    x = critical(step, -zero_point, 255 - zero_point)[:-6]
    for optimisation in ("off", "all"):
        found = look(result.model, x, "a.input.codes", optimisation=optimisation).astype(np.int64) + 128
        expected = slow.activation_codes(x, step, -zero_point, 255 - zero_point) + zero_point
        np.testing.assert_array_equal(found, expected)
    ends = np.asarray([[-1e6], [1e6]], np.float32)
    old, new = (look(model, ends, "a.input.dequantized") for model in (before, result.model))
    # the trained range, moved by no more than half a fine step, and zero where it was
    np.testing.assert_allclose(new, old, rtol=0, atol=0.5001 * step)
    assert look(result.model, np.zeros((1, 1), np.float32), "a.input.dequantized") == 0


LEFT_ALONE = {
    "uint8": (8, "unsigned", WANTED),
    "int8": (8, "signed", WANTED),
    "not asked for": (4, "unsigned", USUAL),
    "only signed ones": (4, "unsigned", USUAL | {SIGNED}),
    "only unsigned ones": (4, "signed", USUAL | {UNSIGNED}),
}


@pytest.mark.parametrize("case", [*LEFT_ALONE, "strict"])
def test_left_alone(case: str) -> None:
    bits, activation, approximations = LEFT_ALONE.get(case, (4, "unsigned", EXACT))
    before = before_of(bits, activation)
    result = fill(before, approximations)
    assert (result.modified, result.changes) == (False, [])
    assert result.model.SerializeToString() == before.SerializeToString()


@pytest.mark.parametrize(("activation", "modified"), [("signed", False), ("unsigned", True)])
def test_zero_stays_where_a_target_wants_it(activation: str, modified: bool) -> None:
    """ClampActivations, which a user's target may have behind it, takes zero-point 0 only."""
    rtx = profile("rtx", {"lowering": ["FillContainer", *profile("rtx").lowering]})
    _, after = lowered(master_of(4, activation), 4, rtx, approximations=WANTED)
    assert ("FillContainer" in after.passes) is modified
    assert initializer(after.model, "a.input.zero_point") == 0


def test_shifted_codes_are_left_alone() -> None:
    graph = import_model(before_of(4))
    refine_activation(graph, activation_patterns(graph)[0], 2)
    assert not fill(export_model(graph, opset=21, ir_version=10)).modified


@pytest.mark.parametrize(("low", "high", "modified"), [(0, 10, True), (1, 10, False), (0, 0, False), (3, 3, False)])
def test_ends_that_another_pass_has_moved(low: int, high: int, modified: bool) -> None:
    graph = import_model(before_of(4))
    limit_codes(graph, activation_patterns(graph)[0], low=low, high=high)
    result = fill(export_model(graph, opset=21, ir_version=10))
    assert result.modified is modified
    if modified:
        assert initializer(result.model, "a.input.scale") == np.float32(np.float64(np.float32(0.1)) * 10 / 255)


def test_every_activation_in_one_record() -> None:
    text = """
    net (float[n, 2] x, float[2, 2] "a.weight", float[2, 2] "b.weight") => (float[n, 2] y) {
        a = MatMul (x, "a.weight")
        y = MatMul (a, "b.weight")
    }"""
    master = build(text, (layer("a", "MatMul"), layer("b", "MatMul")))
    _, after = lowered(master, 2, X86, approximations=WANTED)
    assert [change.where for change in after.changes if change.by == "FillContainer"] == ["2 activations"]
    assert not after.exact
    signatures: set[Any] = {node.op_type for node in after.model.graph.node}
    assert "Clip" not in signatures
