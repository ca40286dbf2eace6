"""`check` on the bundled digits, from the command line: verdicts, refusals, and what is left on the disk."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.catalogue import bundled_file, bundled_master, host_architecture, load_target, sample_set
from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.gate.evaluation import library_versions
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.lowering.lower import calibrated_tensors, lower
from bitswitch_deploy.master import assemble_master, read_master, write_master
from bitswitch_deploy.pipeline.inputs import load_export_data
from bitswitch_deploy.pipeline.lower_width import observe_ranges
from bitswitch_deploy.quantization import derive_codes
from bitswitch_deploy.tensors import WidthAssignment
from tests.conftest import Run
from tests.graph.masters import build, layer

CONFIG = "masters: [digits.safetensors]\ntargets: [x86-cpu]\nwidths: [8, 2]\ndata: data.npz\ncalibration: data.npz\n"
BASELINE = "bitswitch-baseline.json"
N = 400


def _data(path: Path, **changes: Any) -> None:
    samples = sample_set("digits")
    assert samples is not None
    stored = np.load(samples.test)
    np.savez(path, **{"x": stored["x"][:N], "y": stored["y"][:N], **changes})


def _with_tensors(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The digits master with other tensors."""
    master = read_master(bundled_master())
    tensors = {name: np.array(tensor) for name, tensor in master.tensors.items()}
    change(tensors)
    write_master(assemble_master(spec=master.spec, tensors=tensors, skeleton=master.skeleton), path)


def _forget_three(tensors: dict[str, Any]) -> None:
    tensors["linear.bias"][3] -= 1000


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose baseline has been recorded."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "bitswitch.yaml").write_text(CONFIG)
    shutil.copy(bundled_master(), folder / "digits.safetensors")
    _data(folder / "data.npz")
    return folder


