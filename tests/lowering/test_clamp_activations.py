"""ClampActivations: codes of the canonical graph against codes of float Clip and int8, around every tie and end."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.errors import GraphError, TargetFileError
from bitswitch_deploy.lowering.lower import lower
from tests.graph import slow
from tests.graph.masters import build, layer
from tests.graph.running import initializer, look, operators
from tests.lowering.critical_values import critical
from tests.lowering.lowered import INT8_CPU, applied, canonical, profile

Array = np.ndarray[Any, np.dtype[Any]]

RTX = profile("rtx")
SCALES = (1.0, 0.1, 1 / 3, 0.0078431377, 7.3e-9, 1.17549435e-38, 1.3e36)
PLAIN = 'net (float[n, 1] x, float[1, 1] "a.weight") => (float[n, 1] y) { y = MatMul (x, "a.weight") }'
BEHIND_RELU = PLAIN.replace("{ y = MatMul (x,", "{ r = Relu (x) y = MatMul (r,")


def both(
    bits: int, activation: str, *, scale: float, container: str = "uint8", text: str = PLAIN
) -> tuple[onnx.ModelProto, Any]:
    master = build(
        text,
        (layer("a", "MatMul", activation=activation),),
        widths=(bits,),
        tensors={"a.input.scale": [scale]},
        activation_container=container,
    )
    model = canonical(master, bits).model
    return model, applied("ClampActivations", model, RTX)


def codes(model: onnx.ModelProto, x: Array) -> Array:
    last = next(node.input[0] for node in model.graph.node if node.name == "a.input/DequantizeLinear")
    return look(model, x, last)


EXACT = [
    *((bits, "unsigned", "uint8") for bits in range(2, 8)),
    (8, "unsigned", "int8"),
    *((bits, "signed", "uint8") for bits in range(2, 9)),
]


@pytest.mark.parametrize("text", [PLAIN, BEHIND_RELU], ids=["plain", "behind relu"])
@pytest.mark.parametrize(("bits", "activation", "container"), EXACT)
def test_same_codes_around_every_tie_and_end(bits: int, activation: str, container: str, text: str) -> None:
    for scale in SCALES:
        before, result = both(bits, activation, scale=scale, container=container, text=text)
        low, high = slow_range(bits, activation, container)
        x = critical(np.float32(scale), low, high)
        expected = codes(before, x)
        found = codes(result.model, x)
        np.testing.assert_array_equal(found, expected.astype(np.int16))
        assert found.dtype == np.int8
        # the canonical side is itself right, and reaches both ends
        kept = np.maximum(x, 0) if text is BEHIND_RELU else x
        finite = np.clip(kept, np.float32(low - 5) * np.float32(scale), np.float32(high + 5) * np.float32(scale))
        np.testing.assert_array_equal(found, slow.activation_codes(finite, np.float32(scale), low, high))
        assert {0 if text is BEHIND_RELU else low, high} <= set(found.ravel().tolist())
        assert result.changes == []


def slow_range(bits: int, activation: str, container: str) -> tuple[int, int]:
    if activation == "signed":
        return -int(2 ** (bits - 1)), int(2 ** (bits - 1)) - 1
    return 0, 127 if container == "int8" and bits == 8 else int(2**bits) - 1


@pytest.mark.parametrize("text", [PLAIN, BEHIND_RELU], ids=["plain", "behind relu"])
@pytest.mark.parametrize(("bits", "activation", "container"), EXACT)
def test_form(bits: int, activation: str, container: str, text: str) -> None:
    _, result = both(bits, activation, scale=0.1, container=container, text=text)
    assert initializer(result.model, "a.input.zero_point").dtype == np.int8
    assert initializer(result.model, "a.input.scale") == np.float32(0.1)
    found = operators(result.model)
    assert found.index("QuantizeLinear") + 1 == found.index("DequantizeLinear", 1)  # nothing on the integers
    untouched = activation == "signed" and bits == 8
    assert result.modified is not untouched
    highest = slow_range(bits, activation, container)[1]
    saturation_is_enough = highest == 127 and text is BEHIND_RELU
    assert ("Clip" in found) is not (untouched or (activation == "unsigned" and saturation_is_enough))


@pytest.mark.parametrize("text", [PLAIN, BEHIND_RELU], ids=["plain", "behind relu"])
def test_unsigned_eight_bits_are_rescaled_and_confessed(text: str) -> None:
    before, result = both(8, "unsigned", scale=0.1, text=text)
    source = "r" if text is BEHIND_RELU else "x"
    assert [(change.by, change.where, change.what, change.exact) for change in result.changes] == [
        ("ClampActivations", "1 activations", "uint8 codes 0..255 re-scaled to 0..127 of int8", False)
    ]
    wide = np.float32(np.float32(0.1) * np.float32(255 / 127))
    assert initializer(result.model, "a.input.scale") == wide
    x = critical(wide, 0, 127)
    np.testing.assert_array_equal(codes(result.model, x[:-6]), slow.activation_codes(x[:-6], wide, 0, 127))
    assert codes(result.model, np.array([[25.5]], np.float32)).item() == 127  # code 255 of the canonical graph
    assert codes(before, np.array([[25.5]], np.float32)).item() == 255
    assert ("Clip" in operators(result.model)) is (source == "x")


def test_all_activations_of_a_network_in_one_record() -> None:
    text = """
    net (float[n, 2] x, float[2, 2] "a.weight", float[2, 2] "b.weight") => (float[n, 2] y) {
        a = MatMul (x, "a.weight")
        y = MatMul (a, "b.weight")
    }"""
    model = canonical(build(text, (layer("a", "MatMul"), layer("b", "MatMul"))), 8).model
    assert [change.where for change in applied("ClampActivations", model, RTX).changes] == ["2 activations"]


def test_relu_of_another_branch_does_not_save_the_clip() -> None:
    text = PLAIN.replace("{ y = MatMul (x,", "{ r = Relu (x) s = Sub (r, x) y = MatMul (s,")
    before, result = both(8, "unsigned", scale=0.1, container="int8", text=text)
    assert "Clip" in operators(result.model)
    x = np.array([[-3.0], [3.0]], np.float32)
    np.testing.assert_array_equal(codes(result.model, x), codes(before, x))


def test_codes_around_another_zero_point_are_refused() -> None:
    before, _ = both(4, "unsigned", scale=0.1)
    moved = applied("RecentreActivations", before, profile("arm64-cpu", INT8_CPU)).model
    with pytest.raises(GraphError, match=r"QuantizeLinear a\.input/QuantizeLinear: zero-point -128\n"):
        applied("ClampActivations", moved, RTX)


@pytest.mark.parametrize("name", ["rtx", "jetson-thor", "jetson-orin-nano", "jetson-agx-orin", "jetson-xavier-nx"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_gpu_target_without_this_pass_is_refused(name: str, bits: int) -> None:
    graph = canonical(build(PLAIN, (layer("a", "MatMul"),)), bits)
    lowering = [each for each in profile(name).lowering if each != "ClampActivations"]
    with pytest.raises(
        GraphError, match=r"QuantizeLinear a\.input/QuantizeLinear: type uint8\n  allowed: any type but uint8"
    ):
        lower(graph, profile(name, {"lowering": lowering}), ranges={})
    lowered = lower(graph, profile(name), ranges={})
    assert lowered.exact is (bits == 4)


def test_recentring_cannot_take_its_place() -> None:
    graph = canonical(build(PLAIN, (layer("a", "MatMul"),)), 4)
    with pytest.raises(TargetFileError, match="RecentreActivations with activations in int8 and zero-point 0"):
        lower(graph, profile("rtx", {"lowering": ["RecentreActivations", "SetOpset"]}), ranges={})
