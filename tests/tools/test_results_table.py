from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import tools.ablation
import tools.train_master
from bitswitch_deploy.catalogue import bundled_master
from bitswitch_deploy.master import read_master
from tools.results_table import CALIBRATION, Run, ablation_command, chance, main, page, read_run, train_command

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
    log(tmp_path, "also plain", {"event": "failed", "reason": "loss nan"}, seed=5)
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
    assert (
        "    python tools/train_master.py --recipe digits --seed 1 --threads 2 --steps 50 --fast"
        " -o digits-seed1.safetensors"
    ) in lines
    assert (
        "| alrs-none | 1, 2 | 97.50 [97.00..98.00] | 97.75 (+0.25) [97.50..98.00] | 96.00 (-1.50) [95.00..97.00] |"
    ) in lines
    assert "| scale-per-tensor | 1 | seed 1: loss nan |" in lines
    assert "| 60 epochs | 5 | failed: loss nan | | | | | |" in lines
    assert [line for line in lines if "ablation.py" in line] == [
        "    python tools/ablation.py --recipe digits --variants alrs-none --seeds 1,2 --threads 2 --fast -o runs",
        "    python tools/ablation.py --recipe digits --variants scale-per-tensor --seeds 1 --threads 2 --fast -o runs",
    ]
    assert (
        "How far figures differ where nothing is changed these runs do not tell: small differences say nothing."
    ) in lines
    assert "container-uint8" not in "".join(lines)


def runs(folder: Path, *logs: Path) -> list[Run]:
    return [run for run in map(read_run, logs or sorted(folder.glob("*.log.jsonl"))) if run is not None]


def test_a_run_on_several_devices_says_so(tmp_path: Path) -> None:
    (run,) = runs(
        tmp_path, log(tmp_path, "x", end(98.0, 98.0, 97.0), device="Some GPU", replicas=4, precision="bfloat16")
    )
    assert run.machine == "4 x Some GPU"
    assert run.options == ["--threads", "2", "--precision", "bfloat16", "--device", "cuda", "--fast"]
    assert train_command(run).startswith("torchrun --nproc-per-node 4 tools/train_master.py --recipe digits --seed 1 ")


@pytest.mark.parametrize(
    ("start", "data"),
    [
        ({"recipe": "digits"}, []),
        ({"recipe": "cifar10-resnet20-short"}, ["--data", "DATA"]),
        ({"recipe": "mine"}, ["--data", "DATA"]),  # a recipe that is not here, in a log that does not tell
        ({"recipe": "mine", "dataset": "digits"}, []),
        ({"recipe": "digits", "dataset": "photos"}, ["--data", "DATA"]),
    ],
)
def test_a_data_set_that_is_not_bundled_is_asked_for(tmp_path: Path, start: dict[str, str], data: list[str]) -> None:
    (run,) = runs(tmp_path, log(tmp_path, "x", end(98.0, 98.0, 97.0), **start))
    assert run.data == data
    for command in (train_command(run), ablation_command([run])):
        assert ("--data DATA" in command) == bool(data)


def test_the_commands_are_those_that_the_tools_take(tmp_path: Path) -> None:
    start = {"recipe": "cifar10-resnet20+as-it-is", "device": "Some GPU", "precision": "bfloat16", "joint_steps": 5}
    (run,) = runs(tmp_path, log(tmp_path, "x", end(98.0, 98.0, 97.0), **start))
    for tool, command in (
        (tools.train_master.main, train_command(run)),
        (tools.ablation.main, ablation_command([run])),
    ):
        words = command.partition(".py ")[2].split()
        assert tool.make_context("tool", words).params["output"]


def test_a_stage_of_mixtures_from_the_state_of_another_run(tmp_path: Path) -> None:
    for variant in ("a", "b"):
        start = {"recipe": f"digits+{variant}", "supernet": {"epochs": 3}, "step": 1200}
        log(tmp_path, variant, end(98.0, 98.0, 97.0), **start)
    found = runs(tmp_path)
    lines = page(found).splitlines()
    assert (
        "Variants, 60 epochs, then 3 of mixtures, means over seeds (lowest to highest where there are several):"
        in lines
    )
    unknown = (
        " went on from the state file of another run, behind mini-batch 1,200. The logs do not tell which run that "
        "was, nor its precision and threads. The options below are those of what came after. "
    )
    assert [line for line in lines if line.startswith(f"All of them{unknown}")]
    assert "    python tools/ablation.py --recipe digits --variants a,b --seeds 1 --threads 2 --fast -o runs" in lines
    (alone,) = runs(tmp_path, log(tmp_path, "c", end(98.0, 98.0, 97.0), recipe="digits+c", seed=2))
    lines = page([alone, *found]).splitlines()
    assert [line for line in lines if line.startswith(f"a (seed 1), b (seed 1){unknown}")]
    # which seed and which options were of which variant
    assert "    python tools/ablation.py --recipe digits --variants c --seeds 2 --threads 2 --fast -o runs" in lines