@pytest.fixture
def repository(recorded: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it; the current folder."""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    if not (recorded / BASELINE).exists():
        outcome = run("check", recorded / "bitswitch.yaml", "--update-baseline")
        assert outcome.code == 0, outcome.err
        assert "Recorded a baseline of 2 cases" in outcome.out
    folder = tmp_path / "repository"
    shutil.copytree(recorded, folder)
    monkeypatch.chdir(folder)
    return folder


def test_an_unchanged_network_is_not_shown_to_regress_and_not_evaluated_again(run: Run, repository: Path) -> None:
    outcome = run("check", "--json")
    assert outcome.code == 0
    document = json.loads(outcome.out)
    assert document["schema"] == "bitswitch-check/1"
    assert [each["case"]["width"] for each in document["cases"]] == ["w8", "w2"]
    assert {each["judgement"]["verdict"] for each in document["cases"]} == {"not shown to regress"}
    assert {each["computed"] for each in document["cases"]} == {0}
    assert document["notes"] == []  # its own runtime ran
    assert [each["evidence"]["drop"] for each in document["cases"]] == [0.0, 0.0]


def test_a_network_that_lost_a_class_has_regressed(run: Run, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_tensors(repository / "digits.safetensors", _forget_three)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(repository / "summary.md"))
    outcome = run("check", "--junit", "accuracy.xml", "--report", "accuracy.html")
    assert outcome.code == 1
    assert outcome.out.startswith("2 regressed\n")
    assert "another master than in the baseline" in outcome.out
    assert sum(line.startswith("::error title=digits x86-cpu w") for line in outcome.out.splitlines()) == 2
    assert ":x: regressed" in (repository / "summary.md").read_text()
    assert len(ET.parse(repository / "accuracy.xml").findall(".//failure")) == 2
    page = (repository / "accuracy.html").read_text(encoding="utf-8")
    assert "<h1>2 regressed</h1>" in page
    assert "another master than in the baseline" in page
    assert "check --junit accuracy.xml --report accuracy.html" in page
    assert run("check", "--max-drop", "50").code == 0


def test_a_step_summary_that_cannot_be_written_keeps_the_verdict(
    run: Run, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_tensors(repository / "digits.safetensors", _forget_three)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(repository))
    outcome = run("check", "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out)["schema"] == "bitswitch-check/1"
    assert outcome.err == f"warning: GITHUB_STEP_SUMMARY: {repository}: cannot be appended to: Is a directory\n"


def test_a_full_disk_gives_one_document(run: Run, repository: Path) -> None:
    outcome = run("check", "--junit", "/dev/full", "--json")
    assert outcome.code == json.loads(outcome.out)["exit_code"] == 3
    assert "/dev/full: cannot be written: No space left on device" in outcome.err


def test_a_baseline_that_cannot_be_written_is_refused_before_the_work(run: Run, repository: Path) -> None:
    (repository / "bitswitch.yaml").write_text(CONFIG + "baseline: missing/baseline.json\n")
    (repository / "digits.safetensors").unlink()  # which is never read
    outcome = run("check", "--update-baseline")
    assert outcome.code == 3
    assert "missing/baseline.json: cannot be written: No such file" in outcome.err


def test_a_file_that_is_no_baseline_is_refused_before_the_work(run: Run, repository: Path) -> None:
    shutil.rmtree(repository / ".bitswitch-cache", ignore_errors=True)
    (repository / BASELINE).write_text("<<<<<<< HEAD\n")
    outcome = run("check", "--update-baseline")
    assert (outcome.code, "a file that is no baseline" in outcome.err) == (3, True)
    assert not (repository / ".bitswitch-cache").exists()


@pytest.mark.parametrize("option", ["--junit", "--report"])
@pytest.mark.parametrize("name", ["bitswitch.yaml", BASELINE, f"../repository/{BASELINE}"])
def test_no_page_is_written_over_what_a_check_reads(run: Run, repository: Path, option: str, name: str) -> None:
    before = (repository / name).read_bytes()
    outcome = run("check", option, name)
    assert outcome.code == 2
    assert "would be overwritten" in outcome.err or "which is the file of CONFIG" in outcome.err
    assert (repository / name).read_bytes() == before


def test_cases_that_a_new_baseline_drops_are_named(run: Run, repository: Path) -> None:
    (repository / "bitswitch.yaml").write_text(CONFIG.replace("[8, 2]", "[8]"))
    document = json.loads(run("check", "--update-baseline", "--json").out)
    assert document["notes"] == ["no longer in the baseline: digits x86-cpu w2"]
    assert json.loads(run("check", "--update-baseline", "--json").out)["notes"] == []


def test_no_number_of_samples_tells_a_billionth(run: Run, repository: Path) -> None:
    outcome = run("check", "--effect", "0.0000001", "--report", "page.html")
    assert outcome.code == 0
    assert "more than 1,000,000,000 samples would tell; there are 400" in " ".join(outcome.out.split())
    assert "> 1000000000" in (repository / "page.html").read_text().replace("&gt;", ">")


def test_too_few_samples_pass_unless_proof_is_required(run: Run, repository: Path) -> None:
    outcome = run("check", "--effect", "0.1")
    assert outcome.code == 0
    assert "too few samples to tell" in outcome.out
    assert "samples would tell; there are 400" in outcome.out
    assert run("check", "--effect", "0.1", "--require-proof").code == 1


def test_a_mixed_width_and_a_target_that_is_not_here(run: Run, repository: Path) -> None:
    layers = {"*": 8, "blocks.0.conv1": 4}
    (repository / "first-low.json").write_text(json.dumps(layers))
    text = CONFIG.replace("[8, 2]", "[first-low.json]").replace("[x86-cpu]", "[jetson]")
    (repository / "bitswitch.yaml").write_text(text + "baseline: mixed.json\n")
    assert run("check", "--update-baseline").code == 0
    outcome = run("check", "--json")
    assert outcome.code == 0
    document = json.loads(outcome.out)
    (case,) = document["cases"]
    assert (case["case"]["width"], case["hop"]) == ("first-low", "lowered")
    (note,) = document["notes"]
    assert note.startswith("jetson: judged by the lowered graph")
    assert "judged by the lowered graph" in run("check").out


NAMED: tuple[set[str], ...] = (
    set(),
    {"rounded-bias"},
    {"residual-codes", "rounded-bias"},
    {"full-resolution", "pinned-layers"},
)


def test_the_graphs_of_named_approximations_are_judged(run: Run, repository: Path) -> None:
    """What export keeps by its labels would not be chosen here, and every width has its own."""
    master = read_master(repository / "digits.safetensors")
    calibration = load_export_data(master, data=Path("data.npz"), calibration=Path("data.npz")).calibration
    assert calibration is not None
    target = load_target("x86-cpu").target
    for pair in zip(NAMED, NAMED[::-1], strict=True):
        wanted = {f"digits x86-cpu w{bits}": sorted(names) for bits, names in zip((8, 2), pair, strict=True)}
        (repository / "bitswitch.yaml").write_text(f"{CONFIG}approximations: {json.dumps(wanted)}\n")
        outcome = run("check", "--update-baseline", "--json")
        assert outcome.code == 0
        cases = json.loads(outcome.out)["cases"]
        records = {each["case"]["width"]: each for each in json.loads((repository / BASELINE).read_text())["records"]}
        for case, names, bits in zip(cases, pair, (8, 2), strict=True):
            allowed = frozenset(map(Approximation, names))
            canonical = canonical_graph(master, WidthAssignment(default=bits))
            tensors = tuple(calibrated_tensors(canonical, target, allowed))
            ranges = observe_ranges(canonical, tensors, calibration) if tensors else {}
            graph = lower(canonical, target, ranges=ranges, approximations=allowed)
            text = graph.model.SerializeToString(deterministic=True)
            assert records[f"w{bits}"]["graph_sha256"] == hashlib.sha256(text).hexdigest()
            assert case["approximations"] == sorted(each.value for each in graph.approximations)


@pytest.mark.parametrize(
    ("names", "code", "message"),
    [
        ("{digits x86-cpu w8: [rounded]}", 3, "the approximation rounded is none of rounded-bias, "),
        ("{digits x86-cpu w8: [rounded-bias, rounded-bias]}", 3, "the approximations of digits x86-cpu w8 hold some"),
        ("[rounded-bias]", 3, "approximations[0]: 'rounded-bias'"),
        ("[[digits x86-cpu w8, []], [digits x86-cpu w8, []]]", 3, "approximations holds a case twice"),
        ("{digits x86-cpu w4: []}", 2, "approximations: digits x86-cpu w4\n  allowed: digits x86-cpu w8, digits x86"),
        ("{digits x86-cpu w2: [half-layers]}", 2, "approximations of digits x86-cpu w2: half-layers\n  allowed: roun"),
    ],
)
def test_approximations_that_nobody_makes(run: Run, repository: Path, names: str, code: int, message: str) -> None:
    (repository / "bitswitch.yaml").write_text(f"{CONFIG}approximations: {names}\n")
    outcome = run("check", "--update-baseline")
    assert outcome.code == code
    assert message in outcome.err


def test_a_named_approximation_that_the_graph_has_no_use_for_is_said(run: Run, repository: Path) -> None:
    text = f"{CONFIG}approximations: {{digits x86-cpu w2: [rounded-bias, int8-inputs]}}\n"
    (repository / "bitswitch.yaml").write_text(text)
    outcome = run("check", "--update-baseline", "--json")
    assert outcome.code == 0
    notes = {case["case"]["width"]: case["notes"] for case in json.loads(outcome.out)["cases"]}
    assert notes["w2"] == ["int8-inputs, rounded-bias: named, and of no use to this graph"]


def test_a_target_of_another_processor_is_judged_by_the_kernels_of_this_one_and_that_is_said(
    run: Run, repository: Path
) -> None:
    text = CONFIG.replace("[x86-cpu]", "[x86-cpu, arm64-cpu]").replace("[8, 2]", "[8]")
    (repository / "bitswitch.yaml").write_text(text)
    here = host_architecture()
    target, arch = ("arm64-cpu", "aarch64") if here == "x86_64" else ("x86-cpu", "x86_64")
    notes = json.loads(run("check", "--update-baseline", "--json").out)["notes"]
    said = f"{target}: run on {here}, not on {arch}: its kernels ran, not the target's"
    assert [note for note in notes if "kernels" in note] == [said]


def test_libraries_that_are_others_than_those_of_the_baseline_are_named(
    run: Run, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "bitswitch_deploy.pipeline.checking.verdicts.library_versions"
    versions = dict(library_versions())
    monkeypatch.setattr(module, lambda: (("numpy", "0.0.1"), ("pillow", versions["pillow"]), ("newer", "1.0")))
    for case in json.loads(run("check", "--json").out)["cases"]:
        said = [note for note in case["notes"] if note.startswith("since the baseline")]
        assert said == [f"since the baseline: numpy {versions['numpy']} -> 0.0.1"]


def test_apple_calls_the_processor_of_arm64_another_name(
    run: Run, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    (repository / "bitswitch.yaml").write_text(CONFIG.replace("[x86-cpu]", "[arm64-cpu]").replace("[8, 2]", "[8]"))
    notes = json.loads(run("check", "--update-baseline", "--json").out)["notes"]
    assert not [note for note in notes if "kernels" in note]


@pytest.mark.parametrize("target", ["x86-cpu", "rtx"])
def test_positions_of_label_255_are_not_judged(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Nor where the data of the check calibrate the graphs as well."""
    text = """net (float[n, 3, 8, 8] x, float[6, 3, 3, 3] "a.weight") => (float[n, 6, 8, 8] y) {
        y = Conv <pads = [1, 1, 1, 1]> (x, "a.weight")
    }"""
    master = build(text, [layer("a", activation="signed")])
    write_master(master, tmp_path / "seg.safetensors")
    x = np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32)
    graph = canonical_graph(master, WidthAssignment(default=8)).model.SerializeToString()
    y = ReferenceSession(graph).run(x).argmax(1).astype(np.int64)
    y[:, :2] = 255
    np.savez(tmp_path / "void.npz", x=x, y=y)
    config = f"masters: [seg.safetensors]\ntargets: [{target}]\nwidths: [8]\nmetric: miou\ndata: void.npz\n"
    (tmp_path / "bitswitch.yaml").write_text(config)
    monkeypatch.chdir(tmp_path)
    recorded = run("check", "--update-baseline")
    assert recorded.code == 0, recorded.err
    (case,) = json.loads(run("check", "--json").out)["cases"]
    assert case["value"] > 95


