from __future__ import annotations

import pytest
import torch
from torch import nn

from bitswitch_deploy.errors import UnavailableError, UsageError
from bitswitch_deploy.training.execution import Execution, ForwardPass, choose_execution, settle_torch
from bitswitch_deploy.training.global_batchnorm import synchronise_batchnorm


def test_choices() -> None:
    assert choose_execution("cpu") == Execution(device=torch.device("cpu"), precision="float32", fast=False)
    assert choose_execution("cpu", precision="bfloat16", fast=True).precision == "bfloat16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here() -> None:
    assert choose_execution("auto").device.type == "cpu"
    with pytest.raises(UnavailableError, match="--device: cuda: torch sees 0 CUDA devices"):
        choose_execution("cuda")
    with pytest.raises(UnavailableError, match="--device: cuda:7"):
        choose_execution("cuda:7")


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:x", ""])
def test_a_device_that_does_not_exist(name: str) -> None:
    with pytest.raises(UsageError, match=f"--device: {name}\n  allowed: auto, cpu, cuda or cuda:N"):
        choose_execution(name)


def test_alone_a_network_is_used_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    forward = ForwardPass(model, Execution())
    assert forward.plain is forward.fast is model
    synchronise_batchnorm(model)
    assert type(model[1]) is nn.BatchNorm1d


def test_fast_keeps_the_weights_of_images_in_channels_last_order_and_takes_volumes() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv3d(4, 4, 3), nn.ConvTranspose2d(4, 2, 3), nn.Linear(2, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Execution(fast=True).place(model)
    weights = [model.get_parameter(f"{i}.weight") for i in (0, 2)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_lower_precision_ends_at_the_logits() -> None:
    linear = nn.Linear(64, 2)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    result = Execution(precision="bfloat16").in_precision(linear)(x)
    assert result.dtype == torch.float32
    assert torch.equal(result, result.bfloat16().float())
    torch.testing.assert_close(result, linear(x), rtol=0, atol=0.02)


def test_a_run_computes_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    settle_torch(torch.device("cpu"), seed=0, threads=1)
    assert not torch.backends.cudnn.allow_tf32
