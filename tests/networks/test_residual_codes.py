"""Residual branches in calibrated 8-bit codes: what was trained stays as it was, and the rest costs little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from bitswitch_deploy.graph.canonical import CanonicalGraph, canonical_graph
from bitswitch_deploy.lowering.approximation import USUAL, Approximation
from bitswitch_deploy.lowering.lower import calibrated_tensors, lower
from bitswitch_deploy.lowering.ranges import RangeObserver, TensorRange
from bitswitch_deploy.target import Target
from tests.lowering.lowered import fast_operators
from tests.networks.assignments import MIXED, assignment, graph_forms
from tests.networks.comparing import Array, wrong_weights
from tests.networks.forced_codes import canonical_run, float_tensors, forced_run
from tests.networks.zoo import Sample, inputs

FORMS = [target for target in graph_forms().values() if target.engine.name != "tensorrt"]
# Tensors with codes: both inputs and the output of each Add, or its skip input only.
POINTS = {
    "resnet18": (20, 8),
    "resnet20": (19, 9),
    "pre-activation": (6, 2),
    "densenet": (5, 0),
    "inception": (5, 0),
}


def observed(
    canonical: CanonicalGraph, target: Target, x: Array, approximations: frozenset[Approximation] = USUAL
) -> dict[str, TensorRange]:
    source = canonical.model.graph.input[0].name
    names = tuple(name for name in calibrated_tensors(canonical, target, approximations) if name != source)
    tensors = {**float_tensors(canonical.model, names, x), source: x}
    ranges = {}
    for name in calibrated_tensors(canonical, target, approximations):
        values = tensors[name]
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
        if not ranges:
            continue
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


@pytest.mark.parametrize("bits", [8, 6, 4, 2, MIXED])
@pytest.mark.parametrize("name", ["densenet", "inception", "excite", "grouped"])
def test_no_quantized_convolution_is_in_float(sample: Callable[[str], Sample], name: str, bits: int) -> None:
    """In front of a Concat, a SiLU, a HardSwish, pooling, or two layers with quantizers of their own."""
    made = sample(name)
    canonical = canonical_graph(made.master, assignment(made.master, bits))
    wanted = Counter(each.pinned for each in made.master.spec.layers if each.operator == "Conv")
    for target in FORMS:
        if target.engine.name == "onnxruntime":
            model = lower(
                canonical, target, ranges=observed(canonical, target, inputs(made.entry, 32, seed=5).numpy())
            ).model
            found = fast_operators(model, target)
            # the pooling behind the transition of the DenseNet takes the place of a convolution
            assert (found["QLinearConv"], found["Conv"]) == (wanted[False], wanted[True] + (name == "densenet"))


# Quantized convolutions, and those that take the place of shortcuts. At 8 bits some BatchNorms of the residual networks
# have a negative gain in a channel with a code of -128.
LAYERS = {"resnet18": (19, 0), "resnet20": (18, 2), "mobilenet-v2": (16, 0)}
INTEGER = {(name, bits): layers for name, layers in LAYERS.items() for bits in (8, 6, 4, 2)}


@pytest.mark.parametrize(("name", "bits"), INTEGER)
def test_nothing_in_float_between_the_first_and_the_last_layer(
    sample: Callable[[str], Sample], name: str, bits: int
) -> None:
    """Conversions in front and behind only; with every approximation not even those two layers are in float."""
    made = sample(name)
    canonical = canonical_graph(made.master, assignment(made.master, bits))
    convolutions = sum(INTEGER[name, bits])
    x = inputs(made.entry, 32, seed=5).numpy()
    for target in FORMS:
        if target.engine.name != "onnxruntime":
            continue
        for wanted in (USUAL, frozenset(Approximation)):
            pinned = Approximation.PINNED_LAYERS in wanted
            ranges = observed(canonical, target, x, wanted)
            model = lower(canonical, target, ranges=ranges, approximations=wanted).model
            found = fast_operators(model, target)
            assert found["QLinearConv"] == convolutions + pinned
            assert found.get("Conv", 0) == 1 - pinned
            assert found.get("QGemm", 0) == pinned
            # with the last layer in codes the pooling in front of it is, too, but for a mean that drops the dimensions
            pooled = pinned and name != "resnet20"
            assert (found["QuantizeLinear"], found.get("DequantizeLinear", 0)) == (1 + pinned - pooled, 1 - pooled)
            # an image whose convolution has stride 2 goes to blocks of pixels, another one gets a fourth channel
            deep = pinned and "DeepenInput" in target.lowering
            assert found["Transpose"] == 2 + (deep and name != "resnet20")
            assert not {"BitShift", "FusedConv", "Add", "MaxPool", "BatchNormalization", "Slice"} & found.keys()
            assert found.get("Pad", 0) <= (deep and name == "resnet20")
            # at most one operator on bytes for each layer's input, and one for each sum
            assert found.get("Clip", 0) + found["QLinearAdd"] <= 2 * convolutions
