"""`search` from the command line to `export --mixed`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitswitch_deploy.catalogue import bundled_master
from tests.conftest import Run


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_the_assignment_goes_straight_into_export(run: Run, tmp_path: Path, cache: Path) -> None:
    output = tmp_path / "widths.json"
    searched = run("search", "--budget", "avg_bits<=3", "--samples", 100, "--cache", cache, "-o", output)
    assert searched.code == 0
    assert "Final test, top-1 in % on 600 samples" in searched.out
    assert f"--mixed {output}" in searched.out
    package = tmp_path / "package"
    exported = run("export", "--target", "x86-cpu", "--mixed", output, "--output", package, "--json")
    assert exported.code == 0
    assert [row["label"] for row in json.loads(exported.out)["widths"]] == ["mixed"]


def test_json_and_the_front(run: Run, tmp_path: Path, cache: Path) -> None:
    words = ("--samples", 100, "--cache", cache, "--bits", "8,4,2", "--jobs", 1)
    page = tmp_path / "front.html"
    plain = run("search", "--pareto", *words, "-o", tmp_path / "a.json", "--report", page)
    assert plain.code == 0
    assert "Front over avg_bits, dear to cheap" in plain.out
    assert "top-1 in %, final test against avg_bits" in page.read_text(encoding="utf-8")
    report = json.loads(run("search", "--pareto", *words, "-o", tmp_path / "a.json", "--json").out)
    assert report["schema"] == "bitswitch-search/1"
    assert {bits for each in report["front"] for _, bits in each["widths"]} <= {8, 4, 2}
    assert report["max_drop"] == 1.0
    assert report["swept"] == "avg_bits"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--budget", "avg_bits<=1"), 2, "2 or more"),
        (("--budget", "speed<=1"), 2, "not a budget"),
        (("--budget", "avg_bits<=4", "--bits", "9"), 2, "different widths in 2..8"),
        (("--budget", "avg_bits<=4", "--backend", "cluster"), 2, "cluster"),
        (("--budget", "avg_bits<=4", "--data", "none.npz"), 3, "does not exist"),
        (("none.safetensors",), 3, "none.safetensors"),
    ],
)
def test_mistakes_have_their_exit_codes(
    run: Run, tmp_path: Path, cache: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    outcome = run("search", *words, "--cache", cache, "-o", tmp_path / "a.json")
    assert outcome.code == code
    assert message in outcome.err
    assert not (tmp_path / "a.json").exists()


def test_the_master_is_never_overwritten(run: Run, tmp_path: Path, cache: Path) -> None:
    copy = tmp_path / "digits.safetensors"
    copy.write_bytes(bundled_master().read_bytes())
    outcome = run(
        "search", copy, "--budget", "avg_bits<=4", "--reestimate", "--cache", cache, "-o", tmp_path / "digits.json"
    )
    assert outcome.code == 2
    assert "the master would be overwritten" in outcome.err
    assert copy.read_bytes() == bundled_master().read_bytes()
