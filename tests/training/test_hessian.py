"""Traces against closed forms, and what they must not depend on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitswitch_deploy.training.hessian import Trace, hessian_traces

NOTHING = [(torch.zeros(1, 1), torch.zeros(1))]


def test_a_diagonal_hessian_needs_one_vector() -> None:
    w, d = torch.zeros(6, requires_grad=True), torch.arange(1.0, 7.0)
    (trace,) = hessian_traces(lambda x, y: 0.5 * (d * w**2).sum(), {"w": w}, NOTHING, seed=3, max_vectors=1).values()
    assert (trace.trace, trace.n_vectors, trace.n_weights) == (21.0, 1, 6)
    (many,) = hessian_traces(lambda x, y: 0.5 * (d * w**2).sum(), {"w": w}, NOTHING, seed=3).values()
    assert (many.standard_error, many.n_vectors) == (0.0, 32)


def test_the_standard_error_is_honest() -> None:
    """H = 11^T of size 10: mean 10, variance of one vector 180."""
    w = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    inside = 0
    for seed in range(60):
        trace = hessian_traces(lambda x, y: 0.5 * w.sum() ** 2, {"w": w}, NOTHING, seed=seed, max_vectors=64)["w"]
        inside += abs(trace.trace - 10) < 2 * trace.standard_error
        assert trace.standard_error == pytest.approx((180 / 64) ** 0.5, rel=0.5)
    assert 50 <= inside <= 60


def test_it_goes_on_until_the_error_is_small_or_time_is_up() -> None:
    w = torch.zeros(10, dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * w.sum() ** 2

    found = hessian_traces(loss, {"w": w}, NOTHING, seed=0, max_vectors=2000)["w"]
    assert found.standard_error <= 0.1 * found.trace
    assert 100 < found.n_vectors < 400
    assert hessian_traces(loss, {"w": w}, NOTHING, seed=0, max_vectors=40)["w"].n_vectors == 40


def test_softmax_regression() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 4
    w = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    p = (x @ w.T).softmax(1).detach()
    exact = float(((p * (1 - p)).sum(1) * (x**2).sum(1)).mean())
    found = hessian_traces(lambda a, b: F.cross_entropy(a @ w.T, b), {"w": w}, [(x, y)], seed=1, tolerance=0.02)["w"]
    assert abs(found.trace - exact) < 4 * found.standard_error
    assert found.trace == pytest.approx(exact, rel=0.1)


def _network() -> tuple[nn.Sequential, dict[str, Tensor], Tensor, Tensor]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
    weights: dict[str, Tensor] = {name: model.get_parameter(f"{name}.weight") for name in ("0", "2")}
    return model, weights, torch.randn(10, 5, dtype=torch.float64), torch.arange(10) % 3


def _explicit_trace(model: nn.Module, weight: Tensor, x: Tensor, y: Tensor) -> float:
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), [weight], create_graph=True)
    entries = gradient.reshape(-1)
    rows = [torch.autograd.grad(entry, [weight], retain_graph=True)[0].reshape(-1) for entry in entries]
    return float(torch.stack(rows).trace())


def test_blocks_of_an_explicit_hessian() -> None:
    model, weights, x, y = _network()
    found = hessian_traces(lambda a, b: F.cross_entropy(model(a), b), weights, [(x, y)], seed=0)
    for name, weight in weights.items():
        exact = _explicit_trace(model, weight, x, y)
        assert abs(found[name].trace - exact) < 4 * found[name].standard_error


def test_neither_batches_nor_order_matter_and_nothing_is_touched() -> None:
    model, weights, x, y = _network()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def traces(names: str, *cuts: int) -> dict[str, Trace]:
        batches = list(zip(x.tensor_split(cuts), y.tensor_split(cuts)))
        parameters = {name: weights[name] for name in names}
        return hessian_traces(lambda a, b: F.cross_entropy(model(a), b), parameters, batches, seed=4, max_vectors=8)

    whole = traces("02")
    for other in (traces("02", 3, 4), traces("20")):
        assert {name: trace.trace for name, trace in other.items()} == pytest.approx(
            {name: trace.trace for name, trace in whole.items()}, rel=1e-9
        )
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_negative_traces_do_not_reward_low_widths_and_doubt_is_said() -> None:
    trace = Trace(trace=-0.5, standard_error=0.3, n_vectors=32, n_weights=10)
    assert (trace.mean, trace.is_determined) == (0.0, False)
    assert Trace(trace=5.0, standard_error=0.3, n_vectors=32, n_weights=10).mean == 0.5
