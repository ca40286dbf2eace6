"""What a command writes destroys nothing that it reads, nor what is no result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.catalogue import bundled_master
from tests.conftest import Run
from tests.pipeline.conftest import WIDTHS, export_to


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_to(tmp_path_factory.mktemp("once") / "p", "x86-cpu", widths=WIDTHS[:1]).package


@pytest.fixture
def folder(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a package, a master, data, a result and a page."""
    shutil.copytree(exported, tmp_path / "p")
    shutil.copytree(exported, tmp_path / "q")
    (tmp_path / "m.safetensors.index.json").write_text("{}")
    shutil.copy(bundled_master(), tmp_path / "m.safetensors")
    np.savez(tmp_path / "d.npz", x=np.zeros((8, 1, 8, 8), np.float32), y=np.arange(8) % 2)
    (tmp_path / "result.json").write_text("{}")
    (tmp_path / "page.html").write_text("<!doctype html>")
    monkeypatch.chdir(tmp_path)
    return tmp_path


BLAME = ("blame", "p", "--samples", "8")
SEARCH = ("search", "m.safetensors", "--budget", "avg_bits<=4")
REFUSED = {
    "a master": ((*BLAME, "--report", "m.safetensors"), "--report: m.safetensors, which is there and holds something"),
    "its master": (
        (*BLAME, "--master", "m.safetensors", "--report", "./m.safetensors"),
        "--report: m.safetensors, which is the file of --master",
    ),
    "its data": ((*BLAME, "--data", "d.npz", "--report", "d.npz"), "--report: d.npz, which is the file of --data"),
    "other data": (("profile", "p", "-o", "d.npz"), "--output: d.npz, which is there and holds something else"),
    "a graph": (("profile", "p", "-o", "p/digits-w8.onnx"), "--output: p/digits-w8.onnx, a file of a package"),
    "the manifest": ((*BLAME, "--report", "p/manifest.json"), "--report: p/manifest.json, a file of a package"),
    "a graph of another package": (
        (*BLAME, "--report", "q/digits-w8.onnx"),
        "--report: q/digits-w8.onnx, a file of a package",
    ),
    "another manifest": (("profile", "p", "-o", "q/manifest.json"), "--output: q/manifest.json, a file of a package"),
    "a master of several files": (
        (*BLAME, "--report", "m.safetensors.index.json"),
        "--report: m.safetensors.index.json, which is there and holds something else",
    ),
    "a table": (
        (*SEARCH, "-o", "result.json", "--latency-table", "result.json"),
        "--output: result.json, which is the file of --latency-table",
    ),
    "two results": ((*SEARCH, "-o", "a.json", "--report", "a.json"), "--report: a.json, which is the file of --output"),
    "two results of a profile": (
        ("profile", "p", "--trace", "t.json", "-o", "./t.json"),
        "--output: t.json, which is the file of --trace",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_nothing_is_overwritten(run: Run, folder: Path, case: str) -> None:
    command, message = REFUSED[case]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    outcome = run(*command)
    assert (outcome.code, message in " ".join(outcome.err.split())) == (2, True), outcome.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("page", ["page.html", "new.html", "result.json", "empty", "p/new.html"])
def test_results_of_before_are_replaced(run: Run, folder: Path, page: str) -> None:
    (folder / "empty").touch()
    for _ in range(2):
        assert run(*BLAME, "--report", page).code == 0
    assert (folder / page).read_text().lower().startswith("<!doctype html>")


def test_a_loop_of_links_is_refused_as_what_it_is(run: Run, folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    outcome = run("profile", "loop", "--json")
    assert outcome.code == 3
    assert json.loads(outcome.out)["where"] == "loop"


def test_where_the_shell_sends_it_anything_may_be(run: Run, folder: Path) -> None:
    assert run(*BLAME, "--report", "/dev/null").code == 0


def test_a_refusal_is_json_as_well(run: Run, folder: Path) -> None:
    outcome = run(*BLAME, "--report", "m.safetensors", "--json")
    assert json.loads(outcome.out)["where"] == "--report"


@pytest.mark.parametrize("command", ["validate", "blame"])
def test_a_package_is_not_judged_for_another_target(run: Run, folder: Path, command: str) -> None:
    outcome = run(command, "p", "--target", "rtx")
    assert outcome.code == 2
    assert "--target: rtx, and the package is for x86-cpu" in outcome.err


@pytest.mark.parametrize("command", ["build", "profile"])
def test_a_configuration_of_ssh_is_for_another_machine(run: Run, folder: Path, command: str) -> None:
    outcome = run(command, "p", "--ssh-config", "result.json")
    assert (outcome.code, "--ssh-config: result.json, and no other machine" in outcome.err) == (2, True)
