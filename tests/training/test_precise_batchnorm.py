from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bitswitch_deploy.training.layers import SwitchableBatchNorm
from bitswitch_deploy.training.precise_batchnorm import settle_batchnorm
from bitswitch_deploy.training.prepare import set_width
from bitswitch_deploy.training.recipe import JointSettings
from tests.training.tiny_network import OPTIONS, seen_network


def test_statistics_of_each_width_are_those_of_the_batches() -> None:
    network = seen_network()
    model = network.model.train()
    inputs = [torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = {bits: seen_by_last_norm(model, bits, inputs) for bits in OPTIONS.widths}
    model.load_state_dict(before)
    settle_batchnorm(model, OPTIONS.widths, inputs)
    norm = model[4]  # type: ignore[index]
    assert isinstance(norm, SwitchableBatchNorm)
    for bits, batches in expected.items():
        copy = norm.copies[OPTIONS.widths.index(bits)]
        assert isinstance(copy, nn.BatchNorm2d)
        means = torch.stack([batch.mean((0, 2, 3)) for batch in batches])
        variances = torch.stack([batch.movedim(1, 0).flatten(1).var(1) for batch in batches])
        torch.testing.assert_close(copy.running_mean, means.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(copy.running_var, variances.mean(0), rtol=1e-5, atol=1e-6)
        assert copy.momentum == 0.1
    for name, tensor in model.state_dict().items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(tensor, before[name]), name
    assert norm.bits == OPTIONS.widths[0]
    assert model.training


@torch.no_grad()
def seen_by_last_norm(model: nn.Module, bits: int, inputs: list[Tensor]) -> list[Tensor]:
    """What the last BatchNorm reads in training mode."""
    seen: list[Tensor] = []
    handle = model[4].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))  # type: ignore[index]
    set_width(model, bits)
    for x in inputs:
        model(x)
    handle.remove()
    return seen


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="batchnorm_batches -1 is below 0"):
        JointSettings(epochs=1, batch_size=1, learning_rate=1e-3, weight_decay=0.0, batchnorm_batches=-1)
