from __future__ import annotations

import torch
from torch import nn

from bitswitch_deploy.training.weight_average import WeightAverage
from tests.training.tiny_network import seen_network


def test_follows_the_formula_and_copies_the_first() -> None:
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, 0.75)
    expected: dict[str, torch.Tensor] = {}
    for step in range(4):
        with torch.no_grad():
            model.weight.copy_(torch.tensor([1.0, -2.0]) * (step + 1))
            assert model.running_var is not None
            model.running_var.fill_(3.0**step)
            assert model.num_batches_tracked is not None
            model.num_batches_tracked.fill_(step)
        average.update(model)
        for name in ("weight", "running_var"):
            value = getattr(model, name).detach().double()
            expected[name] = value if step == 0 else 0.75 * expected[name] + 0.25 * value
    for name, value in expected.items():
        torch.testing.assert_close(getattr(average.model, name).detach().double(), value, rtol=1e-6, atol=0)
    assert average.model.num_batches_tracked == 3


def test_the_signs_of_input_codes_stay_signs() -> None:
    network = seen_network()
    average = WeightAverage(network.model, 0.999)
    for _ in range(3):
        average.update(network.model)
    x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(average.model.eval()(x), network.model.eval()(x))
    signs = [value for name, value in average.model.state_dict().items() if name.endswith(".signed")]
    assert [int(sign) for sign in signs] == [0, 1]
