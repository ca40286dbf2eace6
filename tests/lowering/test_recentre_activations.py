"""RecentreActivations: code plus or minus 128, the same float number behind it, with and without a Clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from bitswitch_deploy.errors import TargetFileError
from bitswitch_deploy.graph.model_io import export_model, import_model
from bitswitch_deploy.graph.qdq import activation_patterns, refine_activation
from bitswitch_deploy.lowering.lowering_pass import Change
from tests.graph.masters import build, layer
from tests.graph.running import initializer, look, operators
from tests.lowering.lowered import INT8_CPU, Applied, applied, canonical, profile

TEXT = 'net (float[n, 1] x, float[1, 1] "a.weight") => (float[n, 1] y) { y = MatMul (x, "a.weight") }'
X86, ARM = profile("x86-cpu"), profile("arm64-cpu", INT8_CPU)


def both(bits: int, activation: str, target: Any, **changes: Any) -> tuple[onnx.ModelProto, Applied]:
    master = build(
        TEXT, (layer("a", "MatMul", activation=activation),), tensors={"a.input.scale": [0.1] * 4}, **changes
    )
    model = canonical(master, bits).model
    return model, applied("RecentreActivations", model, target)


CASES = [
    *((bits, "signed", X86, 128) for bits in range(2, 9)),
    *((bits, "unsigned", ARM, -128) for bits in range(2, 9)),
]


@pytest.mark.parametrize(("bits", "activation", "target", "shift"), CASES)
def test_moved(bits: int, activation: str, target: Any, shift: int) -> None:
    before, result = both(bits, activation, target)
    assert result.modified
    assert result.changes == []
    x = (np.arange(-3000, 3001, dtype=np.float32) / 100)[:, None]
    last = "codes" if bits == 8 else "clipped"
    old, new = look(before, x, f"a.input.{last}"), look(result.model, x, f"a.input.{last}")
    assert new.dtype == (np.uint8 if shift > 0 else np.int8)
    assert old.dtype != new.dtype
    np.testing.assert_array_equal(new.astype(np.int16), old.astype(np.int16) + shift)
    np.testing.assert_array_equal(look(result.model, x, "a.input.dequantized"), look(before, x, "a.input.dequantized"))
    assert int(initializer(result.model, "a.input.zero_point")) == shift
    assert operators(result.model) == operators(before)


def test_ends_of_the_clip_move_along() -> None:
    _, result = both(4, "signed", X86)
    assert [int(initializer(result.model, f"a.input.{end}")) for end in ("low", "high")] == [120, 135]
    _, result = both(4, "unsigned", ARM)
    assert [int(initializer(result.model, f"a.input.{end}")) for end in ("low", "high")] == [-128, -113]


@pytest.mark.parametrize(("activation", "target"), [("unsigned", X86), ("signed", ARM)])
@pytest.mark.parametrize("bits", [8, 4])
def test_codes_in_the_container_are_left_alone(bits: int, activation: str, target: Any) -> None:
    before, result = both(bits, activation, target)
    assert not result.modified
    assert result.model.SerializeToString() == before.SerializeToString()


def test_shifted_codes_are_left_alone() -> None:
    before, _ = both(4, "unsigned", ARM)
    graph = import_model(before)
    refine_activation(graph, activation_patterns(graph)[0], 2)
    shifted = export_model(graph, opset=21, ir_version=10)
    result = applied("RecentreActivations", shifted, ARM)
    assert not result.modified
    assert result.model.SerializeToString() == shifted.SerializeToString()


def test_zero_points_that_q_and_dq_do_not_share() -> None:
    before, _ = both(4, "signed", X86)
    twin = onnx.TensorProto()
    twin.CopyFrom(next(tensor for tensor in before.graph.initializer if tensor.name == "a.input.zero_point"))
    twin.name = "twin"
    before.graph.initializer.append(twin)
    dequantize = next(node for node in before.graph.node if node.name == "a.input/DequantizeLinear")
    dequantize.input[2] = "twin"
    result = applied("RecentreActivations", before, X86)
    assert [int(initializer(result.model, name)) for name in ("a.input.zero_point", "twin")] == [128, 128]


def test_int8_around_zero_is_the_work_of_another_pass() -> None:
    target = profile("arm64-cpu", {"quantization.activation": {"dtype": "int8", "zero_point": 0}})
    with pytest.raises(
        TargetFileError, match=r"target arm64-cpu: lowering: RecentreActivations with activations in int8"
    ):
        both(4, "unsigned", target)
    _, result = both(4, "signed", target)
    assert result.changes == list[Change]()
    assert not result.modified
