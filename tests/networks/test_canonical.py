"""Contracts 1 and 2: master and canonical graph of each network against the torch network they come from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch

from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.master_export import TrainingRecord, build_master
from bitswitch_deploy.training.prepare import set_width
from tests.networks.assignments import MIXED, assignment
from tests.networks.comparing import Array, relative_errors, wrong_weights
from tests.networks.forced_codes import TIE, Run, Ties, canonical_run, forced_torch
from tests.networks.zoo import ZOO, Sample, inputs

SAME = 1e-4


def torch_outputs(sample: Sample, widths: WidthAssignment, x: torch.Tensor, run: Run | None) -> tuple[Array, Ties]:
    """Of the torch network, with its own codes (`run` None) or with those of the canonical graph."""
    set_width(sample.network.model, widths)
    with torch.no_grad():
        if run is None:
            return sample.network.model(x).numpy(), Ties()
        with forced_torch(sample.network, run) as ties:
            return sample.network.model(x).numpy(), ties


@pytest.mark.parametrize("bits", [8, 6, 4, 2, MIXED])
@pytest.mark.parametrize("name", ZOO)
def test_same_outputs_as_torch(sample: Callable[[str], Sample], name: str, bits: int) -> None:
    """With equal codes everywhere all outputs agree, and codes that differ lie on a tie; so each sample whose free
    output differs is traced: it has such a code.
    """
    made = sample(name)
    widths, x = assignment(made.master, bits), inputs(made.entry, 32, seed=7)
    run = canonical_run(canonical_graph(made.master, widths).model, x.numpy())
    assert len(run.activations) == sum(layer.activation != "none" for layer in made.master.spec.layers)
    forced, ties = torch_outputs(made, widths, x, run)
    assert relative_errors(run.output, forced).max() < SAME
    assert ties.farthest < TIE
    assert ties.differing <= ties.compared * 1e-5
    free, _ = torch_outputs(made, widths, x, None)
    apart = np.flatnonzero(relative_errors(run.output, free) > SAME)
    assert set(apart.tolist()) <= ties.samples


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["resnet18", "option-a", "grouped", "decoder-groups", "vit", "vit-explicit"])
def test_any_batch_size(sample: Callable[[str], Sample], name: str, batch: int) -> None:
    """The example that the network was exported with had one sample."""
    made = sample(name)
    widths, x = WidthAssignment(default=4), inputs(made.entry, batch, seed=8)
    run = canonical_run(canonical_graph(made.master, widths).model, x.numpy())
    forced, ties = torch_outputs(made, widths, x, run)
    assert run.output.shape == forced.shape
    assert len(run.output) == batch
    assert relative_errors(run.output, forced).max() < SAME
    assert ties.farthest < TIE


@pytest.mark.parametrize("name", ZOO)
def test_codes_are_double_roundings_of_the_master(sample: Callable[[str], Sample], name: str) -> None:
    made = sample(name)
    for bits in (*made.master.spec.widths, MIXED):
        widths = assignment(made.master, bits)
        assert wrong_weights(canonical_graph(made.master, widths).model, made.master, widths) == []


@pytest.mark.parametrize("name", ZOO)
def test_master_holds_every_parameter_under_its_own_name(sample: Callable[[str], Sample], name: str) -> None:
    made = sample(name)
    spec = made.master.spec
    state = made.entry.build().state_dict()
    wanted = {key for key, value in state.items() if value.is_floating_point()}
    assert {layer.weight for layer in spec.layers} | {*spec.switchable, *spec.parameters} == wanted
    decided = {entry.name: entry.decision for entry in made.network.report}
    assert {layer.name for layer in spec.layers if not layer.pinned} == {
        path for path, decision in decided.items() if decision == "quantized"
    }
    # nothing but shapes, axes and the like is left inside of the graph
    constants = [onnx.numpy_helper.to_array(tensor) for tensor in made.master.skeleton.graph.initializer]
    assert sum(array.size for array in constants if array.dtype == np.float32) < 10


@pytest.mark.parametrize("name", ["excite", "densenet", "vit"])
def test_same_bytes_again(sample: Callable[[str], Sample], name: str) -> None:
    made = sample(name)
    again = build_master(made.network, (inputs(made.entry, 1, seed=1),), TrainingRecord())
    assert again.sha256 == made.master.sha256
    widths = assignment(made.master, MIXED)
    graphs = [canonical_graph(master, widths).model.SerializeToString() for master in (made.master, again)]
    assert graphs[0] == graphs[1]


def test_a_wrong_code_is_seen(sample: Callable[[str], Sample]) -> None:
    """The comparison itself: it notices one activation scale and one weight code that are off."""
    made = sample("mlp")
    widths, x = WidthAssignment(default=4), inputs(made.entry, 32, seed=7)
    model = canonical_graph(made.master, widths).model
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    scale = tensors["layers.3.input.scale"]
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(1.01), scale.name))
    _, ties = torch_outputs(made, widths, x, canonical_run(model, x.numpy()))
    assert ties.farthest > TIE
    model = canonical_graph(made.master, widths).model
    codes = next(tensor for tensor in model.graph.initializer if tensor.name == "layers.6.weight")
    changed = onnx.numpy_helper.to_array(codes).copy()
    changed[0, 0] += 1 if changed[0, 0] < 7 else -1
    codes.CopyFrom(onnx.numpy_helper.from_array(changed, codes.name))
    forced, ties = torch_outputs(made, widths, x, canonical_run(model, x.numpy()))
    assert relative_errors(ReferenceSession(model.SerializeToString()).run(x.numpy()), forced).max() > SAME
    assert ties.farthest < TIE
