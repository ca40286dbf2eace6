"""What tools/bench/joint_step.py makes of its turns, and one run of it with little work."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from bitswitch_deploy.training.execution import Execution
from tools.bench import joint_step
from tools.bench.joint_step import FLOAT, JOINT, WIDTHS, main, make_stage


def test_rows_are_medians_of_the_turns_against_the_float_step() -> None:
    seconds = {FLOAT: [0.01, 0.01, 0.03, 0.02, 0.02], JOINT: [0.1, 0.08, 0.06, 0.07, 0.2]}
    rows = joint_step._rows(seconds, {FLOAT: 100, JOINT: 250}, batch_size=4)
    assert [row.candidate for row in rows] == [FLOAT, JOINT]
    assert [row.median_ms for row in rows] == pytest.approx([20.0, 80.0])
    assert [row.images_per_s for row in rows] == pytest.approx([200.0, 50.0])
    assert [row.ratio_to_float for row in rows] == pytest.approx([1.0, 4.0])
    # quartiles of five turns lie half way between the first two and the last two of them
    assert [row.spread for row in rows] == pytest.approx([(0.025 - 0.01) / 0.02, (0.15 - 0.065) / 0.08])
    assert [row.peak_bytes for row in rows] == [100, 250]


@pytest.mark.parametrize(
    ("name", "losses"),
    [
        ("float", ("float",)),
        ("joint", tuple(f"w{bits}" for bits in WIDTHS)),
        ("mixtures", tuple(f"w{bits}" for bits in WIDTHS)),
        ("lsq4", ("w4",)),
    ],
)
def test_candidates_train_what_they_are_called(name: str, losses: tuple[str, ...]) -> None:
    assert make_stage(name, Execution()).losses == losses


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks of a process are read from /proc")
def test_a_run_writes_rows_ratios_and_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(joint_step, "SINGLE", ("lsq8",))
    path = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["joint_step.py", "--batch-size=2", "--threads=1", "--turns=1", f"--json={path}"])
    main()
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = {row["candidate"]: row for row in result["rows"]}
    assert list(rows) == ["float", "joint", "mixtures", "lsq8"]
    assert all(row["median_ms"] > 0 for row in rows.values())
    summary = result["summary"]
    assert summary["joint_to_float"] == pytest.approx(rows["joint"]["median_ms"] / rows["float"]["median_ms"])
    assert summary["joint_to_four_lsq"] == pytest.approx(rows["joint"]["median_ms"] / rows["lsq8"]["median_ms"])
    assert summary["mixtures_to_joint"] == pytest.approx(rows["mixtures"]["median_ms"] / rows["joint"]["median_ms"])
    assert summary["joint_to_float"] > 1.5  # four passes
    assert 0 < summary["quantizer_share"] < 1
    assert result["versions"]["torch"] == torch.__version__
    assert result["work"] == {"batch_size": 2, "threads": 1, "device": "cpu", "fast": False, "precision": "float32"}
    printed = capsys.readouterr().out
    assert printed.startswith("candidate ")
    assert f"joint step against a float step: {summary['joint_to_float']:.2f}\n" in printed
