"""Widths in a tensor: the same numbers as with widths in Python, for every mixture, and one graph for all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitswitch_deploy.tensors import Rounding, WidthAssignment
from bitswitch_deploy.training.execution import Execution
from bitswitch_deploy.training.layers import SwitchableBatchNorm2d, copied
from bitswitch_deploy.training.mixture import MixtureForward
from bitswitch_deploy.training.prepare import PrepareOptions, set_width
from bitswitch_deploy.training.transitional import with_transitions
from tests.training.tiny_network import OPTIONS, seen_network

WIDTHS = (8, 4, 2)
OTHERS: dict[str, PrepareOptions] = {
    "as usual": OPTIONS,
    "half to even": PrepareOptions(widths=WIDTHS, rounding=Rounding.HALF_EVEN),
    "per tensor": PrepareOptions(widths=WIDTHS, granularity="per_tensor"),
    "uint8 container": PrepareOptions(widths=WIDTHS, activation_container="uint8"),
    "weights alone": PrepareOptions(widths=WIDTHS, weight_only=("6",)),
    "other widths": PrepareOptions(widths=(7, 5, 3)),
    "one width": PrepareOptions(widths=(4,)),
}


def learn(forward: object, model: nn.Module, seed: int) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Logits, and gradients by name, of one mini-batch; ties between codes are among its numbers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 1, 4, 4, generator=generator).mul(8).round().div(4)
    logits: Tensor = forward(x)  # type: ignore[operator]
    F.cross_entropy(logits, torch.randint(2, (16,), generator=generator)).backward()  # type: ignore[no-untyped-call]
    return logits.detach(), {name: p.grad for name, p in model.named_parameters()}


class Louder(nn.BatchNorm2d):
    """A BatchNorm that does more than torch's."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def with_options(options: PrepareOptions) -> nn.Module:
    return seen_network(options).model


def with_norm(norm: nn.Module) -> nn.Module:
    model = seen_network().model
    model[4] = SwitchableBatchNorm2d(norm, WIDTHS, "3")  # type: ignore[operator]
    return model


def with_transition() -> nn.Module:
    model = seen_network().model
    norm = model.get_submodule("4")
    assert isinstance(norm, SwitchableBatchNorm2d)
    norm.previous = "6"  # there is none before it, and this one will do
    return with_transitions(model)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{name: partial(with_options, options) for name, options in OTHERS.items()},
    "a BatchNorm of one's own": lambda: with_norm(Louder(4)),
    "without gain": lambda: with_norm(nn.BatchNorm2d(4, affine=False)),
    "cumulative statistics": lambda: with_norm(nn.BatchNorm2d(4, momentum=None)),
    "transitions": with_transition,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_mixture_gives_the_same_numbers(name: str) -> None:
    widths = OTHERS.get(name, OPTIONS).widths
    for seed, (first, second) in enumerate(product(widths, repeat=2)):
        plain = NETWORKS[name]()
        mixed = copied(plain)
        forward = MixtureForward(mixed, Execution())
        assignment = WidthAssignment(default=widths[0], overrides=(("3", first), ("6", second)))
        for model in (plain, mixed):
            set_width(model, assignment)
        expected, gradients = learn(plain, plain, seed)
        found, mine = learn(forward, mixed, seed)
        assert torch.equal(found, expected)
        for key, gradient in gradients.items():
            if gradient is None:
                assert mine[key] is None, key
            else:
                assert torch.equal(mine[key], gradient), key  # type: ignore[arg-type]
        for (key, buffer), other in zip(mixed.named_buffers(), plain.buffers(), strict=True):
            assert torch.equal(buffer, other), key


def test_it_computes_with_the_tensors_of_the_network() -> None:
    """Also behind an update, and behind a state that was loaded."""
    model, other = seen_network().model, seen_network(PrepareOptions(widths=WIDTHS, signed=(("6", True),))).model
    forward = MixtureForward(model, Execution())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    model.load_state_dict({k: v for k, v in other.state_dict().items() if not k.endswith("signed")}, strict=False)
    set_width(model, 4)
    x = torch.randn(4, 1, 4, 4)
    assert torch.equal(forward(x), copied(model)(x))
    model.eval()
    assert torch.equal(forward(x), model(x))
    assert {id(p) for p in forward.network.parameters()} < {id(p) for p in model.parameters()}


@pytest.mark.filterwarnings("ignore")  # those of torch's own compiler
def test_one_graph_for_every_mixture() -> None:
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    plain = seen_network().model
    mixed = copied(plain)
    forward = MixtureForward(mixed, Execution(fast=True))
    for seed, (first, second) in enumerate(product(WIDTHS, repeat=2)):
        assignment = WidthAssignment(default=8, overrides=(("3", first), ("6", second)))
        for model in (plain, mixed):
            set_width(model, assignment)
            model.zero_grad()
        expected, gradients = learn(plain, plain, seed)
        found, _ = learn(forward, mixed, seed)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        for name, parameter in mixed.named_parameters():
            if gradients[name] is not None:
                torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-2, atol=1e-3, msg=name)
    for (key, buffer), other in zip(mixed.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=1e-3, atol=1e-3, msg=key)
    assert counters["unique_graphs"] == 1
