"""Looking does not change the result: outputs, codes and fused operators with taps and without."""

from __future__ import annotations

import numpy as np
import pytest

from bitswitch_deploy.diagnosis.compared_graphs import OverriddenReference, TappedCodes, TappedReference
from bitswitch_deploy.diagnosis.cuts import find_cuts, input_tensors
from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession
from bitswitch_deploy.engines.optimized_operators import optimized_operators
from bitswitch_deploy.engines.reference import ReferenceSession
from tests.diagnosis.cases import digits, make_case
from tests.networks.assignments import MIXED


@pytest.mark.parametrize("bits", [8, 4, 2, MIXED])
def test_codes_are_seen_where_operators_are_fused(bits: int) -> None:
    case = make_case(digits(16), "x86-cpu", bits)
    model, options = case.lowered.model, dict(case.target.engine.session)
    cut = find_cuts(case.canonical, model, case.network.master.spec.layers)
    names = (*input_tensors(case.canonical), *(each.result for each in cut.added))
    tapped = TappedCodes(model, names, optimisation="all", session_options=options)
    plain = OnnxRuntimeSession(model.SerializeToString(), optimisation="all", threads=1, session_options=options)
    output, values = tapped.run(case.network.x)
    np.testing.assert_array_equal(output, plain.run(case.network.x))
    assert values.keys() == set(names)
    # what is seen is transposed back from the layout of the kernels; nothing else is added or falls apart
    before, after = (
        dict(optimized_operators(each.SerializeToString(), session_options=options)) for each in (model, tapped.model)
    )
    assert before["QLinearConv"] >= 7
    assert {**after, "Transpose": 0} == {**before, "Transpose": 0}


def test_the_reference_is_the_canonical_graph() -> None:
    case = make_case(digits(16), "x86-cpu", 4)
    names = tuple(input_tensors(case.canonical))
    results = TappedReference(case.canonical.model, names).run(case.network.x)
    expected = ReferenceSession(case.canonical.model.SerializeToString()).run(case.network.x)
    np.testing.assert_array_equal(results["logits"], expected)
    overridden = OverriddenReference(case.canonical.model, names)
    np.testing.assert_array_equal(overridden.run(case.network.x, {}), expected)
    last = names[-1]
    np.testing.assert_array_equal(overridden.run(case.network.x, {last: results[last]}), expected)
    assert not np.array_equal(overridden.run(case.network.x, {last: 2 * results[last]}), expected)


def test_taps_change_what_runs_where_they_tear_operators_apart() -> None:
    """The check above can fail: a float tensor between a convolution and its codes is not there after fusion."""
    case = make_case(digits(16), "x86-cpu", 4)
    options = dict(case.target.engine.session)
    model = type(case.lowered.model)()
    model.CopyFrom(case.lowered.model)
    model.graph.output.add().name = "getitem_3"
    torn = dict(optimized_operators(model.SerializeToString(), session_options=options))
    whole = dict(optimized_operators(case.lowered.model.SerializeToString(), session_options=options))
    assert torn["QLinearConv"] < whole["QLinearConv"]
