from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bitswitch_deploy.errors import OutputError
from bitswitch_deploy.training.metrics_log import VERSIONS, MetricsLog, host_text, lacks_epoch, read_log

LOSSES, TOP1 = {"w8": 0.5, "w2": 0.75}, {"w8": 90.0, "w2": 80.25}


@pytest.fixture(autouse=True)
def _no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


def test_each_event_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    MetricsLog(path).write("start", seed=1)
    MetricsLog(path).write("epoch", losses={"w8": 0.5})
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == [{"event": "start", "seed": 1}, {"event": "epoch", "losses": {"w8": 0.5}}]


def test_lines_and_table(tmp_path: Path) -> None:
    for step in (10, 20):  # a run that goes on has a new log object
        log = MetricsLog(tmp_path / "run.log.jsonl")
        log.write("start", step=step - 10)
        log.write_epoch("joint", step, LOSSES, TOP1, seconds=1.5)
    lines = [json.loads(line) for line in (tmp_path / "run.log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["start", "epoch", "start", "epoch"]
    assert lines[1] == {
        "event": "epoch",
        "stage": "joint",
        "step": 10,
        "losses": LOSSES,
        "top1": TOP1,
        "seconds": 1.5,
    }
    assert (tmp_path / "run.log.csv").read_text(encoding="utf-8").splitlines() == [
        "stage,step,network,loss,top1",
        "joint,10,w8,0.5,90",
        "joint,10,w2,0.75,80.25",
        "joint,20,w8,0.5,90",
        "joint,20,w2,0.75,80.25",
    ]
    assert len(list(tmp_path.iterdir())) == 2


def test_no_path_keeps_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = MetricsLog(None)
    log.write("start")
    log.write_epoch("joint", 1, LOSSES, TOP1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(OutputError, match="log: cannot be written: Is a directory"):
        MetricsLog(tmp_path / "log").write("start")
    (tmp_path / "other.csv").mkdir()
    with pytest.raises(OutputError, match=r"other\.csv: cannot be written: Is a directory"):
        MetricsLog(tmp_path / "other.log")


def test_says_what_ran_where() -> None:
    assert VERSIONS["torch"] == torch.__version__
    assert ", " in host_text()


def test_tensorboard_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scalars: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "run.log.events")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            scalars.append((name, value, step))

        def flush(self) -> None:
            scalars.append(("flushed", 0.0, 0))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    MetricsLog(tmp_path / "run.log.jsonl").write_epoch("joint", 7, LOSSES, TOP1)
    assert scalars == [
        ("joint/loss/w8", 0.5, 7),
        ("joint/top1/w8", 90.0, 7),
        ("joint/loss/w2", 0.75, 7),
        ("joint/top1/w2", 80.25, 7),
        ("flushed", 0.0, 0),
    ]


def test_what_a_killed_run_did_not_write_is_lacking(tmp_path: Path) -> None:
    path = tmp_path / "run.log.jsonl"
    assert not lacks_epoch(path, "joint", 10)  # no run of this log
    MetricsLog(path).write("start", step=0)
    assert lacks_epoch(path, "joint", 10)
    MetricsLog(path).write_epoch("joint", 10, LOSSES, TOP1)
    MetricsLog(path).write("start", step=10, parent={"stage": "joint"})
    assert not lacks_epoch(path, "joint", 10)
    assert lacks_epoch(path, "joint", 20)
    MetricsLog(path).write("start", step=0)  # a new run, which has not come there
    assert lacks_epoch(path, "joint", 10)
    MetricsLog(path).write("end")
    assert not lacks_epoch(path, "joint", 10)
    other = tmp_path / "other.log.jsonl"
    MetricsLog(other).write("start", step=10, parent={"stage": "joint"})
    assert not lacks_epoch(other, "joint", 10)
    assert lacks_epoch(other, "joint", 20)


def test_a_line_that_was_cut_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "start"}\n{"event": "epo', encoding="utf-8")
    MetricsLog(path).write("end")
    assert path.read_text(encoding="utf-8").splitlines()[-1] == '{"event": "end"}'
    assert read_log(path) == [{"event": "start"}, {"event": "end"}]
    path.write_text("", encoding="utf-8")
    assert read_log(path) == []
