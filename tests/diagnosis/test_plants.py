"""Planted faults: each one is found, in its layer, and named first. Graphs without one raise no alarm."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest

from bitswitch_deploy.diagnosis.distance import TensorError
from bitswitch_deploy.diagnosis.lowered_comparison import LoweredComparison, Runtime, _by_effect
from bitswitch_deploy.diagnosis.lowering_errors import CutError
from bitswitch_deploy.diagnosis.output_error import OutputError
from bitswitch_deploy.diagnosis.suspects import faults
from bitswitch_deploy.lowering.approximation import USUAL, Approximation
from tests.diagnosis.cases import Case, Network, digits, make_case, of_zoo
from tests.diagnosis.plants import KINDS, plant
from tests.graph.masters import build, layer
from tests.networks.assignments import MIXED

# a target of onnxruntime and one of TensorRT: other containers, folded BatchNormalization or not, other residual codes
EVERY = [(target, bits) for target in ("x86-cpu", "rtx") for bits in (8, 6, 4, 2, MIXED)]
CASES = {"digits": EVERY, "resnet20": [("x86-cpu", 8), ("x86-cpu", 2), ("rtx", 4), ("x86-cpu", MIXED)]}
PLANTS = {"digits": 50, "resnet20": 8}


@pytest.fixture(scope="module")
def case() -> Callable[[str, str, int], Case]:
    network: Callable[[str], Network] = cache(lambda name: digits() if name == "digits" else of_zoo(name))
    return cache(lambda name, target, bits: make_case(network(name), target, bits))


@pytest.mark.parametrize("name", PLANTS)
def test_every_plant_is_found(case: Callable[[str, str, int], Case], name: str) -> None:
    rng = np.random.default_rng(20)
    kinds, widths, harmless = Counter[str](), Counter[int](), 0
    cases = _in_turns(CASES[name], rng)
    while kinds.total() < PLANTS[name]:
        target, bits = next(cases)
        planted_in = case(name, target, bits)
        # by turns, so that none of them is rare
        planted = plant(KINDS[kinds.total() % 4], planted_in.lowered.model, planted_in.canonical.plan, rng)
        if planted is None:
            continue
        parts = planted_in.parts(planted.model)
        if parts == planted_in.parts(planted_in.lowered.model):
            # the same function, so no fault: codes that are never reached (most that are read as int8 stay below 128),
            # a scale whose codes stay where they were
            harmless += 1
            continue
        kinds[planted.kind] += 1
        widths[bits] += 1
        found = faults(parts)
        assert found, (target, bits, planted.layer, planted.what)
        assert found[0].layer == planted.layer, (target, bits, planted.what, found)
    assert harmless < PLANTS[name]
    assert widths.keys() == {bits for _, bits in CASES[name]}
    assert min(kinds[kind] for kind in KINDS) >= PLANTS[name] // 4


def _in_turns(cases: list[tuple[str, int]], rng: np.random.Generator) -> Iterator[tuple[str, int]]:
    """Each case once, in an order by chance, and again."""
    while True:
        yield from (cases[index] for index in rng.permutation(len(cases)))


@pytest.mark.parametrize("bits", [8, 6, 4, 2, MIXED])
@pytest.mark.parametrize("target", ["x86-cpu", "jetson-xavier-nx@4.6", "rtx"])
def test_no_alarm_without_a_fault(case: Callable[[str, str, int], Case], target: str, bits: int) -> None:
    healthy = case("digits", target, bits)
    assert faults(healthy.parts(healthy.lowered.model)) == ()


@pytest.mark.parametrize("bits", [8, 2])
def test_no_alarm_over_what_the_user_asked_for(bits: int) -> None:
    """Float layers in codes, activations in finer steps than trained: approximate, and said so."""
    healthy = make_case(digits(), "x86-cpu", bits, approximations=frozenset(Approximation))
    parts = healthy.parts(healthy.lowered.model)
    assert faults(parts) == ()
    texts = {part.what for part in parts if part.verdict == "approximate"}
    assert "float weights in 8-bit codes that were not trained" in texts
    assert any(text.startswith("finer steps than trained") for text in texts)


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_no_alarm_where_a_layer_reads_the_codes_of_its_branch(bits: int) -> None:
    """Finer steps in a part of the trained range: at 8 bits no branch of these digits reaches its end."""
    healthy = make_case(digits(), "x86-cpu", bits, approximations=USUAL | {Approximation.FULL_RESOLUTION})
    parts = healthy.parts(healthy.lowered.model)
    assert faults(parts) == ()
    shared = [part for part in parts if "those of the branch in front" in part.what]
    assert shared or bits != 8


def test_no_alarm_where_a_clip_goes_into_codes() -> None:
    """A lowering may drop a Relu6 in front of residual codes: then its output is there in codes only."""
    healthy = make_case(of_zoo("mobilenet-v2"), "x86-cpu", 4)
    assert "FoldClips" in healthy.lowered.passes
    assert faults(healthy.parts(healthy.lowered.model)) == ()


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_no_alarm_where_operators_between_layers_have_codes(bits: int) -> None:
    """HardSwish taken apart, gates in codes: what the lowering adds between layers is known as such, and compared."""
    healthy = make_case(of_zoo("excite"), "x86-cpu", bits)
    assert Approximation.ELEMENTWISE_CODES in healthy.lowered.approximations
    parts = healthy.parts(healthy.lowered.model)
    assert faults(parts) == ()
    compared = {node.output[0] for node in healthy.canonical.model.graph.node if node.op_type == "HardSwish"}
    assert compared
    assert compared <= {part.tensor for part in parts}


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize(("target", "bits"), [("rtx", 8), ("x86-cpu", 2), ("x86-cpu", 8)])
def test_no_alarm_of_few_samples(target: str, bits: int, n: int) -> None:
    """Of which the values that a quantizer gives lie several steps apart, and deviations are hardly known."""
    text = """net (float[n, 12] x, float[12, 8] "a.weight", float[8] "a.bias", float[8, 8] "b.weight",
                   float[8] "b.bias", float[8, 5] "c.weight", float[5] "c.bias") => (float[n, 5] y) {
        h = Gemm (x, "a.weight", "a.bias") r = Relu (h)
        g = Gemm (r, "b.weight", "b.bias") s = Relu (g)
        y = Gemm (s, "c.weight", "c.bias")
    }"""
    layers = [layer("a", "Gemm", activation="signed"), layer("b", "Gemm"), layer("c", "Gemm")]
    master = build(text, layers)
    for seed in range(6):
        x = np.random.default_rng(seed).normal(size=(n, 12)).astype(np.float32)
        healthy = make_case(Network(master=master, x=x, y=None, calibration=x), target, bits)
        assert faults(healthy.parts(healthy.lowered.model)) == ()


def test_a_part_of_another_shape_is_a_fault() -> None:
    healthy = make_case(of_zoo("resnet20"), "x86-cpu", 4)
    model = onnx.ModelProto()
    model.CopyFrom(healthy.lowered.model)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    (pads,) = [each for each in convolutions[3].attribute if each.name == "pads"]
    pads.ints[:] = [0, 0, 0, 0]
    found = faults(healthy.parts(model))
    assert found[0].what.startswith("its shape is [12, 16, 30, 30] instead of [12, 16, 32, 32]")


def test_a_network_goes_on_behind_a_part_of_another_shape() -> None:
    text = """net (float[n, 4, 8, 8] x, float[8, 4, 3, 3] "a.weight", float[8, 8, 3, 3] "b.weight",
                   float[8, 5] "c.weight") => (float[n, 5] y) {
        h = Conv <pads = [1, 1, 1, 1]> (x, "a.weight") r = Relu (h)
        g = Conv <pads = [1, 1, 1, 1]> (r, "b.weight") s = Relu (g)
        p = GlobalAveragePool (s) f = Flatten (p) y = Gemm (f, "c.weight")
    }"""
    layers = [layer("a", activation="signed"), layer("b"), layer("c", "Gemm")]
    x = np.random.default_rng(0).normal(size=(16, 4, 8, 8)).astype(np.float32)
    healthy = make_case(Network(master=build(text, layers), x=x, y=None, calibration=x), "x86-cpu", 4)
    model = onnx.ModelProto()
    model.CopyFrom(healthy.lowered.model)
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    (pads,) = [each for each in first.attribute if each.name == "pads"]
    pads.ints[:] = [0, 0, 0, 0]
    runtime = Runtime(optimisation="off", session_options={})
    comparison = LoweredComparison(healthy.network.master, healthy.canonical, model, runtime=runtime)
    comparison.add(x, None)
    result = comparison.result()
    misshapen = [each.part.tensor for each in result.parts if each.part.what.startswith("its shape is [16, 8, 6, 6]")]
    assert misshapen == ["h"]
    assert result.lowered.n == 16


def test_what_no_output_shows_is_no_fault() -> None:
    """A bias that int32 moves within one code of its reader, in a channel that hardly varies."""
    error = TensorError(sqnr_db=30.0, cosine=1.0)
    part = CutError(
        tensor="h", part="layer", layer="a", operators=(), verdict="fault", error=error, what="the bias is off"
    )
    seen = OutputError(n=8, top1_percent=None, agreement_percent=100.0, sqnr_db=60.0, cosine=1.0)
    assert _by_effect(part, seen) == _by_effect(part, None) == part
    unseen = _by_effect(part, replace(seen, sqnr_db=math.inf))
    assert (unseen.verdict, unseen.what) == ("approximate", "the bias is off; nothing of it reaches the output")
