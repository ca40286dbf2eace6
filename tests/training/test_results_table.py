from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from tools.results_table import CALIBRATION, main, page, read_run

VERSIONS = {"torch": "2.13.0", "numpy": "2.4.6"}


def log(folder: Path, name: str, end: dict[str, Any], **start: Any) -> Path:
    first = {"recipe": "digits", "seed": 1, "joint_epochs": 60, "joint_steps": None, "threads": 2, "fast": True}
    first |= {"event": "start", "step": 0, "host": "x86_64, some processor", "versions": VERSIONS, **start}
    epochs = [{"event": "epoch", "stage": "joint", "images_per_s": rate} for rate in (100.0, 900.0, 200.0)]
    path = folder / f"{name}.log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (first, *epochs, end)), encoding="utf-8")
    return path


def end(float_top1: float, *top1: float) -> dict[str, Any]:
    return {"event": "end", "float_top1": float_top1, "top1": dict(zip(("w8", "w2"), top1)), "master_sha256": "ab"}


def test_the_page_of_a_few_logs(tmp_path: Path) -> None:
    log(tmp_path, "plain", end(98.0, 98.25, 97.5), joint_steps=50)
    log(tmp_path, "a", end(98.0, 98.0, 97.0), recipe="digits+alrs-none")
    log(tmp_path, "b", end(97.0, 97.5, 95.0), recipe="digits+alrs-none", seed=2)
    log(tmp_path, "c", {"event": "failed", "reason": "loss nan"}, recipe="digits+scale-per-tensor")
    log(tmp_path, "d", {"event": "epoch", "stage": "joint", "images_per_s": 1.0}, recipe="digits+container-uint8")
    output = tmp_path / "RESULTS.md"
    done = CliRunner().invoke(main, ["--logs", str(tmp_path), "-o", str(output)])
    assert done.exit_code == 0, done.output
    lines = output.read_text(encoding="utf-8").splitlines()
    assert "## digits" in lines
    assert (
        "| 50 mini-batches | 1 | 98.00 | 98.25 (+0.25) | 97.50 (-0.50) | 200 | x86_64, some processor, 2 threads "
        "| torch 2.13.0, numpy 2.4.6 |"
    ) in lines
    assert "    python tools/train_master.py --recipe digits --seed 1 --threads 2 --steps 50 --fast" in lines
    assert (
        "| alrs-none | 1, 2 | 97.50 [97.00..98.00] | 97.75 (+0.25) [97.50..98.00] | 96.00 (-1.50) [95.00..97.00] |"
    ) in lines
    assert "| scale-per-tensor | 1 | seed 1: loss nan |" in lines
    assert [line for line in lines if "ablation.py" in line] == [
        "    python tools/ablation.py --recipe digits --variants alrs-none --seeds 1,2 --threads 2 --fast",
        "    python tools/ablation.py --recipe digits --variants scale-per-tensor --seeds 1 --threads 2 --fast",
    ]
    assert "container-uint8" not in "".join(lines)


def test_a_run_on_several_devices_says_so(tmp_path: Path) -> None:
    run = read_run(log(tmp_path, "x", end(98.0, 98.0, 97.0), device="Some GPU", replicas=4, precision="bfloat16"))
    assert run is not None
    assert run.machine == "4 x Some GPU"
    assert run.options == ["--threads", "2", "--precision", "bfloat16", "--fast"]


def test_a_stage_of_mixtures_from_the_state_of_another_run(tmp_path: Path) -> None:
    for variant in ("a", "b"):
        start = {"recipe": f"digits+{variant}", "supernet": {"epochs": 3}, "step": 1200}
        log(tmp_path, variant, end(98.0, 98.0, 97.0), **start)
    found = [read_run(tmp_path / f"{variant}.log.jsonl") for variant in ("a", "b")]
    lines = page([run for run in found if run is not None]).splitlines()
    assert (
        "Variants, 60 epochs, then 3 of mixtures, means over seeds (lowest to highest where there are several):"
        in lines
    )
    assert (
        "The first 1,200 mini-batches of all of them are those of a state file, from which training went on." in lines
    )
    assert "    python tools/ablation.py --recipe digits --variants a,b --seeds 1 --threads 2 --fast" in lines
    alone = read_run(log(tmp_path, "c", end(98.0, 98.0, 97.0), recipe="digits+c", seed=2))
    assert alone is not None
    lines = page([alone, *(run for run in found if run is not None)]).splitlines()
    assert any(line.startswith("The first 1,200 mini-batches of a (seed 1), b (seed 1) are") for line in lines)
    # which seed and which options were of which variant
    assert "    python tools/ablation.py --recipe digits --variants c --seeds 2 --threads 2 --fast" in lines


def test_the_results_page_is_that_of_the_logs() -> None:
    found = [read_run(path) for path in sorted((CALIBRATION / "results").glob("*.log.jsonl"))]
    if found:
        assert (CALIBRATION / "RESULTS.md").read_text(encoding="utf-8") == page([run for run in found if run])
