"""Training of a network and data of one's own, without a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bitswitch_deploy.training
from bitswitch_deploy.errors import CheckFailedError, CheckpointError, UsageError
from bitswitch_deploy.master import read_master
from bitswitch_deploy.training.joint_run import JointRun, SampleBatches, train_jointly
from bitswitch_deploy.training.recipe import JointSettings
from tests.training.tiny_network import tiny_network

SETTINGS = JointSettings(
    epochs=3, batch_size=8, learning_rate=0.01, weight_decay=0.0, distillation="in_batch", average_decay=0.9
)


class Noisy:
    """Sixteen images of two classes, augmented by noise of torch's generator."""

    def __init__(self, brightness: float = 1.0) -> None:
        self.brightness = brightness

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.full((1, 4, 4), self.brightness * (index % 2)) + 0.1 * torch.randn(1, 4, 4)
        return image, index % 2


def batches(data: Noisy | None = None) -> SampleBatches:
    return SampleBatches(data or Noisy(), batch_size=8, seed=1)


class Killed(Exception):
    pass


def killed(_: nn.Module) -> dict[str, float]:
    raise Killed("as planned")


def test_a_killed_run_goes_on_to_the_same_network(tmp_path: Path) -> None:
    whole = train_jointly(tiny_network(), batches(), SETTINGS)
    run = JointRun(state=tmp_path / "state", resume=True, classes=2)
    with pytest.raises(Killed, match="as planned"):
        train_jointly(tiny_network(), batches(), SETTINGS, run, killed)
    measured: list[nn.Module] = []

    def measure(model: nn.Module) -> dict[str, float]:
        measured.append(model)
        return {"w8": 50.0}

    resumed = train_jointly(tiny_network(), batches(), SETTINGS, run, measure)
    assert measured == [resumed.model] * 2  # of the two epochs that were left, and the average
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_a_state_is_gone_on_from_by_the_same_run_that_says_so(tmp_path: Path) -> None:
    run = JointRun(state=tmp_path / "state", resume=True)
    train_jointly(tiny_network(), batches(), replace(SETTINGS, epochs=1), run)
    with pytest.raises(UsageError, match="an earlier run left its state here"):
        train_jointly(tiny_network(), batches(), SETTINGS, replace(run, resume=False))
    with pytest.raises(CheckpointError, match='a run with distillation "in_batch"\n  allowed: distillation "none"'):
        train_jointly(tiny_network(), batches(), replace(SETTINGS, distillation="none"), run)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(CheckFailedError, match="training of network input at 8 bits"):
        train_jointly(tiny_network(), batches(Noisy(float("nan"))), SETTINGS)


def test_the_example_of_the_readme_gives_a_master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = Path(bitswitch_deploy.training.__file__).with_name("README.md").read_text(encoding="utf-8")
    shown = readme.partition("<!-- own network example -->")[2].partition("<!-- end -->")[0]
    lines = [line[4:] for line in shown.splitlines() if line.startswith("    ")]
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    dataset = [(torch.randn(3, 32, 32), index) for index in range(10)]
    monkeypatch.chdir(tmp_path)
    exec("\n".join(lines), {"model": model, "dataset": dataset})
    assert read_master(Path("master.safetensors")).spec.widths == (8, 6, 4, 2)
    assert Path("mine.state").is_file()