def test_a_log_that_names_the_run_before_it(tmp_path: Path) -> None:
    before = {"recipe": "short", "seed": 1, "precision": "float32", "threads": 2, "fast": True}
    after = {**before, "recipe": "longer", "precision": "bfloat16", "threads": 1, "fast": False}
    parent = {"stage": "joint", "runs": [{}, before, after]}
    log(tmp_path, "a", end(98.0, 98.0, 97.0), step=1200, parent=parent)
    text = page(runs(tmp_path))
    assert (
        "\n(seed 1) went on from the state file of another run, behind mini-batch 1,200 of stage joint: a run that is "
        "not known, then `short`, seed 1, in float32 with --threads 2 --fast, then `longer`, seed 1, in bfloat16 with "
        "no other options. The options below"
    ) in text


def test_a_run_that_began_with_weights_of_another(tmp_path: Path) -> None:
    before = {"recipe": "lower", "seed": 3, "precision": "bfloat16", "threads": 1, "fast": True, "device": "Some GPU"}
    began = {"stage": "joint", "step": 39100, "runs": [before | {"joint_steps": 39100}]}
    log(tmp_path, "a", end(98.0, 98.0, 97.0), started_from=began)
    text = page(runs(tmp_path))
    assert (
        "\n(seed 1) began with weights of another run, behind its mini-batch 39,100: `lower`, seed 3, in bfloat16 with "
        "--steps 39100 --device cuda --fast. `--keep-state` leaves that file, `lower-seed3.safetensors.state`.\n"
    ) in text
    assert "--threads 2 --fast --start-from lower-seed3.safetensors.state -o digits-seed1.safetensors\n" in text
    log(tmp_path, "a", end(98.0, 98.0, 97.0), started_from=began | {"runs": [{}]})
    assert "39,100: a run that is not known. `--keep-state` leaves that file, `STATE`.\n" in page(runs(tmp_path))


def test_a_run_that_began_with_a_master(tmp_path: Path) -> None:
    runs_before = [{"recipe": "lower, then wider", "seed": "3"}]
    began = {"stage": "master", "master": "r.safetensors", "master_sha256": "ab" * 32, "runs": runs_before}
    log(tmp_path, "a", end(98.0, 98.0, 97.0), started_from=began)
    text = page(runs(tmp_path))
    assert (
        "(seed 1) began with weights of the master `r.safetensors` (sha256 abababababab), which lower, then wider had"
    ) in text
    assert "--start-from r.safetensors -o digits-seed1.safetensors\n" in text
    log(tmp_path, "a", end(98.0, 98.0, 97.0), started_from=began | {"master": "digits-seed1.safetensors"})
    assert "--start-from digits-seed1.safetensors -o again-digits-seed1.safetensors\n" in page(runs(tmp_path))


def test_options_that_changed_on_the_way(tmp_path: Path) -> None:
    path = log(tmp_path, "a", end(98.0, 98.0, 97.0), recipe="digits+a")
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    again = json.loads(first)
    same = json.dumps({**again, "step": 10})
    other = json.dumps({**again, "step": 2000, "precision": "bfloat16"})
    path.write_text("\n".join([first, same, other, *rest]) + "\n", encoding="utf-8")
    changed = [line for line in page(runs(tmp_path)).splitlines() if "interrupted" in line]
    options = "--threads 2 --precision bfloat16 --fast"
    assert changed == [f"a (seed 1) was interrupted and went on from mini-batch 2,000 with {options}."]


