from __future__ import annotations

import pytest
import torch
from torch import nn

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.training.tracing import trace_calls


def is_watched(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.BatchNorm1d))


def test_order_is_that_of_the_first_calls_and_producers_are_direct() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.BatchNorm1d(2), nn.ReLU(), shared, nn.Linear(2, 2), nn.BatchNorm1d(2))
    trace = trace_calls(model, (torch.zeros(3, 2),), is_watched)
    assert trace.order == ("0", "1", "4", "5")
    assert list(trace.calls.items()) == [("0", 2), ("1", 1), ("2", 1), ("4", 1), ("5", 1), ("", 1)]
    assert trace.producers == {"0": "0", "1": "0", "4": "0", "5": "4"}


def test_sources_go_through_functions_and_batchnorm_along_the_main_branch() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.main, self.side, self.last = (nn.Linear(2, 2) for _ in range(4))
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x * 2).relu()
            main = self.norm(self.main(x))
            main += self.side(x)  # side runs after main, but its input comes from the stem
            result: torch.Tensor = self.last(torch.cat([main, x]).reshape(-1, 2))
            return result

    trace = trace_calls(Block(), (torch.zeros(3, 2),), is_watched)
    assert trace.sources == {"main": "stem", "norm": "main", "side": "stem", "last": "main"}
    assert trace.producers == {"main": "stem", "norm": "main", "side": "stem"}


def test_a_producer_is_found_through_what_pools_or_reorders() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)
            self.of_q, self.of_k, self.of_both = (nn.BatchNorm1d(4) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k = self.q(x), self.k(x)
            q, k = self.of_q(q.transpose(1, 2)), self.of_k(nn.functional.max_pool1d(k.mT, 2).repeat(1, 1, 2))
            result: torch.Tensor = self.of_both(q * k)
            return result

    trace = trace_calls(Turned(), (torch.zeros(3, 2, 4),), is_watched)
    assert trace.producers == {"of_q": "q", "of_k": "k"}
    assert trace.sources["of_both"] == "q"


def test_who_reads_parameters_of_others_is_found() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.called, self.read, self.measured = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
            self.norm, self.listed = nn.BatchNorm1d(2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.measured(self.called(x).to(self.measured.weight.dtype)).reshape(self.measured.weight.shape[0], -1)
            assert self.norm.running_mean is not None
            x = self.read(x) @ self.read.weight.T - self.norm.running_mean
            result: torch.Tensor = torch.cat([self.norm(x), self.listed.weight]) + self.listed(x).sum()
            return result

    trace = trace_calls(Reader(), (torch.zeros(2, 2),), is_watched)
    assert trace.read_elsewhere == {"read", "norm", "listed"}


def test_leaves_modes_and_hooks_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    model[1].eval()
    trace_calls(model, (torch.zeros(1, 2),), is_watched)
    assert [model.training, model[0].training, model[1].training] == [True, True, False]
    assert not model[0]._forward_hooks


def test_leaves_no_hooks_after_a_failure() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(UsageError, match=r"example input of Sequential: shapes \(1, 3\): mat1 and mat2"):
        trace_calls(model, (torch.zeros(1, 3),), is_watched)
    assert not model[0]._forward_hooks
    assert model.training


def test_an_example_that_is_no_tuple_is_refused() -> None:
    with pytest.raises(UsageError, match="example_input: a Tensor"):
        trace_calls(nn.Linear(2, 2), torch.zeros(2, 2), is_watched)  # type: ignore[arg-type]