def test_every_path_starts_from_the_folder_of_the_configuration(
    run: Run, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(bundled_file("targets/x86-cpu.yaml"), repository / "own.yaml")
    text = CONFIG.replace("x86-cpu", "own.yaml").replace("[8, 2]", "[2]") + "baseline: own.json\n"
    (repository / "bitswitch.yaml").write_text(text)
    assert run("check", repository / "bitswitch.yaml", "--update-baseline").code == 0
    assert (repository / "own.json").exists()
    assert not (tmp_path / ".bitswitch-cache").exists()


def _replace(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "bitswitch.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def _other_data(folder: Path) -> None:
    samples = sample_set("digits")
    assert samples is not None
    stored = np.load(samples.test)
    _data(folder / "data.npz", x=stored["x"][N : 2 * N], y=stored["y"][N : 2 * N])


def _labels_of_another_set(folder: Path) -> None:
    _data(folder / "data.npz", y=(np.load(folder / "data.npz")["y"] + 1) % 10)


def _edited(folder: Path) -> None:
    path = folder / BASELINE
    path.write_text(path.read_text().replace('"value": 9', '"value": 8'))


def _not_finite(folder: Path) -> None:
    def huge(tensors: dict[str, Any]) -> None:
        tensors["linear.weight"][:] = 3e38

    _with_tensors(folder / "digits.safetensors", huge)


def _recall_of_a_network_without_threes(folder: Path) -> None:
    _with_tensors(folder / "digits.safetensors", _forget_three)
    (folder / "bitswitch.yaml").write_text(CONFIG + "metric: recall\n")


def _master_of_six_bits(folder: Path) -> None:
    master = read_master(bundled_master())
    spec = replace(master.spec, bits=6, widths=(6, 4, 2), accuracy=())
    tensors = {name: np.asarray(tensor) for name, tensor in master.tensors.items()}
    for quantized in (each for each in spec.layers if not each.pinned):
        codes = tensors[quantized.weight]
        tensors[quantized.weight] = derive_codes(codes, from_bits=8, to_bits=6, rounding=spec.rounding)
        tensors[quantized.input_scale] = tensors[quantized.input_scale][1:]
    tensors |= {name: tensors[name][1:] for name in spec.switchable}
    write_master(assemble_master(spec=spec, tensors=tensors, skeleton=master.skeleton), folder / "digits.safetensors")


CHANGES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], int, str]] = {
    "other data": (_other_data, (), 3, "another data set: data, 200 samples"),
    "other metric": (_replace("data: data.npz", "data: data.npz\nmetric: recall"), (), 3, "another metric: recall"),
    "edited baseline": (_edited, (), 3, "digest is not that of the content"),
    "no baseline": (lambda folder: (folder / BASELINE).unlink(), (), 3, "record it: the same command with --update"),
    "another width": (_replace("[8, 2]", "[8, 4]"), (), 2, "digits x86-cpu w4: not in the baseline"),
    "above the master": (
        _master_of_six_bits,
        (),
        2,
        "widths of digits: 8 bits from a master of 6 bits\n  allowed: 2..6",
    ),
    "unknown key": (_replace("calibration:", "calibraton:"), (), 3, "did you mean calibration?"),
    "unknown target": (_replace("x86-cpu", "x86-cpi"), (), 2, "did you mean 'x86-cpu'?"),
    "no samples": (
        lambda folder: _data(folder / "data.npz", x=np.zeros((0, 8, 8), "u1"), y=[0]),
        (),
        3,
        "at least one",
    ),
    "no labels": (lambda folder: np.savez(folder / "data.npz", x=np.zeros((9, 8, 8), "u1")), (), 3, "without labels"),
    "duplicate ids": (lambda folder: _data(folder / "data.npz", id=[7] * N), (), 3, "first 7 in samples 0 and 1"),
    "not finite": (_not_finite, ("--update-baseline",), 1, "values are not finite"),
    "unfit metric": (_replace("data: data", "metric: miou\ndata: data"), ("--update-baseline",), 3, "metric miou"),
    "class lost": (_recall_of_a_network_without_threes, ("--update-baseline",), 1, "class 3 is never predicted"),
    "never right": (_labels_of_another_set, ("--update-baseline",), 1, "no sample is right"),
    "bad limit": (lambda _: None, ("--max-drop", "-1"), 2, "-1.0 is not in the range x>=0"),
    "no limit": (lambda _: None, ("--max-drop", "nan"), 2, "not a finite number"),
    "no effect": (lambda _: None, ("--effect", "inf"), 2, "not a finite number"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_wrong_is_said_and_nothing_is_overwritten(run: Run, repository: Path, name: str) -> None:
    change, words, code, message = CHANGES[name]
    change(repository)
    path = repository / BASELINE
    before = path.read_bytes() if path.exists() else None
    outcome = run("check", *words)
    assert outcome.code == code, outcome.err
    assert message in outcome.err
    assert (path.read_bytes() if path.exists() else None) == before
    assert not [left for left in repository.iterdir() if "partial" in left.name]
