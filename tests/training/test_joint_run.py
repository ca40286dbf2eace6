"""Training of a network and data of one's own, without a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bitswitch_deploy.training
from bitswitch_deploy.errors import CheckFailedError, CheckpointError, DataError, OutputError, UsageError
from bitswitch_deploy.master import read_master
from bitswitch_deploy.training.batches import Batch
from bitswitch_deploy.training.checkpoint import load_checkpoint
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
    others = SampleBatches(Noisy(), batch_size=8, seed=2)
    with pytest.raises(CheckpointError, match="seed of the mini-batches 1\n  allowed: seed of the mini-batches 2"):
        train_jointly(tiny_network(), others, SETTINGS, run)


@pytest.mark.parametrize(
    ("x", "label", "message"),
    [
        (torch.zeros(1, 4, 4), 2, "labels: class 2 is out of bounds\n  allowed: 0 to 1, as the network has outputs"),
        (torch.zeros(1, 4, 4), -100, "sample 9: label -100\n  allowed: classes counted from 0"),
        (torch.zeros(1, 4, 4, dtype=torch.uint8), 0, r"sample 9: torch.uint8 \[1, 4, 4\]\n  allowed: float32 tensors"),
        (torch.zeros(1, 5, 4), 0, r"sample 9: torch.float32 \[1, 5, 4\]\n  allowed: .* of one shape \[1, 4, 4\]"),
    ],
)
def test_a_sample_that_does_not_fit_is_named(x: Tensor, label: int, message: str) -> None:
    class Odd(Noisy):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return (x, label) if index == 9 else (torch.zeros(1, 4, 4), index % 2)

    with pytest.raises(DataError, match=message):
        train_jointly(tiny_network(), batches(Odd()), SETTINGS)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ((torch.zeros(1, 4, 4), 1.7), "label 1.7\n  allowed: classes counted from 0, as whole numbers"),
        ((torch.zeros(1, 4, 4), float("nan")), "label nan"),
        ((torch.zeros(1, 4, 4), "cat"), "label 'cat'"),
        ((torch.zeros(1, 4, 4), None), "label None"),
        ((torch.zeros(1, 4, 4), torch.eye(2)[0]), r"label tensor\(\[1., 0.\]\)"),
        ((torch.zeros(1, 4, 4), 0, 0), r"3 entries\n  allowed: \(input, class\)"),
        (torch.zeros(1, 4, 4), "a Tensor\n  allowed"),
        ({"x": torch.zeros(1, 4, 4), "y": 0}, "a dict\n  allowed"),
    ],
)
def test_what_is_no_sample_is_named(sample: Any, message: str) -> None:
    class Odd(Noisy):
        def __getitem__(self, index: int) -> Any:
            return sample if index == 9 else (torch.zeros(1, 4, 4), index % 2)

    with pytest.raises(DataError, match=f"^sample 9: {message}"):
        train_jointly(tiny_network(), batches(Odd()), SETTINGS)


@pytest.mark.parametrize("label", [True, np.int64(1), np.array(1), torch.tensor(1), torch.tensor([1])])
def test_a_class_may_be_a_whole_number_of_any_kind(label: Any) -> None:
    data = [(torch.zeros(1, 4, 4), label)]
    assert SampleBatches(data, batch_size=1, seed=1).batch(0).labels.tolist() == [1]


def test_samples_that_the_network_does_not_take_are_refused() -> None:
    data = [(torch.zeros(1, 5, 5), 0)] * 16
    with pytest.raises(UsageError, match=r"first mini-batch of Sequential: shapes \(8, 1, 5, 5\): mat1 and mat2"):
        train_jointly(tiny_network(), SampleBatches(data, batch_size=8, seed=1), SETTINGS)


def test_an_error_of_the_data_set_is_its_own() -> None:
    class Broken(Noisy):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            raise ValueError("no such file")

    with pytest.raises(ValueError, match=r"^no such file$"):
        train_jointly(tiny_network(), batches(Broken()), SETTINGS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SampleBatches(iter([(torch.zeros(1), 0)]), batch_size=1, seed=1), "SampleBatches: a list_iterator"),  # type: ignore[arg-type]
        (lambda: SampleBatches(Noisy(), batch_size=8.0, seed=1), "16 samples in batches of 8.0"),  # type: ignore[arg-type]
        (lambda: SampleBatches(Noisy(), batch_size=8, seed=-1), "SampleBatches: seed -1"),
        (lambda: JointRun(classes=0), "JointRun: classes 0"),
        (
            lambda: train_jointly(tiny_network(), batches(), SETTINGS, measure=lambda _: 0.5),  # type: ignore[arg-type, return-value]
            "measure: a float\n  allowed: figures by their names",
        ),
    ],
)
def test_arguments_that_cannot_be_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_an_output_that_is_no_row_of_logits_is_refused() -> None:
    network = tiny_network()
    assert isinstance(network.model, nn.Sequential)
    network.model.append(nn.Unflatten(1, (1, 2)))
    with pytest.raises(UsageError, match=r"a tensor \[8, 1, 2\]\n  allowed: logits \[n, classes\]"):
        train_jointly(network, batches(), SETTINGS)


def test_a_data_set_without_samples_is_refused() -> None:
    class Empty(Noisy):
        def __len__(self) -> int:
            return 0

    with pytest.raises(UsageError, match="mini-batches: 0 samples in batches of 8"):
        SampleBatches(Empty(), batch_size=8, seed=1)


def test_processes_that_are_not_joined_do_not_train_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"torchrun: 2 processes, each of which .*\n.*\n  do: .*joined_replicas"):
        train_jointly(tiny_network(), batches(), SETTINGS)


def test_a_run_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="JointRun: seed -1"):
        JointRun(seed=-1)
    train_jointly(tiny_network(), batches(), replace(SETTINGS, epochs=1), JointRun(state=str(tmp_path / "state")))  # type: ignore[arg-type]
    assert (tmp_path / "state").is_file()


def test_a_state_that_cannot_be_written_is_said_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere/state: cannot be written: No such file or directory"):
        train_jointly(tiny_network(), Source(0), SETTINGS, JointRun(state=tmp_path / "nowhere" / "state"))


@pytest.mark.parametrize("per_epoch", [1, 2])
def test_a_layer_that_only_zeros_reach_ends_the_run_after_an_epoch(tmp_path: Path, per_epoch: int) -> None:
    network = tiny_network()
    assert isinstance(network.model, nn.Sequential)
    network.model[5] = nn.Sequential(nn.Flatten(), nn.Threshold(1e9, 0.0))
    run = JointRun(state=tmp_path / "state")
    source = SampleBatches(Noisy(), batch_size=16 // per_epoch, seed=1)
    with pytest.raises(
        UsageError, match=r"(?s)layer 6: 8 bits have seen no .* other than 0\n.*only zeros reach.*pin it"
    ):
        train_jointly(network, source, SETTINGS, run)
    assert load_checkpoint(tmp_path / "state")["step"] == 2


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


class Source:
    """Gives so many mini-batches, whatever it is asked for."""

    per_epoch, samples = 2, 16

    def __init__(self, given: int) -> None:
        self.left = given

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        while self.left:
            self.left -= 1
            yield batches().batch(0)


def test_a_source_that_ends_early_is_no_trained_network(tmp_path: Path) -> None:
    run = JointRun(state=tmp_path / "state", classes=2)
    with pytest.raises(DataError, match=r"ended after 4 mini-batches\n  allowed: one for each step .* 6 in all"):
        train_jointly(tiny_network(), Source(4), SETTINGS, run)
    assert load_checkpoint(tmp_path / "state")["step"] == 4


def test_no_more_is_taken_of_a_source_than_was_asked_for() -> None:
    source = Source(100)
    train_jointly(tiny_network(), source, SETTINGS)
    assert source.left == 100 - 6
