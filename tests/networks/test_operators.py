"""Operators and forms that the larger networks do not have, each in a small network, on every form of graph."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.lowering.approximation import EXACT
from bitswitch_deploy.lowering.lower import lower
from bitswitch_deploy.target import Target
from bitswitch_deploy.tensors import Rounding, WidthAssignment
from bitswitch_deploy.training.prepare import PrepareOptions, set_width
from tests.networks.assignments import MIXED, assignment, graph_forms
from tests.networks.comparing import relative_errors, wrong_weights
from tests.networks.forced_codes import TIE, canonical_run, forced_run, forced_torch
from tests.networks.zoo import Entry, Sample, inputs, make

FORMS = graph_forms()


class ManyNorms(nn.Module):
    """GroupNorm, InstanceNorm, LayerNorm over three axes and over one, Mish."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.group = nn.GroupNorm(2, 8, eps=1e-3)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.layer = nn.LayerNorm([8, 8, 8])
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 8, bias=False)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.mish(self.group(self.stem(x)))
        x = F.relu(self.instance(self.conv1(x)))
        x = F.mish(self.layer(self.conv2(x)))
        x = self.last(self.conv3(x).permute(0, 2, 3, 1))
        return cast(Tensor, self.fc(F.relu(self.linear(x)).mean((1, 2))))


class SharedLayer(nn.Module):
    """One convolution and its BatchNorm at two places, on tensors of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.down(x))
        return cast(Tensor, self.fc(torch.cat([self.head(x).mean((2, 3)), self.head(y).mean((2, 3))], 1)))


class FreeParameters(nn.Module):
    """Parameters outside of layers: a kernel, a matrix that two operators read, a token that a layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3) * 0.1)
        self.matrix = nn.Parameter(torch.randn(8, 8) * 0.3)
        self.shift = nn.Parameter(torch.randn(8) * 0.1)
        self.token = nn.Parameter(torch.randn(1, 8))
        self.query = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(F.relu(self.conv(F.relu(self.stem(x)))), self.kernel, padding=1)).mean((2, 3))
        x = torch.addmm(self.shift, x, self.matrix, beta=2.0, alpha=0.5) + x @ self.matrix
        return cast(Tensor, self.fc(x * torch.sigmoid(self.query(self.token))))


class BatchNormPlaces(nn.Module):
    """BatchNorm without parameters, beside a shortcut, behind a Dropout, and called after another layer was called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8, affine=False)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8, eps=1e-2)
        self.left = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.right = nn.Conv2d(8, 8, 1)
        self.norm_left = nn.BatchNorm2d(8)
        self.norm_right = nn.BatchNorm2d(8)
        self.drop = nn.Dropout2d(0.3)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(F.relu(self.stem(x)))))
        x = self.conv2(x)
        x = x + F.relu(self.norm2(x))
        left, right = self.left(x), self.right(x)
        x = F.relu(self.norm_left(left)) + F.relu(self.norm_right(right))
        x = F.relu(self.norm3(self.drop(self.conv3(x))))
        return cast(Tensor, self.fc(x.mean((2, 3))))


class Plain(nn.Module):
    """Convolution, grouped convolution, fully connected layers of odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.linear = nn.Linear(16, 13)
        self.narrow = nn.Linear(13, 7, bias=False)
        self.fc = nn.Linear(7, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.norm(self.conv(F.relu(self.stem(x)))))))
        return cast(Tensor, self.fc(F.relu(self.narrow(torch.tanh(self.linear(x.mean((2, 3))))))))


OPTIONS = {
    "per-tensor": PrepareOptions(widths=(8, 4), granularity="per_tensor"),
    "half-even": PrepareOptions(widths=(8, 5, 3), rounding=Rounding.HALF_EVEN),
    "narrow-master": PrepareOptions(widths=(4, 3, 2), rounding=Rounding.HALF_EVEN, granularity="per_tensor"),
    "uint8": PrepareOptions(widths=(6, 2), activation_container="uint8"),
    "signed": PrepareOptions(widths=(8, 2), signed=(("conv", True), ("grouped", True))),
}
ENTRIES = {
    "many-norms": Entry(build=ManyNorms, shape=(3, 8, 8)),
    "shared-layer": Entry(build=SharedLayer, shape=(3, 8, 8)),
    "free-parameters": Entry(build=FreeParameters, shape=(3, 8, 8)),
    "batch-norms": Entry(build=BatchNormPlaces, shape=(3, 8, 8)),
    **{name: Entry(build=Plain, shape=(3, 8, 8), options=options) for name, options in OPTIONS.items()},
}


