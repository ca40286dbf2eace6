"""QuantizeBias without ROUNDED_BIAS: exact at every width, in float where need be; Gemms with float output."""

from __future__ import annotations

import numpy as np
import pytest

from bitswitch_deploy.lowering.approximation import EXACT, USUAL, Approximation
from bitswitch_deploy.master.spec import Operator
from tests.graph.masters import build, layer
from tests.graph.running import operators, run
from tests.lowering.lowered import fast_operators, lowered
from tests.lowering.test_quantize_bias import (
    CASES,
    COLUMNS,
    CONFESSED,
    PER_CHANNEL,
    RELU,
    X86,
    codes_of_both,
    inputs,
    network,
)


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("case", CASES)
def test_without_rounding_every_code_is_kept(case: str, bits: int) -> None:
    """A layer that has no exact bias runs in float, its bias subtracted behind it."""
    x = inputs(*CASES[case].shape)
    expected, found, after = codes_of_both(CASES[case].master(bits), bits, X86, x, approximations=EXACT)
    assert after.exact
    np.testing.assert_array_equal(found, expected)
    kept = [
        change.where for change in after.changes if change.what == "run in float: no int32 bias keeps all their codes"
    ]
    assert kept in ([], ["1 of 1 layers"])
    assert ("Sub" in operators(after.model)) is bool(kept)
    # the first layer is the only one that can run in integers, and does, if onnxruntime takes up what is behind it
    if CASES[case].operator == "Conv" and case not in ("relu, signed", "clip, bounds not constant"):
        assert fast_operators(after.model, X86).get("QLinearConv", 0) == 1 - len(kept)


@pytest.mark.parametrize("bits", [7, 5, 4, 3, 2])
@pytest.mark.parametrize("case", ["relu", "no relu", "signed", "transposed", "gemm", "matmul and add"])
def test_without_rounding_at_every_other_width(case: str, bits: int) -> None:
    x = inputs(*CASES[case].shape)
    expected, found, after = codes_of_both(CASES[case].master(bits), bits, X86, x, approximations=EXACT)
    assert after.exact
    np.testing.assert_array_equal(found, expected)
    # below 5 bits there is an exact bias, and no reason to run in float
    assert bits > 4 or "Sub" not in operators(after.model)


def test_a_layer_in_float_keeps_the_codes_of_its_input() -> None:
    """Finer steps would be of no use to it."""
    _, after = lowered(CASES["relu"].master(8), 8, X86, approximations=EXACT)
    assert not [node for node in after.model.graph.node if ".fine/" in node.name]
    assert "Sub" in operators(after.model)
    assert fast_operators(after.model, X86).get("QLinearConv") is None


@pytest.mark.parametrize("rank", [1, 3])
def test_bias_behind_a_float_convolution_of_another_rank(rank: int) -> None:
    """[channels] broadcasts along the second axis of the output, whatever comes behind it."""
    size = ", ".join(["5"] * rank)
    text = network(RELU, weight=f"6, 4, {', '.join(['3'] * rank)}", data=f"n, 4, {size}")
    text = text.replace("6, 6, 1, 1", f"6, 6{', 1' * rank}").replace(
        "n, 6, h, w", f"n, 6{''.join(', ' + c for c in 'abc'[:rank])}"
    )
    eye = (np.eye(6) * 64).reshape(6, 6, *[1] * rank)
    layers = (layer("a", "Conv", PER_CHANNEL), layer("z"))
    master = build(text, layers, tensors={"z.weight": eye, "z.input.scale": [0.02] * 4})
    x = inputs(40, 4, *[5] * rank)
    for approximations in (EXACT, USUAL):
        expected, found, after = codes_of_both(master, 8, X86, x, approximations=approximations)
        assert after.exact is (approximations is EXACT)
        if after.exact:
            np.testing.assert_array_equal(found, expected)


CANNOT_BE_SUBTRACTED = ("Gemm with alpha or beta", "it is computed in the graph")


@pytest.mark.parametrize("reason", CONFESSED)
def test_without_rounding_these_run_in_float_or_confess(reason: str) -> None:
    case = CONFESSED[reason]
    last: Operator = "MatMul" if "MatMul (s" in case.text else "Conv"
    master = build(case.text, (layer("a", case.operator, case.granularity), layer("z", last)))
    before, after = lowered(master, 4, X86, approximations=EXACT)
    assert after.exact is (reason not in CANNOT_BE_SUBTRACTED)
    if after.exact:
        x = inputs(*case.shape)
        np.testing.assert_allclose(run(after.model, x, optimisation="all"), run(before.model, x), rtol=1e-5, atol=1e-5)


SHARED_TEXTS = {
    "Gemm": 'm = Gemm (x, "a.weight", "a.bias") r = Sigmoid (m) k = Gemm (r, "a.weight", "a.bias") y = Sigmoid (k)',
    "MatMul": 'm = MatMul (x, "a.weight") l = Add (m, "a.bias") r = Relu (l) k = MatMul (r, "a.weight")'
    ' s = Add (k, "a.bias") y = Sigmoid (s)',
}


@pytest.mark.parametrize("approximations", [EXACT, USUAL], ids=["exact", "usual"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("operator", SHARED_TEXTS)
def test_one_layer_at_two_places_with_its_bias_behind_each(
    operator: Operator, bits: int, approximations: frozenset[Approximation]
) -> None:
    parameters = 'float[4, 4] "a.weight", float[4] "a.bias"'
    text = f"net (float[n, 4] x, {parameters}) => (float[n, 4] y) {{ {SHARED_TEXTS[operator]} }}"
    before, after = lowered(build(text, (layer("a", operator),)), bits, X86, approximations=approximations)
    x = inputs(300, 4)
    expected = run(before.model, x)
    np.testing.assert_allclose(run(after.model, x), expected, rtol=1e-5)
    if after.exact:
        np.testing.assert_allclose(run(after.model, x, optimisation="all"), expected, rtol=1e-5)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize(
    ("head", "bias"),
    [
        ('Gemm (x, "a.weight", "a.bias")', "6"),
        ('Gemm (x, "a.weight", "a.bias")', "1, 6"),
        ('Gemm (x, "a.weight", "a.bias")', "1"),
        ('Gemm <alpha = 0.5> (x, "a.weight", "a.bias")', "6"),
    ],
)
def test_a_gemm_with_float_output_runs_in_integers(head: str, bias: str, bits: int) -> None:
    text = f'net (float[n, 4] x, float[4, 6] "a.weight", float[{bias}] "a.bias") => (float[n, 6] y) {{ y = {head} }}'
    before, after = lowered(build(text, (layer("a", "Gemm", COLUMNS),)), bits, X86, approximations=EXACT)
    assert after.exact
    found = fast_operators(after.model, X86)
    assert "Gemm" not in found
    assert found.get("QGemm", 0) + found.get("MatMulIntegerToFloat", 0) == 1
    x = inputs(300, 4)
    expected = run(before.model, x)
    for optimisation in ("off", "all"):
        np.testing.assert_allclose(run(after.model, x, optimisation=optimisation), expected, rtol=1e-5, atol=1e-6)
