"""Engines of the networks, really built: TensorRT for RTX needs no GPU for that.

Jetson graphs are built with it, too: its parser and builder share their code with the TensorRT on the board.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bitswitch_deploy.catalogue import load_target
from bitswitch_deploy.engines.shape_range import batch_profile
from bitswitch_deploy.engines.tensorrt_config import BuildSettings
from bitswitch_deploy.engines.tensorrt_engine import build_engine
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.lowering.lower import lower
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.prepare import PrepareOptions
from tests.networks.assignments import MIXED, assignment
from tests.networks.transformers import VisionTransformer
from tests.networks.zoo import ZOO, Entry, Sample, make

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")

TARGETS = ("jetson-orin-nano", "jetson-thor", "rtx")
# each kind of network at every width
KINDS = ("resnet18", "resnet20", "mobilenet-v2", "vit", "decoder")
EVERYWHERE = [(name, bits) for name in KINDS for bits in (8, 6, 4, 2, MIXED)]
OTHERS = [(name, (4, 8)[index % 2]) for index, name in enumerate(ZOO) if name not in KINDS]


def build(sample: Sample, widths: WidthAssignment, target_name: str) -> None:
    target = load_target(target_name).target
    lowered = lower(canonical_graph(sample.master, widths), target, ranges={})
    settings = BuildSettings(
        compute_capabilities=target.engine.compute_capabilities or ("SM86",),
        profile=batch_profile(sample.master.spec.inputs, batch=(1, 2, 4)),
    )
    engine = build_engine(lowered.model.SerializeToString(), module="tensorrt_rtx", settings=settings)
    assert len(engine.plan) > 10_000
    assert engine.warnings == ()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("name", "bits"), EVERYWHERE, ids=lambda each: each or "mixed")
def test_every_width(sample: Callable[[str], Sample], name: str, bits: int, target: str) -> None:
    build(sample(name), assignment(sample(name).master, bits), target)


@pytest.mark.parametrize(("name", "bits"), OTHERS)
def test_every_network(sample: Callable[[str], Sample], name: str, bits: int) -> None:
    for target in TARGETS:
        build(sample(name), WidthAssignment(default=bits), target)


def test_one_scale_for_packed_weights() -> None:
    """Int4 weights with a single scale, behind activations of rank 3: the builder needs one for each channel."""
    options = PrepareOptions(widths=(8, 4), granularity="per_tensor")
    made = make(Entry(build=lambda: VisionTransformer(explicit=False), shape=(3, 16, 16), options=options))
    build(made, WidthAssignment(default=4), "rtx")
