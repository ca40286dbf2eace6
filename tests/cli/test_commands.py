"""Each command on real files; --json everywhere."""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.catalogue import bundled_file, bundled_master, sample_set, target_names
from bitswitch_deploy.master import assemble_master, read_master, write_master
from bitswitch_deploy.pipeline import inputs
from bitswitch_deploy.validation.dataset import Dataset, load_dataset
from tests.conftest import Run
from tests.master.tiny import tiny_skeleton, tiny_spec, tiny_tensors


@pytest.fixture
def package(run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "package"
    assert run("export", "--target", "x86-cpu", "--bits", "4", "--output", path).code == 0
    return path


def test_export_prints_a_table_on_stdout(run: Run, tmp_path: Path) -> None:
    outcome = run("export", "--target", "jetson", "--bits", "8,2", "--output", tmp_path / "p")
    assert outcome.code == 0
    lines = [line.split() for line in outcome.out.splitlines()]
    assert [line[0] for line in lines if line and line[-1] in ("exact", "approx")] == ["w8", "w2"]
    assert "Not done here" in outcome.out


def test_the_widths_are_the_trained_ones_unless_others_are_asked_for(run: Run, tmp_path: Path) -> None:
    master = bundled_file("calibration/cifar10/resnet20-432.safetensors")
    outcome = run("export", "--master", master, "--target", "jetson", "--output", tmp_path / "p", "--json")
    assert outcome.code == 0
    assert [row["label"] for row in json.loads(outcome.out)["widths"]] == ["w4", "w3", "w2"]
    outcome = run("export", "--master", master, "--target", "jetson", "--output", tmp_path / "q", "--bits", "8")
    assert outcome.code == 2
    assert "8 bits from a master of 4 bits\n  allowed: 2..4" in outcome.err


def test_commands_to_copy_are_quoted(run: Run, tmp_path: Path) -> None:
    package = tmp_path / "jet's son"
    outcome = run("export", "--target", "jetson", "--bits", "4", "--output", package, "--json")
    (not_done,) = json.loads(outcome.out)["not_done"]
    words = shlex.split(not_done["command"])
    assert words[:5] == ["scp", "-r", str(package), "BOARD:", "&&"]
    # what ssh hands to the shell of the board
    assert shlex.split(" ".join(words[7:])) == ["sh", f"{package.name}/build_on_device.sh"]
    assert f"`sh {shlex.quote(str(package / 'build_on_device.sh'))}`" in run("build", package).err
    hint = run("profile", package, "--engine", "tensorrt").err
    assert f"bitswitch-deploy profile {shlex.quote(package.name)} (or" in hint


@pytest.mark.parametrize("target", ["x86-cpu", "jetson"])
@pytest.mark.parametrize("name", [b"ep:10\n(2)", b"caf\xff"])
def test_a_master_may_be_called_anything(run: Run, tmp_path: Path, target: str, name: bytes) -> None:
    master = tmp_path / os.fsdecode(name + b".safetensors")
    master.write_bytes(bundled_master().read_bytes())
    package = tmp_path / "p"
    outcome = run("export", "--target", target, "--bits", "4", "--master", master, "--output", package)
    assert outcome.code == 0
    assert (package / {b"ep:10\n(2)": "ep-10-2-w4.onnx", b"caf\xff": "caf-w4.onnx"}[name]).is_file()
    for command in ("verify", "validate", "blame"):
        assert run(command, package).code == 0


def test_export_json_is_the_report(run: Run, tmp_path: Path) -> None:
    outcome = run("export", "--target", "jetson", "--bits", "2", "--output", tmp_path / "p", "--json")
    report = json.loads(outcome.out)
    assert report["schema"] == "bitswitch-report/1"
    assert [row["label"] for row in report["widths"]] == ["w2"]


def test_the_manifest_has_the_command_that_makes_it_again(run: Run, tmp_path: Path) -> None:
    layers = json.loads(run("inspect", "--json").out)["layers"]
    name = next(layer["name"] for layer in layers if not layer["pinned"])
    mixed = tmp_path / "mixed.json"
    mixed.write_text(json.dumps({"*": 4, name: 2}))
    assert run("export", "--target", "jetson@6.0", "--mixed", mixed, "--output", tmp_path / "p").code == 0
    command = json.loads((tmp_path / "p" / "manifest.json").read_text())["command"]
    assert command[:2] == ["bitswitch-deploy", "export"]
    assert run(*command[1:], "--output", tmp_path / "q").code == 0
    (graph,) = (tmp_path / "p").glob("*-mixed.onnx")
    assert graph.read_bytes() == (tmp_path / "q" / graph.name).read_bytes()


def test_the_manifest_names_what_an_alias_meant_here_and_every_option(run: Run, tmp_path: Path) -> None:
    samples = sample_set("digits")
    assert samples is not None
    own = tmp_path / "own.yaml"
    own.write_text(bundled_file("targets/x86-cpu.yaml").read_text())
    for target, named in (("jetson", "jetson-orin-nano@6.2"), ("cpu", None), (own, f"{own}@ort-1.23")):
        words = ("--bits", "8", "--data", samples.test, "--calibration", samples.train, "--strict", "--force")
        assert run("export", "--target", target, *words, "--output", tmp_path / "p").code == 0
        command = json.loads((tmp_path / "p" / "manifest.json").read_text())["command"]
        found = command[command.index("--target") + 1]
        assert found == named or (named is None and found in ("x86-cpu@ort-1.23", "arm64-cpu@ort-1.23"))
        assert command[command.index("--calibration") + 1] == str(samples.train)
        assert command[-1] == "--strict"


def test_other_data_are_judged_against_the_canonical_graph(run: Run, tmp_path: Path) -> None:
    samples = sample_set("digits")
    assert samples is not None
    data = dict(np.load(samples.test))
    np.savez(tmp_path / "part.npz", x=data["x"][:100], y=data["y"][:100])
    words = ("export", "--target", "x86-cpu", "--bits", "4", "--data", tmp_path / "part.npz")
    outcome = run(*words, "--output", tmp_path / "p")
    assert outcome.code == 0
    assert "of the canonical graph" in outcome.out


def test_accuracy_that_fell_too_far_exits_with_1(run: Run, tmp_path: Path) -> None:
    master = read_master(bundled_master())
    boasting = replace(master.spec, accuracy=tuple(replace(each, value=100.0) for each in master.spec.accuracy))
    path = tmp_path / "boasting.safetensors"
    write_master(assemble_master(spec=boasting, tensors=master.tensors, skeleton=master.skeleton), path)
    words = ("export", "--target", "jetson", "--bits", "2", "--master", path, "--output", tmp_path / "p")
    assert run(*words, "--max-drop", "50").code == 0
    outcome = run(*words, "--max-drop", "0.1", "--force")
    assert outcome.code == 1
    assert "failed" in outcome.out


def test_inspect(run: Run) -> None:
    text = run("inspect")
    assert text.code == 0
    assert "Layers" in text.out
    assert "opset 21, " in text.out
    document = json.loads(run("inspect", bundled_master(), "--json").out)
    assert document["schema"] == "bitswitch-master-summary/1"
    assert [width["bits"] for width in document["widths"]] == [8, 6, 4, 2]


def test_inspect_says_which_opset_is_exported(run: Run, tmp_path: Path) -> None:
    skeleton = tiny_skeleton()
    skeleton.opset_import[0].version = 20
    path = tmp_path / "older.safetensors"
    write_master(assemble_master(spec=tiny_spec(), tensors=tiny_tensors(), skeleton=skeleton), path)
    assert "opset 20 (this release exports 21 only), " in run("inspect", path).out


def test_targets_list_and_show(run: Run) -> None:
    listed = json.loads(run("targets", "list", "--json").out)
    assert [target["name"] for target in listed["targets"]] == list(target_names())
    assert all(name in run("targets", "list").out for name in target_names())
    shown = run("targets", "show", "jetson")
    assert shown.code == 0
    assert "ClampActivations" in shown.out
    facts = " ".join(shown.out.split())
    assert "20 int8 TOPS without sparsity, 8 GB, 68 GB/s, CUDA 12.6, Python 3.10, power modes 25W" in facts
    assert "TOPS" not in run("targets", "show", "x86-cpu").out
    assert json.loads(run("targets", "show", "rtx", "--json").out)["target"]["name"] == "rtx"


def test_validate_measures_a_package_again(run: Run, package: Path) -> None:
    outcome = run("validate", package)
    assert outcome.code == 0
    document = json.loads(run("validate", package, "--json").out)
    exported = json.loads((package / "results.json").read_text())
    assert document["result"]["widths"][0]["hops"] == exported["widths"][0]["hops"]


@pytest.mark.parametrize("command", ["validate", "blame"])
def test_data_to_validate_on_are_read_once(
    run: Run, package: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def load(path: Path, **options: Any) -> Dataset:
        read.append(path)
        return load_dataset(path, **options)

    monkeypatch.setattr(inputs, "load_dataset", load)
    assert run(command, package).code == 0
    samples = sample_set("digits")
    assert samples is not None
    assert read == [samples.test]


def test_validate_exits_with_1_where_a_width_lost_too_much(run: Run, tmp_path: Path) -> None:
    master = read_master(bundled_master())
    boasting = replace(master.spec, accuracy=tuple(replace(each, value=100.0) for each in master.spec.accuracy))
    path = tmp_path / "boasting.safetensors"
    write_master(assemble_master(spec=boasting, tensors=master.tensors, skeleton=master.skeleton), path)
    words = ("export", "--target", "x86-cpu", "--bits", "2", "--master", path, "--output", tmp_path / "p")
    assert run(*words, "--max-drop", "50").code == 0
    assert run("validate", tmp_path / "p", "--max-drop", "50").code == 0
    outcome = run("validate", tmp_path / "p", "--max-drop", "0.1")
    assert outcome.code == 1
    assert "Failed" in outcome.out


def test_labels_of_other_classes_exit_with_1(run: Run, package: Path, tmp_path: Path) -> None:
    samples = sample_set("digits")
    assert samples is not None
    data = dict(np.load(samples.test))
    np.savez(tmp_path / "shifted.npz", x=data["x"], y=(data["y"] + 1) % 10)
    outcome = run("validate", package, "--data", tmp_path / "shifted.npz")
    assert outcome.code == 1
    assert "order of classes" in " ".join(outcome.out.split())


def test_json_ends_with_one_newline(run: Run, package: Path, tmp_path: Path) -> None:
    export = ("export", "--target", "x86-cpu", "--bits", "8", "--output", tmp_path / "json")
    for words in (("verify", package), ("validate", package), ("inspect",), export):
        text = run(*words, "--json").out
        assert text.endswith("}\n")
        assert not text.endswith("\n\n")


def test_verify_shows_names_that_are_no_text(run: Run, package: Path) -> None:
    for name in (b"x\xff.txt", b"\rok         digits"):
        Path(os.fsdecode(bytes(package) + b"/" + name)).touch()
    outcome = run("verify", package)
    assert outcome.code == 1
    assert outcome.out.splitlines()[-3:-1] == ["unexpected ?ok         digits", "unexpected x?.txt"]


def test_validate_refuses_another_master(run: Run, package: Path, tmp_path: Path) -> None:
    outcome = run("validate", package, "--master", tmp_path / "no.safetensors")
    assert outcome.code == 3


def test_verify_sees_a_flipped_bit(run: Run, package: Path) -> None:
    assert run("verify", package).code == 0
    graph = next(package.glob("*.onnx"))
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    outcome = run("verify", package, "--json")
    assert outcome.code == 1
    assert {"path": graph.name, "state": "changed"} in json.loads(outcome.out)["files"]
    assert run("validate", package).code == 1


def test_a_file_that_nobody_exported_is_for_verify_alone(run: Run, package: Path) -> None:
    (package / ".DS_Store").write_bytes(b"")
    assert run("validate", package).code == 0
    assert run("profile", package, "--turns", 6, "--latency-table", package / "table.json").code == 0
    assert run("profile", package, "--turns", 6).code == 0
    outcome = run("verify", package)
    assert outcome.code == 1
    assert re.findall(r"unexpected +(\S+)", outcome.out) == [".DS_Store", "table.json"]
    next(package.glob("*.onnx")).unlink()
    outcome = run("validate", package)
    assert outcome.code == 1
    assert "w4.onnx (missing)\n" in outcome.err


def test_build_of_rtx_engines_and_refusal_for_onnxruntime(run: Run, package: Path, tmp_path: Path) -> None:
    assert run("build", package).code == 2
    assert run("export", "--target", "rtx", "--bits", "8", "--output", tmp_path / "rtx").code == 0
    # what export built is up to date, with all that is known of it
    outcome = run("build", tmp_path / "rtx", "--json")
    assert outcome.code == 0
    exported = json.loads(outcome.out)["engines"]
    assert [(row["state"], Path(row["path"]).parent.name) for row in exported] == [("up to date", "engines")] * 2
    assert len(exported[1]["layers"]["int8"]) == 7
    # refused before anything is built
    assert run("build", tmp_path / "rtx", "--fp32", "--force").code == 2
    assert not list((tmp_path / "rtx").glob("on_device/*.engine"))
    outcome = run("build", tmp_path / "rtx", "--force", "--json")
    assert outcome.code == 0
    document = json.loads(outcome.out)
    reference, engine = document["engines"]
    assert (document["schema"], reference["label"], engine["label"]) == ("bitswitch-build/2", "fp16", "w8")
    assert Path(engine["path"]).stat().st_size == engine["size_bytes"]
    assert (engine["state"], Path(engine["path"]).parent.name) == ("built", "on_device")
    assert len(engine["layers"]["int8"]) == 7
    again = run("build", tmp_path / "rtx")
    assert again.out.count("up to date") == 2
    assert "fp16" in again.out
    assert run("build", tmp_path / "rtx", "--dla").code == 4
    assert run("build", tmp_path / "rtx", "--fp32").code == 2
    assert run("build", tmp_path / "rtx", "--timing-cache", tmp_path / "cache").code == 2
    assert run("verify", tmp_path / "rtx").code == 0


def test_a_file_of_widths_that_is_not_there(run: Run, tmp_path: Path) -> None:
    missing = tmp_path / "missing.json"
    outcome = run("export", "--target", "jetson", "--mixed", missing, "--output", tmp_path / "p")
    assert outcome.code == 3
    assert outcome.err.startswith(f"error: {missing}: cannot be read: No such file or directory\n")


def test_shared_weights_are_part_of_the_command_that_makes_it_again(run: Run, tmp_path: Path) -> None:
    words = ("export", "--target", "x86-cpu", "--bits", "4", "--shared-weights", "--output", tmp_path / "p")
    outcome = run(*words)
    assert outcome.code == 0
    assert re.search(r"weights +digits\.weights, [\d.]+ kB, once for all widths", outcome.out)
    command = json.loads((tmp_path / "p" / "manifest.json").read_text())["command"]
    assert command[-1] == "--shared-weights"
    assert run(*command[1:], "--output", tmp_path / "q").code == 0
    for name in ("digits-w4.onnx.gz", "digits.weights", "digits.weights.json"):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "q" / name).read_bytes()
