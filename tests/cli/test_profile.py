"""`bitswitch-deploy profile` on a real package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitswitch_deploy.tensors import WidthAssignment
from tests.conftest import Run
from tests.pipeline.conftest import export_to


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    widths = tuple(WidthAssignment(default=bits) for bits in (8, 2))
    return export_to(tmp_path_factory.mktemp("cli") / "package", "x86-cpu", widths=widths).package


def test_it_prints_a_page(run: Run, package: Path) -> None:
    outcome = run("profile", package, "--turns", "6", "--threads", "1")
    assert outcome.code == 0
    rows = [line.split()[0] for line in outcome.out.splitlines() if line.startswith("  ") and line.split()]
    assert {"w8", "w2", "float32"} <= set(rows)
    for words in ("Latency in ms, batch 1", "faster than float32", "Layers that take longest", "Board", "Notes"):
        assert words in outcome.out


def test_json_a_file_and_a_budget_that_is_missed(run: Run, package: Path, tmp_path: Path) -> None:
    words = ("profile", package, "--turns", "6", "--widths", "8", "--threads", "1", "--budget", "0.1us", "--json")
    outcome = run(*words, "-o", tmp_path / "p.json", "--report", tmp_path / "p.html")
    assert outcome.code == 1
    document = json.loads(outcome.out)
    assert document["schema"] == "bitswitch-profile/1"
    assert [(each["label"], each["verdict"]) for each in document["budget"]] == [("w8", "failed")]
    assert (tmp_path / "p.json").read_text() == outcome.out
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    for text in ("Accuracy against latency", "blocks.0.conv1", "engine", "--widths 8 --threads 1 --budget 0.1us"):
        assert text in page, text


def test_a_budget_that_is_kept(run: Run, package: Path) -> None:
    outcome = run("profile", package, "--turns", "6", "--widths", "w8", "--threads", "1", "--budget", "1000s")
    assert outcome.code == 0
    assert "ok  w8, batch 1: p95" in outcome.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--budget", "5"), 2, "--budget: '5'"),
        (("--batch", "1,x"), 2, "--batch: '1,x'"),
        (("--batch", "0"), 2, "--batch: '0'"),
        (("--batch", "2,2"), 2, "--batch: '2,2'"),
        (("--duration", "1e306"), 2, "is not in the range 0<x<=86400"),
        (("--threads", "3000000000"), 2, "is not in the range 1<=x<=4096"),
        (("--widths", "3"), 2, "--widths: w3"),
        (("--engine", "none"), 2, "--engine: 'none'"),
        (("--turns", "6", "--duration", "1"), 2, "leave one out"),
        (("--engine", "tensorrt"), 4, "copy the package to the board"),
    ],
)
def test_bad_input(run: Run, package: Path, words: tuple[str, ...], code: int, message: str) -> None:
    outcome = run("profile", package, *words)
    assert outcome.code == code
    assert message in outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize("options", [("-o", "--trace"), ("--latency-table", "--report"), ("-o", "--report")])
def test_two_results_in_one_file_are_refused(run: Run, package: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "same")
    files = (tmp_path / "same", tmp_path / "link")
    outcome = run("profile", package, *(word for pair in zip(options, files) for word in pair))
    assert outcome.code == 2
    assert "a file of its own for each" in outcome.err
    assert not files[0].exists()


def test_a_folder_that_is_no_package(run: Run, tmp_path: Path) -> None:
    assert run("profile", tmp_path).code == 3


def test_an_output_that_cannot_be_written(run: Run, package: Path, tmp_path: Path) -> None:
    outcome = run(
        "profile", package, "--turns", "6", "--widths", "8", "--threads", "1", "-o", tmp_path / "missing" / "p.json"
    )
    assert outcome.code == 3
