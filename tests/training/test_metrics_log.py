from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bitswitch_deploy.errors import OutputError
from bitswitch_deploy.training.metrics_log import VERSIONS, MetricsLog, host_text


def test_each_event_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    MetricsLog(path).write("start", seed=1)
    MetricsLog(path).write("epoch", losses={"w8": 0.5})
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == [{"event": "start", "seed": 1}, {"event": "epoch", "losses": {"w8": 0.5}}]


def test_no_path_keeps_no_log(tmp_path: Path) -> None:
    MetricsLog(None).write("start", seed=1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written: Is a directory"):
        MetricsLog(tmp_path).write("start")


def test_says_what_ran_where() -> None:
    assert VERSIONS["torch"] == torch.__version__
    assert ", " in host_text()