def check(made: Sample, widths: WidthAssignment) -> None:
    """Against torch, and lowered for every form of graph: as for the larger networks."""
    x = inputs(made.entry, 32, seed=7)
    canonical = canonical_graph(made.master, widths)
    run = canonical_run(canonical.model, x.numpy())
    set_width(made.network.model, widths)
    with torch.no_grad(), forced_torch(made.network, run) as ties:
        assert relative_errors(run.output, made.network.model(x).numpy()).max() < 1e-4
    assert ties.farthest < TIE
    for form, target in FORMS.items():
        lowered = lower(canonical, target, ranges={})
        assert wrong_weights(lowered.model, made.master, widths) == []
        output, moved = forced_run(lowered.model, x.numpy(), run, optimisation="off", session_options={})
        assert relative_errors(run.output, output).max() < 1e-4, form
        if lowered.exact:
            assert max(each.farthest for each in moved.values()) < TIE, form
        else:
            assert {change.by for change in lowered.changes if not change.exact} == {"QuantizeBias"}, form
        if target.engine.name == "onnxruntime":
            check_exact(made, widths, target)


def check_exact(made: Sample, widths: WidthAssignment, target: Target) -> None:
    """Without approximations only ties differ, also after all optimisations."""
    x = inputs(made.entry, 32, seed=7).numpy()
    canonical = canonical_graph(made.master, widths)
    lowered = lower(canonical, target, ranges={}, approximations=EXACT)
    assert lowered.exact, lowered.changes
    options = dict(target.engine.session)
    run = canonical_run(canonical.model, x)
    output, moved = forced_run(lowered.model, x, run, optimisation="all", session_options=options)
    assert relative_errors(run.output, output).max() < 1e-4
    assert max(each.farthest for each in moved.values()) < TIE


@pytest.mark.parametrize("name", ENTRIES)
def test_small_network(name: str) -> None:
    made = make(ENTRIES[name])
    for bits in (made.master.spec.widths[-1], MIXED):
        check(made, assignment(made.master, bits))


def test_weights_that_several_operators_read_are_parameters() -> None:
    """They stay as they are; a kernel that one operator reads is a pinned layer."""
    spec = make(ENTRIES["free-parameters"]).master.spec
    assert {layer.name: layer.pinned for layer in spec.layers} == {
        "stem": True,
        "conv": False,
        "kernel": True,
        "query": False,
        "fc": True,
    }
    assert {"matrix", "token"} <= set(spec.parameters)


def test_widths_between_the_trained_ones_run_everywhere() -> None:
    made = make(ENTRIES["half-even"])
    x = inputs(made.entry, 4, seed=7).numpy()
    for bits in (7, 6, 4, 2):
        widths = WidthAssignment(default=bits)
        canonical = canonical_graph(made.master, widths)
        assert canonical.plan.untrained == (bits,)
        for target in FORMS.values():
            model = lower(canonical, target, ranges={}).model
            assert wrong_weights(model, made.master, widths) == []
            session = OnnxRuntimeSession(
                model.SerializeToString(), optimisation="off", threads=1, session_options=dict(target.engine.session)
            )
            assert np.isfinite(session.run(x)).all()


class PrunedWeight(nn.Module):
    """A weight that is read as a tensor, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv(F.relu(self.stem(x))))))
        return cast(Tensor, self.fc(x.mean((2, 3)) * self.conv.weight.abs().mean()))


def test_a_weight_that_is_read_elsewhere_stays_in_float() -> None:
    sample = make(Entry(build=PrunedWeight, shape=(3, 8, 8)))
    (entry,) = [each for each in sample.network.report if each.name == "conv"]
    assert entry.decision == "float"
    check(sample, WidthAssignment(default=4))
    pinned = make(Entry(build=PrunedWeight, shape=(3, 8, 8), options=PrepareOptions(pin=("conv",))))
    check(pinned, WidthAssignment(default=4))