def test_a_host_and_versions_that_changed_on_the_way(tmp_path: Path) -> None:
    path = log(tmp_path, "a", end(98.0, 98.0, 97.0))
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    elsewhere = json.dumps({**json.loads(first), "step": 10, "host": "aarch64, another"})
    later = json.dumps({**json.loads(first), "step": 20, "versions": {**VERSIONS, "torch": "3.0.0"}})
    path.write_text("\n".join([first, elsewhere, later, *rest]) + "\n", encoding="utf-8")
    assert [line for line in page(runs(tmp_path)).splitlines() if "interrupted" in line] == [
        f"(seed 1) was interrupted and went on from mini-batch {change}."
        for change in (
            "10 with --threads 2 --fast, on aarch64, another",
            "20 with --threads 2 --fast, with torch 3.0.0, numpy 2.4.6",
        )
    ]


def test_of_several_runs_to_one_output_the_last_is_told(tmp_path: Path) -> None:
    earlier = log(tmp_path, "a", end(98.0, 98.0, 97.0), seed=1, fast=False).read_text(encoding="utf-8")
    inherited = {"step": 5, "parent": {"stage": "float", "runs": [{}]}}
    earlier += log(tmp_path, "a", end(90.0, 90.0, 90.0), **inherited).read_text(encoding="utf-8")
    path = log(tmp_path, "a", end(97.0, 96.0, 95.0), seed=7)
    begun, *rest = path.read_text(encoding="utf-8").splitlines()
    # interrupted once, in the float stage and before its first epoch
    resumed = [json.dumps({**json.loads(begun), **more}) for more in (inherited, {**inherited, "step": 0})]
    path.write_text(earlier + "\n".join([begun, *resumed, rest[-2], rest[-1]]) + "\n", encoding="utf-8")
    (run,) = runs(tmp_path)
    assert (run.start["seed"], run.top1, run.images_per_s) == (7, {"w8": 96.0, "w2": 95.0}, 200.0)
    assert run.changed == []
    assert run.inherited == 0


def test_what_figures_differ_by_where_nothing_was_changed(tmp_path: Path) -> None:
    accuracy = {entry.bits: entry.value for entry in read_master(bundled_master()).spec.accuracy}
    log(tmp_path, "a", end(98.0, accuracy[8], accuracy[2] - 1.5), recipe="digits+as-it-is")
    (one,) = runs(tmp_path)
    for width in ("w6", "w4"):
        one.top1[width] = accuracy[int(width[1:])]
    assert chance([one]) == (
        "The bundled master, of the same recipe and seed as as-it-is (seed 1) but trained another time, differs from "
        "it by 0.00 (w8), 0.00 (w6), 0.00 (w4), 1.50 (w2) points. With one seed, differences of that size between "
        "variants say nothing."
    )
    log(tmp_path, "a", end(98.0, 98.0, 96.0), recipe="digits+as-it-is", seed=2)
    log(tmp_path, "b", end(98.0, 98.5, 97.75), recipe="digits+as-it-is", seed=3)
    log(tmp_path, "c", end(98.0, 90.0, 90.0), recipe="digits+alrs-none", seed=3)
    assert chance(runs(tmp_path)) == (
        "Between its seeds as-it-is, the recipe unchanged, differs by 0.50 (w8), 1.75 (w2) points. Weigh differences "
        "between variants against that."
    )
    # as long as no other: the bundled master is no twin of a shorter run
    log(tmp_path, "a", end(98.0, 98.0, 96.0), recipe="digits+as-it-is", joint_steps=5)
    assert "bundled" not in chance(runs(tmp_path))


def test_the_results_page_is_that_of_the_logs() -> None:
    found = [read_run(path) for path in sorted((CALIBRATION / "results").glob("*.log.jsonl"))]
    if found:
        assert (CALIBRATION / "RESULTS.md").read_text(encoding="utf-8") == page([run for run in found if run])


def test_a_command_that_fails_at_its_start_leaves_the_run_before_it(tmp_path: Path) -> None:
    path = log(tmp_path, "x", end(98.0, 98.0, 97.0))
    finished = read_run(path)
    lines = path.read_text(encoding="utf-8")
    start, epoch = lines.splitlines()[:2]
    path.write_text(f"{lines}{start}\n", encoding="utf-8")
    assert read_run(path) == finished
    path.write_text(f"{lines}{start}\n{epoch}\n{epoch[:9]}", encoding="utf-8")
    assert read_run(path) == finished


def test_a_log_without_an_end_is_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "empty.log.jsonl").write_text("", encoding="utf-8")
    done = CliRunner().invoke(main, ["--logs", str(tmp_path), "-o", str(tmp_path / "page.md")])
    assert done.exit_code == 0, done.output
    assert done.stderr == "empty.log.jsonl: left out, as no run in it has ended\n"
