"""Products in codes whose Relu or Clip goes on in float: the same function, and really in integers."""

from __future__ import annotations

import numpy as np
import pytest

from bitswitch_deploy.lowering.approximation import EXACT
from tests.graph.masters import build, layer
from tests.graph.running import operators, run
from tests.lowering.lowered import fast_operators, lowered
from tests.lowering.test_quantize_bias import COLUMNS, X86, inputs

CONSTANTS = "<float lo = {0.1}, float hi = {0.4}>"
# what stands behind the product a, and what it is in the lowered graph
ACTIVATIONS = {
    "relu": ("b = Relu (a)", ["Max"]),
    "clip": ("b = Clip (a, lo, hi)", ["Max", "Min"]),
    "lower bound": ("b = Clip (a, lo)", ["Max"]),
    "upper bound": ("b = Clip (a, , hi)", ["Min"]),
    "sigmoid": ("b = Sigmoid (a)", ["Sigmoid"]),
    "relu, relu": ("c = Relu (a) b = Relu (c)", ["Max", "Relu"]),
}
PRODUCTS = {"Gemm": "n, 4", "MatMul": "n, 3, 4"}
INTEGERS = ("QGemm", "MatMulIntegerToFloat")


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
@pytest.mark.parametrize("operator", PRODUCTS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_product_whose_activation_stays_float_runs_in_integers(name: str, operator: str, bits: int) -> None:
    activation, expected_operators = ACTIVATIONS[name]
    shape = PRODUCTS[operator]
    text = f"""net (float[{shape}] x, float[4, 6] "a.weight") => (float[{shape[:-1]}6] y)
    {CONSTANTS} {{ a = {operator} (x, "a.weight") {activation} y = Softmax (b) }}"""
    before, after = lowered(build(text, (layer("a", operator, COLUMNS),)), bits, X86, approximations=EXACT)  # type: ignore[arg-type]
    assert after.exact
    behind = operators(after.model)
    assert behind[behind.index(operator) + 1 :] == [*expected_operators, "Softmax"]
    found = fast_operators(after.model, X86)
    assert sum(found.get(each, 0) for each in INTEGERS) == 1
    assert not {"Gemm", "FusedGemm", "MatMul"} & set(found)
    x = inputs(*([40] + [int(each) for each in shape.split(", ")[1:]]))
    expected = run(before.model, x)
    for optimisation in ("off", "all"):
        np.testing.assert_allclose(run(after.model, x, optimisation=optimisation), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        ('y = MatMul (b, "z.weight")', "it goes to codes"),
        ("t = Neg (b) y = Mul (b, t)", "two readers"),
        ("y = Relu (a)", "an output"),
    ],
)
def test_an_activation_that_is_no_obstacle_stays(behind: str, reason: str) -> None:
    text = f"""net (float[n, 4] x, float[4, 6] "a.weight", float[6, 6] "z.weight") => (float[n, 6] y)
    {{ a = MatMul (x, "a.weight") {"" if behind == "y = Relu (a)" else "b = Relu (a)"} {behind} }}"""
    layers = [layer("a", "MatMul", COLUMNS), layer("z", "MatMul", COLUMNS)]
    if "z.weight" not in behind:
        text, layers = text.replace(', float[6, 6] "z.weight"', ""), layers[:1]
    _, after = lowered(build(text, layers), 8, X86, approximations=EXACT)
    assert "Max" not in operators(after.model), reason
