"""Traces against closed forms, and what they must not depend on."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitswitch_deploy.training.hessian import Trace, _estimate, hessian_traces
from tests.graph.masters import build, layer
from tests.search.masters import EVERY_OPERATOR
from tools.hessian_costs import costs_of

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


def test_two_hundred_estimates_stay_within_four_standard_errors() -> None:
    """Of 64 vectors each, and the error shrinks with the root of their number: variance of one vector 180."""
    w = torch.zeros(10, dtype=torch.float64, requires_grad=True)

    def found(seed: int, vectors: int) -> float:
        return hessian_traces(lambda x, y: 0.5 * w.sum() ** 2, {"w": w}, NOTHING, seed=seed, max_vectors=vectors)[
            "w"
        ].trace

    many, few = ([found(seed, vectors) for seed in range(200)] for vectors in (64, 16))
    assert max(abs(trace - 10) for trace in many) < 4 * (180 / 64) ** 0.5
    assert statistics.mean(many) == pytest.approx(10, abs=4 * (180 / 64 / 200) ** 0.5)
    spreads = [statistics.pstdev(traces) for traces in (few, many)]
    assert spreads == pytest.approx([(180 / vectors) ** 0.5 for vectors in (16, 64)], rel=0.2)  # root of 4 apart


def test_it_goes_on_until_the_error_is_small_or_time_is_up() -> None:
    w = torch.zeros(10, dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * w.sum() ** 2

    found = hessian_traces(loss, {"w": w}, NOTHING, seed=0, max_vectors=2000)["w"]
    assert found.standard_error <= 0.1 * found.trace
    assert 100 < found.n_vectors < 400
    assert hessian_traces(loss, {"w": w}, NOTHING, seed=0, max_vectors=40)["w"].n_vectors == 40


def test_linear_least_squares() -> None:
    """Loss ||Wx - y||^2 / 2: the trace is outputs x mean ||x||^2, and per weight mean ||x||^2 / inputs."""
    torch.manual_seed(1)
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.zeros(20)
    w = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    norm = float((x**2).sum(1).mean())
    for batches in ([(x, y)], [(x[:13], y[:13]), (x[13:], y[13:])]):
        found = hessian_traces(
            lambda a, b: 0.5 * ((a @ w.T) ** 2).sum(1).mean(), {"w": w}, batches, seed=0, tolerance=0.02
        )["w"]
        assert abs(found.trace - 3 * norm) < 4 * found.standard_error
        assert found.trace == pytest.approx(3 * norm, rel=0.06)
        assert found.mean == pytest.approx(norm / 6, rel=0.06)


def test_weights_that_the_loss_does_not_see_halve_the_mean_and_leave_the_cost_alone() -> None:
    """tr(H) / n * ||dW||^2: twice the weights, the new half without an error, at half the mean."""
    torch.manual_seed(4)
    x = torch.randn(30, 5, dtype=torch.float64)

    def mean_of(unseen: int) -> float:
        w = torch.randn(5 + unseen, dtype=torch.float64, requires_grad=True)
        loss = lambda a, _: 0.5 * ((a @ w[:5]) ** 2).mean()  # noqa: E731
        found = hessian_traces(loss, {"w": w}, [(x, x[:, 0])], seed=0, tolerance=0.01, max_vectors=2000)["w"]
        return found.mean

    assert mean_of(5) == pytest.approx(mean_of(0) / 2, rel=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_what_a_width_loses_grows_sixteenfold_with_two_bits_less(seed: int) -> None:
    """Gaussian codes; the stored width loses nothing. Costs are traces per weight times ||dW||^2, with their errors."""
    weights = np.random.default_rng(seed).normal(0, 40, (144, 6)).round().clip(-128, 127).astype(np.int8)
    names = (("conv", "Conv"), ("up", "ConvTranspose"), ("mat", "MatMul"), ("fc", "Gemm"))
    layers = [layer(name, operator) for name, operator in names]  # type: ignore[arg-type]
    master = build(EVERY_OPERATOR, layers, tensors={"mat.weight": weights})
    trace = Trace(trace=864.0, standard_error=86.4, n_vectors=32, n_weights=864)
    costs = {each.width: each for each in costs_of(master, layers[2], trace, (8, 6, 4, 2)).costs}
    scale = float(np.asarray(master.tensors[layers[2].weight_scale]).reshape(-1)[0])
    wide = weights.astype(np.int64)
    for bits in (6, 4, 2):
        step = 2 ** (8 - bits)
        codes = np.floor(wide / step + 0.5).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        assert costs[bits].value == pytest.approx(scale**2 * ((wide - step * codes) ** 2).sum(), rel=1e-5)
        assert costs[bits].standard_error == pytest.approx(0.1 * costs[bits].value)
    assert costs[8].value == 0
    ratios = [costs[narrow].value / costs[wider].value for wider, narrow in ((6, 4), (4, 2))]
    assert all(8 < ratio < 24 for ratio in ratios), ratios


def test_every_product_is_told_of() -> None:
    w = torch.zeros(10, requires_grad=True)
    told: list[int] = []
    loss = lambda x, y: 0.5 * w.sum() ** 2  # noqa: E731
    hessian_traces(loss, {"w": w}, NOTHING * 3, seed=0, max_vectors=20, computed=told.append)
    assert told == [8, 8, 8, 8, 8, 8, 4, 4, 4]


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


def test_one_vector_does_not_tell_its_error() -> None:
    trace = _estimate([3.0], 1)
    assert (trace.trace, trace.standard_error, trace.is_determined) == (3.0, math.inf, False)
