"""Double rounding inside a graph, against Python integers: every code, every width, both tie rules, on onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession, Optimisation
from bitswitch_deploy.graph.derivation import derivation_constants, derivation_nodes
from bitswitch_deploy.tensors import Rounding
from tests.graph import slow

HELPER, TYPES = onnx.helper, onnx.TensorProto


def derive_in_graph(
    codes: np.ndarray, *, from_bits: int, to_bits: int, rounding: Rounding, optimisation: Optimisation
) -> np.ndarray:
    """Fold or run the nodes, in front of a Cast that keeps the result from being a constant output."""
    nodes = derivation_nodes("master", "codes", from_bits=from_bits, to_bits=to_bits, rounding=rounding)
    constants = derivation_constants({to_bits}, from_bits=from_bits, rounding=rounding)
    tail = [
        HELPER.make_node("Cast", ["codes"], ["wide"], to=TYPES.INT32),
        HELPER.make_node("Add", ["wide", "x"], ["y"]),
    ]
    graph = HELPER.make_graph(
        [*nodes, *tail],
        "derivation",
        [HELPER.make_tensor_value_info("x", TYPES.INT32, [1])],
        [HELPER.make_tensor_value_info("y", TYPES.INT32, [len(codes)])],
        [onnx.numpy_helper.from_array(codes, "master"), *constants],
    )
    model = HELPER.make_model(graph, opset_imports=[HELPER.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    session = OnnxRuntimeSession(model.SerializeToString(), optimisation=optimisation, threads=1, session_options={})
    return session.run(np.zeros(1, np.int32))


@pytest.mark.parametrize("optimisation", ["off", "all"])
@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize(("from_bits", "to_bits"), [(h, low) for h in (8, 6, 3) for low in range(2, h)])
def test_every_code_is_the_double_rounding(
    from_bits: int, to_bits: int, rounding: Rounding, optimisation: Optimisation
) -> None:
    codes = np.arange(-(2 ** (from_bits - 1)), 2 ** (from_bits - 1)).astype(np.int8)
    expected = slow.derived(codes, from_bits, to_bits, rounding)
    derived = derive_in_graph(codes, from_bits=from_bits, to_bits=to_bits, rounding=rounding, optimisation=optimisation)
    np.testing.assert_array_equal(derived, expected)


def test_constants_serve_all_widths_of_a_graph() -> None:
    names = [each.name for each in derivation_constants({2, 6}, from_bits=8, rounding=Rounding.HALF_UP)]
    assert names == [
        "derive.zero", "derive.quarter", "derive.w2.step", "derive.w2.highest", "derive.w6.step", "derive.w6.highest"
    ]  # fmt: skip
