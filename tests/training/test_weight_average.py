from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bitswitch_deploy.training.layers import is_scale
from bitswitch_deploy.training.master_export import save_master
from bitswitch_deploy.training.prepare import PreparedNetwork, set_width
from bitswitch_deploy.training.weight_average import WeightAverage
from tests.training.tiny_network import EXAMPLE, seen_network, tiny_network


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


def test_of_a_scale_that_changes_its_sign_the_size_is_averaged() -> None:
    network = seen_network()
    scales = {name: each for name, each in network.model.named_parameters() if is_scale(name)}
    sizes = {name: each.detach().clone() for name, each in scales.items()}
    average = WeightAverage(network.model, 0.5)
    for sign in (-1.0, 1.0, -1.0, 1.0):
        for name, scale in scales.items():
            scale.data.copy_(sign * sizes[name])
        average.update(network.model)
    averaged = dict(average.model.named_parameters())
    assert len(sizes) == 2 * (1 + 3)
    for name, size in sizes.items():
        torch.testing.assert_close(averaged[name].detach(), size, rtol=1e-6, atol=0)


def test_a_scale_that_its_first_batch_sets_later_is_copied_then() -> None:
    network = tiny_network()
    average = WeightAverage(network.model, 0.75)
    x = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    scale = network.model.get_parameter("3.input_quantizer.scales.1")
    expected = 0.0
    for step in range(5):
        for bits in (8, 4, 2) if step >= 2 else (8,):
            set_width(network.model, bits)
            network.model(x)
        if step >= 2:
            scale.data.mul_(2.0)
            expected = scale.item() if step == 2 else 0.75 * expected + 0.25 * scale.item()
        average.update(network.model)
    averaged = average.model.get_parameter("3.input_quantizer.scales.1")
    assert averaged.item() == pytest.approx(expected, rel=1e-6)
    set_width(average.model, 4)
    average.model.eval()(x)


def averaged_by_torch() -> PreparedNetwork:
    """Torch's average of a network, made before the first batch."""
    network = tiny_network()
    mix = get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]
    average = AveragedModel(network.model, multi_avg_fn=mix, use_buffers=True)
    x = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        for bits in network.options.widths:
            set_width(network.model, bits)
            network.model(x)
        average.update_parameters(network.model)
    return replace(network, model=average.module)


def test_an_average_of_others_made_before_the_first_batch_computes_and_becomes_a_master(tmp_path: Path) -> None:
    average, loaded = averaged_by_torch(), tiny_network()
    loaded.model.load_state_dict(average.model.state_dict())
    x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    for bits in average.options.widths:
        for each in (average, loaded):
            set_width(each.model, bits)
        with torch.no_grad():
            assert torch.equal(average.model.eval()(x), loaded.model.eval()(x))
    expected = save_master(loaded, EXAMPLE, tmp_path / "loaded.safetensors")
    assert save_master(averaged_by_torch(), EXAMPLE, tmp_path / "average.safetensors").sha256 == expected.sha256
