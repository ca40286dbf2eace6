"""Double rounding inside a graph, against Python integers: every code, every width, both tie rules, on onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession, Optimisation
from bitswitch_deploy.graph.derivation import DOMAIN, Derivation
from bitswitch_deploy.tensors import Rounding
from tests.graph import slow

HELPER, TYPES = onnx.helper, onnx.TensorProto


def derive_in_graph(
    codes: np.ndarray, derivation: Derivation, *, optimisation: Optimisation, factors: np.ndarray | None = None
) -> np.ndarray:
    """Fold or run the function, in front of a Cast that keeps the result from being a constant output."""
    nodes = [
        derivation.call("master", "codes", factors=None if factors is None else "factors"),
        HELPER.make_node("Cast", ["codes"], ["wide"], to=TYPES.INT32),
        HELPER.make_node("Add", ["wide", "x"], ["y"]),
    ]
    constants = {"master": codes} | ({} if factors is None else {"factors": factors})
    graph = HELPER.make_graph(
        nodes,
        "derivation",
        [HELPER.make_tensor_value_info("x", TYPES.INT32, [1])],
        [HELPER.make_tensor_value_info("y", TYPES.INT32, list(codes.shape))],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [HELPER.make_opsetid("", 21), HELPER.make_opsetid(DOMAIN, 1)]
    functions = [derivation.function(opset=21)]
    model = HELPER.make_model(graph, opset_imports=imports, ir_version=10, functions=functions)
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
    derivation = Derivation(from_bits=from_bits, to_bits=to_bits, rounding=rounding, multiplies=False)
    np.testing.assert_array_equal(derive_in_graph(codes, derivation, optimisation=optimisation), expected)


@pytest.mark.parametrize("optimisation", ["off", "all"])
@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize("to_bits", [8, 6, 4, 2])
def test_factors_multiply_what_was_rounded(to_bits: int, rounding: Rounding, optimisation: Optimisation) -> None:
    codes = np.arange(-128, 128).astype(np.int8).reshape(4, 64)
    largest = 1 << (8 - to_bits)
    factors = np.array([[largest], [1], [0], [-min(largest, 32)]], np.int8)
    codes[codes == -128] = -127  # has no negative
    derivation = Derivation(from_bits=8, to_bits=to_bits, rounding=rounding, multiplies=True)
    derived = derive_in_graph(codes, derivation, optimisation=optimisation, factors=factors)
    rounded = codes if to_bits == 8 else slow.derived(codes, 8, to_bits, rounding)
    np.testing.assert_array_equal(derived, rounded.astype(np.int32) * factors)
