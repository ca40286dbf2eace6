"""Residual branches in calibrated 8-bit codes: what was trained stays as it was, and the rest costs little."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bitswitch_deploy.graph.canonical import CanonicalGraph, canonical_graph
from bitswitch_deploy.lowering.lower import calibrated_tensors, lower
from bitswitch_deploy.lowering.ranges import RangeObserver, TensorRange
from bitswitch_deploy.target import Target
from tests.networks.assignments import MIXED, assignment, graph_forms
from tests.networks.comparing import Array, wrong_weights
from tests.networks.forced_codes import canonical_run, float_tensors, forced_run
from tests.networks.zoo import Sample, inputs

FORMS = [target for target in graph_forms().values() if target.engine.name != "tensorrt"]
# Tensors with codes: both inputs and the output of each Add, or its skip input only.
POINTS = {"resnet18": (20, 8), "resnet20": (19, 9), "pre-activation": (6, 2)}


def observed(canonical: CanonicalGraph, target: Target, x: Array) -> dict[str, TensorRange]:
    ranges = {}
    for name, values in float_tensors(canonical.model, calibrated_tensors(canonical, target), x).items():
        observer = RangeObserver()
        observer.observe(values)
        ranges[name] = observer.result()
    return ranges


@pytest.mark.parametrize("bits", [8, 2, MIXED])
@pytest.mark.parametrize("name", POINTS)
def test_little_is_lost(sample: Callable[[str], Sample], name: str, bits: int) -> None:
    """With the trained codes given, a residual branch moves outputs by the 8-bit rounding of one block."""
    made = sample(name)
    canonical = canonical_graph(made.master, assignment(made.master, bits))
    x = inputs(made.entry, 24, seed=7).numpy()
    run = canonical_run(canonical.model, x)
    for target in FORMS:
        ranges = observed(canonical, target, inputs(made.entry, 64, seed=5).numpy())
        assert len(ranges) == POINTS[name][0 if target.quantization.residual == "both_inputs" else 1]
        lowered = lower(canonical, target, ranges=ranges)
        assert "QuantizeResidual" in lowered.passes
        assert not lowered.exact
        assert wrong_weights(lowered.model, made.master, canonical.plan.assignment) == []
        outputs = []
        for optimisation in ("off", "all") if target.engine.name == "onnxruntime" else ("off",):
            output, ties = forced_run(
                lowered.model, x, run, optimisation=optimisation, session_options=dict(target.engine.session)
            )
            outputs.append(output)
            moved = sum(each.differing for each in ties.values()) / sum(each.compared for each in ties.values())
            assert 0 < moved < 0.1
        norm = np.linalg.norm(run.output)
        assert 0 < np.linalg.norm(outputs[0] - run.output) / norm < 0.1
        assert np.linalg.norm(outputs[0] - outputs[-1]) / norm < 5e-3
