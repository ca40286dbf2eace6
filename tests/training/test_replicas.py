"""Two processes that share each mini-batch give what one process gives with the whole of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.training.batches import Order
from bitswitch_deploy.training.checkpoint import load_checkpoint
from bitswitch_deploy.training.global_batchnorm import GlobalBatchNorm, synchronise_batchnorm
from bitswitch_deploy.training.replicas import gathered, is_first_process, local_device, summed

ROOT = Path(__file__).resolve().parents[2]
RUNS: list[dict[str, Any]] = [
    {},
    {"distillation": "ps_kd", "alrs": "bracket", "average_decay": 0.9},
    {"distillation": "in_batch", "update": "accumulated"},
    {"fast": True},
    {"keeps": "all"},
]
LAUNCH = ("-m", "torch.distributed.run", "--nproc-per-node", "2")


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=variables, check=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """For each run: what the one process ends with, and each of the two."""
    folder = tmp_path_factory.mktemp("replicas")
    for launch, name in (((), "one"), (LAUNCH, "two")):
        done = run(*launch, "-m", "tests.training.replicated", str(folder / name), json.dumps(RUNS))
        assert done.returncode == 0, done.stderr
    names = [(f"one.{number}.0", f"two.{number}.0", f"two.{number}.1") for number in range(len(RUNS))]
    return [[load_checkpoint(folder / name) for name in three] for three in names]


@pytest.mark.parametrize("number", range(len(RUNS)))
def test_two_processes_equal_one(results: list[list[dict[str, Any]]], number: int) -> None:
    alone, *pair = results[number]
    assert [each["replicas"] for each in (alone, *pair)] == [1, 2, 2]
    for each in pair:
        assert each["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert each["top1"] == alone["top1"]
        for key in ("model", "average"):
            if alone["state"][key] is not None:
                # sums in another order, which a rounding may make larger; 1.1e-4 were seen on one kind of processor
                torch.testing.assert_close(each["state"][key], alone["state"][key], rtol=5e-4, atol=1e-5)
    assert alone["top1"]["w8"] > 85


@pytest.mark.parametrize("number", range(len(RUNS)))
def test_replicas_stay_equal_bit_for_bit(results: list[list[dict[str, Any]]], number: int) -> None:
    _, first, second = (each["state"] for each in results[number])
    for key in ("model", "optimizers", "teacher", "average"):
        if first[key] is not None:
            torch.testing.assert_close(second[key], first[key], rtol=0, atol=0)


def test_the_first_batch_of_all_replicas_decides_scale_and_sign(results: list[list[dict[str, Any]]]) -> None:
    alone, *pair = (each["first batches"] for each in results[0])
    assert (alone["signed"], alone["second call"]) == (True, "refused")
    for each in pair:
        assert {**each, "scales": each["scales"].tolist()} == {**alone, "scales": alone["scales"].tolist()}


def test_what_is_random_in_a_network_is_drawn_anew_on_each_replica(results: list[list[dict[str, Any]]]) -> None:
    alone, first, second = (each["draw"] for each in results[0])
    assert alone == first
    assert first != second


def test_the_distillation_memory_holds_what_all_replicas_saw(results: list[list[dict[str, Any]]]) -> None:
    alone, first, _ = (each["state"]["teacher"] for each in results[1])
    assert alone.shape == (64, 2)
    torch.testing.assert_close(first.float(), alone.float(), rtol=0, atol=2e-3)
    torch.testing.assert_close(alone.float().sum(1), torch.ones(64), rtol=0, atol=2e-3)


def test_a_divergence_ends_all_processes_with_its_name(tmp_path: Path) -> None:
    # the scales of one step at this rate are too large for any float
    words = ("-m", "tests.training.replicated", str(tmp_path / "x"), json.dumps([{"learning_rate": 1e30}]))
    done = run(*LAUNCH, *words)
    assert done.returncode == 1
    assert re.search(r"CheckFailedError: training of \S+ at \d bits: ", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_data_of_one_process_that_are_no_numbers_end_all_with_the_same_message(tmp_path: Path) -> None:
    done = run(*LAUNCH, "-m", "tests.training.replicated", str(tmp_path / "x"), json.dumps([{"nan_at": 5}]))
    assert done.returncode == 1
    assert done.stderr.count("CheckFailedError: training of network input at 8 bits: loss nan") == 2, done.stderr
    assert "Connection closed" not in done.stderr


def test_numbers_that_a_network_keeps_of_its_share_end_all_with_the_same_message(tmp_path: Path) -> None:
    done = run(*LAUNCH, "-m", "tests.training.replicated", str(tmp_path / "x"), json.dumps([{"keeps": "share"}]))
    assert done.returncode == 1
    assert done.stderr.count("UsageError: buffers 0.mean: other numbers on each of 2 replicas") == 2, done.stderr


def test_the_tool_under_torchrun_writes_one_master(tmp_path: Path) -> None:
    tool, output = str(ROOT / "tools" / "train_master.py"), tmp_path / "m.safetensors"
    recipe = tmp_path / "quick.yaml"
    text = (ROOT / "bitswitch_deploy" / "training" / "recipes" / "digits.yaml").read_text(encoding="utf-8")
    recipe.write_text(text.replace("epochs: 40", "epochs: 1"), encoding="utf-8")
    done = run(*LAUNCH, tool, "--recipe", str(recipe), "--steps", "2", "-o", str(output))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("8 bits") == 1
    names = ["m.safetensors", "m.safetensors.log.csv", "m.safetensors.log.jsonl", "quick.yaml"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    first, *_, last = (tmp_path / names[2]).read_text(encoding="utf-8").splitlines()
    assert json.loads(first)["replicas"] == 2
    assert json.loads(last)["event"] == "end"


def test_alone_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(3.0)
    assert summed(x) is x
    assert gathered(x) is x
    assert is_first_process()
    monkeypatch.setenv("RANK", "1")
    assert is_first_process()  # of one, whatever a job system calls it
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_first_process()


def test_each_process_of_a_machine_has_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device("cuda") == torch.device("cuda", 3)
    assert local_device("cuda:1") == torch.device("cuda", 1)
    assert local_device("cpu") == torch.device("cpu")


def test_a_batchnorm_with_code_of_its_own_is_refused_on_several(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.BatchNorm2d):
        pass

    monkeypatch.setattr("bitswitch_deploy.training.global_batchnorm.replica_count", lambda: 2)
    model = nn.Sequential(nn.BatchNorm3d(2), nn.SyncBatchNorm(2))
    synchronise_batchnorm(model)
    assert [type(norm) for norm in model] == [GlobalBatchNorm, GlobalBatchNorm]
    with pytest.raises(UsageError, match=r"^0: Own on 2 replicas"):
        synchronise_batchnorm(nn.Sequential(Own(2)))


def test_a_batch_that_replicas_cannot_share_equally_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitswitch_deploy.training.batches.replica_count", lambda: 3)
    with pytest.raises(UsageError, match="batch_size: 16 on 3 replicas"):
        Order(samples=64, batch_size=16, seed=0)
