"""One session for every question: with all layers on it is the canonical graph, with some on a mixture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitswitch_deploy.diagnosis.switchable_graph import SwitchableGraph
from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.tensors import WidthAssignment
from tests.diagnosis.cases import Array, digits, of_zoo
from tests.networks.assignments import MIXED, assignment

NETWORK = digits(16)


def canonical_output(widths: WidthAssignment) -> Array:
    model = canonical_graph(NETWORK.master, widths).model
    return ReferenceSession(model.SerializeToString()).run(NETWORK.x)


@pytest.fixture(scope="module")
def graph() -> SwitchableGraph:
    return SwitchableGraph(NETWORK.master)


@pytest.mark.parametrize("bits", [8, 7, 6, 4, 3, 2, MIXED])
def test_all_on_is_the_canonical_graph(graph: SwitchableGraph, bits: int) -> None:
    widths = assignment(NETWORK.master, bits)
    np.testing.assert_array_equal(graph.run(NETWORK.x, widths, graph.layers), canonical_output(widths))


def test_layers_are_in_running_order(graph: SwitchableGraph) -> None:
    names = [layer.name for layer in NETWORK.master.spec.layers if not layer.pinned]
    assert sorted(graph.layers) == sorted(names)
    assert graph.layers.index("blocks.0.conv1") < graph.layers.index("blocks.0.conv2")
    assert graph.layers.index("blocks.0.conv2") < graph.layers.index("blocks.2.conv1")


def test_in_float_no_input_is_rounded(graph: SwitchableGraph) -> None:
    """Coarser input scales do not matter where nothing is quantized, and do where one layer is."""
    master = NETWORK.master
    name = "blocks.1.conv1.input.scale"
    coarse = {**master.tensors, name: np.asarray(master.tensors[name]) * np.float32(3)}
    other = SwitchableGraph(replace(master, tensors=coarse))
    widths = WidthAssignment(default=4)
    np.testing.assert_array_equal(graph.run(NETWORK.x, widths, ()), other.run(NETWORK.x, widths, ()))
    one = ("blocks.1.conv1",)
    assert not np.array_equal(graph.run(NETWORK.x, widths, one), other.run(NETWORK.x, widths, one))
    two = ("blocks.0.conv1",)
    np.testing.assert_array_equal(graph.run(NETWORK.x, widths, two), other.run(NETWORK.x, widths, two))


def test_signed_inputs_and_layers_without_batchnorm() -> None:
    network = of_zoo("mlp")
    graph = SwitchableGraph(network.master)
    for bits in (8, 2):
        widths = WidthAssignment(default=bits)
        model = canonical_graph(network.master, widths).model
        expected = ReferenceSession(model.SerializeToString()).run(network.x)
        np.testing.assert_array_equal(graph.run(network.x, widths, graph.layers), expected)
