"""Lowered graphs beside their canonical graphs: the bundled digits, and networks of the zoo, calibrated only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from bitswitch_deploy.catalogue import bundled_master, load_target
from bitswitch_deploy.diagnosis.compared_graphs import TappedReference, Tensors
from bitswitch_deploy.diagnosis.lowered_parts import LoweredParts
from bitswitch_deploy.diagnosis.lowering_errors import CutError
from bitswitch_deploy.graph.canonical import CanonicalGraph, canonical_graph
from bitswitch_deploy.lowering.approximation import USUAL, Approximation
from bitswitch_deploy.lowering.lower import LoweredGraph, calibrated_tensors, lower
from bitswitch_deploy.lowering.ranges import RangeObserver
from bitswitch_deploy.master import Master, read_master
from bitswitch_deploy.pipeline.inputs import load_export_data
from bitswitch_deploy.target import Target
from tests.networks.assignments import assignment
from tests.networks.zoo import ZOO, inputs, make

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A master, samples to compare on, samples to calibrate on."""

    master: Master
    x: Array
    y: Array | None
    calibration: Array


def digits(n: int = 48) -> Network:
    master = read_master(bundled_master())
    data = load_export_data(master, data=None, calibration=None, samples=n)
    assert data.test is not None
    assert data.calibration is not None
    x, y = next(data.test.batches(n))
    return Network(master=master, x=x, y=y, calibration=next(data.calibration.batches(256))[0])


def of_zoo(name: str, n: int = 12) -> Network:
    made = make(ZOO[name])
    x, calibration = (inputs(made.entry, size, seed=seed).numpy() for size, seed in ((n, 7), (48, 5)))
    return Network(master=made.master, x=x, y=None, calibration=calibration)


@dataclass(slots=True, kw_only=True)
class Case:
    """A network at a width for a target, and what its canonical graph computes, once."""

    network: Network
    target: Target
    canonical: CanonicalGraph
    lowered: LoweredGraph
    _reference: Tensors = field(default_factory=dict)

    def parts(self, model: onnx.ModelProto) -> tuple[CutError, ...]:
        """Every part of `model`, the lowered graph or one like it."""
        parts = LoweredParts(self.network.master, self.canonical, model)
        if not self._reference:
            self._reference = TappedReference(self.canonical.model, parts.reference_tensors).run(self.network.x)
        parts.add(self.network.x, self._reference)
        return parts.result()


def make_case(
    network: Network,
    target: str,
    bits: int,
    *,
    with_residual_codes: bool = True,
    approximations: frozenset[Approximation] = USUAL,
) -> Case:
    """bits: of all layers, or `MIXED`."""
    profile = load_target(target).target
    canonical = canonical_graph(network.master, assignment(network.master, bits))
    names = calibrated_tensors(canonical, profile, approximations) if with_residual_codes else ()
    ranges = {}
    if names:
        source = canonical.model.graph.input[0].name
        seen = TappedReference(canonical.model, tuple(name for name in names if name != source)).run(
            network.calibration
        )
        for name in names:
            observer = RangeObserver()
            observer.observe(seen.get(name, network.calibration))
            ranges[name] = observer.result()
    lowered = lower(canonical, profile, ranges=ranges, approximations=approximations)
    return Case(network=network, target=profile, canonical=canonical, lowered=lowered)
