"""The loss against information distortion: which layers it sums over, when it is 0, and where its gradient goes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.distortion import NormOutputs
from bitswitch_deploy.training.prepare import set_width
from tests.training.tiny_network import seen_network

X = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(5))


def test_none_where_no_layer_is_at_its_lowest_width_and_0_where_nothing_changed() -> None:
    model = seen_network().model
    outputs = NormOutputs(model)
    model(X)
    outputs.take_as_target()
    assert outputs.distortion([]) is None
    assert outputs.distortion(["6"]) is None  # no BatchNorm behind it
    model(X)
    same = outputs.distortion(["3", "6"])
    assert same is not None
    assert same.item() == 0.0


@pytest.mark.parametrize("bits", [4, 2])
def test_it_is_the_squared_difference_and_has_no_gradient_towards_the_target(bits: int) -> None:
    """At any width: a layer that rests from its lowest one is compared at the next."""
    model = seen_network().model
    seen: list[torch.Tensor] = []
    model.get_submodule("4").register_forward_hook(lambda _m, _i, output: seen.append(output))
    outputs = NormOutputs(model)
    model(X)
    seen[0].retain_grad()
    outputs.take_as_target()
    set_width(model, WidthAssignment(default=8, overrides=(("3", bits),)))
    model(X)
    loss = outputs.distortion(["3"])
    assert loss is not None
    assert loss.item() == pytest.approx(F.mse_loss(seen[1], seen[0]).item(), rel=1e-6)
    assert loss.item() > 0
    loss.backward()  # type: ignore[no-untyped-call]
    assert seen[0].grad is None
    weight = model.get_parameter("3.weight").grad
    assert weight is not None
    assert float(weight.abs().sum()) > 0
