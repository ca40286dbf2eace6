"""Planted faults: each one is found, in its layer, and named first. Graphs without one raise no alarm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from bitswitch_deploy.diagnosis.suspects import faults
from bitswitch_deploy.lowering.approximation import Approximation
from tests.diagnosis.cases import Case, Network, digits, make_case, of_zoo
from tests.diagnosis.plants import KINDS, plant
from tests.networks.assignments import MIXED

# a target of onnxruntime and one of TensorRT: other containers, folded BatchNormalization or not, other residual codes
CASES = [(target, bits) for target in ("x86-cpu", "rtx") for bits in (8, 6, 4, 2, MIXED)]
PLANTS = {"digits": 60, "resnet20": 20}


@pytest.fixture(scope="module")
def case() -> Callable[[str, str, int], Case]:
    network: Callable[[str], Network] = cache(lambda name: digits() if name == "digits" else of_zoo(name))
    return cache(lambda name, target, bits: make_case(network(name), target, bits))


@pytest.mark.parametrize("name", PLANTS)
def test_every_plant_is_found(case: Callable[[str, str, int], Case], name: str) -> None:
    rng = np.random.default_rng(20)
    kinds, widths, harmless = Counter[str](), Counter[int](), 0
    while kinds.total() < PLANTS[name]:
        target, bits = CASES[int(rng.integers(len(CASES)))]
        planted_in = case(name, target, bits)
        # by turns, so that none of them is rare
        planted = plant(KINDS[kinds.total() % 4], planted_in.lowered.model, planted_in.canonical.plan, rng)
        if planted is None:
            continue
        parts = planted_in.parts(planted.model)
        if parts == planted_in.parts(planted_in.lowered.model):
            # codes that are never reached, a scale whose codes stay where they were: the same function, so no fault
            harmless += 1
            continue
        kinds[planted.kind] += 1
        widths[bits] += 1
        found = faults(parts)
        assert found, (target, bits, planted.layer, planted.what)
        assert found[0].layer == planted.layer, (target, bits, planted.what, found)
    assert harmless < PLANTS[name] / 2
    assert len(widths) == 5
    assert min(kinds[kind] for kind in KINDS) >= PLANTS[name] // 4


@pytest.mark.parametrize("bits", [8, 6, 4, 2, MIXED])
@pytest.mark.parametrize("target", ["x86-cpu", "arm64-cpu", "jetson", "jetson-xavier-nx@4.6", "rtx"])
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


@pytest.mark.parametrize("name", ["mobilenet-v2", "option-a", "vit"])
def test_no_alarm_on_other_networks(name: str) -> None:
    network = of_zoo(name)
    for target in ("x86-cpu", "rtx"):
        healthy = make_case(network, target, 4)
        assert faults(healthy.parts(healthy.lowered.model)) == (), target
