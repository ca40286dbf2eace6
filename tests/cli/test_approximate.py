"""`export --approximate`: what it takes, what it refuses, and that the package says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitswitch_deploy.catalogue import bundled_file
from tests.conftest import Run

BOTH = ("--approximate", "pinned-layers", "--approximate", "full-resolution")
X86 = ("export", "--target", "x86-cpu", "--bits", "4")


def test_approximations_are_tried_and_named(run: Run, tmp_path: Path) -> None:
    outcome = run(*X86, *BOTH, "--min-agreement", "50", "--output", tmp_path / "p", "--json")
    assert outcome.code == 0
    (row,) = json.loads(outcome.out)["widths"]
    assert row["exact"] is False
    text = "\n".join(row["changes"])
    assert "8-bit weights and inputs after training" in text
    assert "trained range in 256 steps" in text
    assert "approximations: full-resolution, pinned-layers" in text
    assert "% agreement on 600 samples" in text


def test_without_them_neither_is_tried(run: Run, tmp_path: Path) -> None:
    outcome = run(*X86, "--output", tmp_path / "p", "--json")
    text = "\n".join(json.loads(outcome.out)["widths"][0]["changes"])
    assert "pinned-layers" not in text
    assert "full-resolution" not in text


def test_an_agreement_that_nothing_reaches_leaves_the_exact_graph(run: Run, tmp_path: Path) -> None:
    words = ("--approximate", "full-resolution", "--min-agreement", "100", "--bits", "2", "--output", tmp_path / "p")
    outcome = run(*X86, *words, "--json")
    assert outcome.code == 0
    (row,) = json.loads(outcome.out)["widths"]
    text = "\n".join(row["changes"])
    assert "without full-resolution" in text
    assert "100 % is the limit (--min-agreement)" in text
    assert [hop["agreement_percent"] for hop in row["hops"][2:]] == [100.0, 100.0]


def test_the_manifest_has_the_command_that_makes_it_again(run: Run, tmp_path: Path) -> None:
    assert run(*X86, *BOTH, "--min-agreement", "90.5", "--output", tmp_path / "p").code == 0
    command = json.loads((tmp_path / "p" / "manifest.json").read_text())["command"]
    assert command == [
        *("bitswitch-deploy", "export", "--target", "x86-cpu@ort-1.23", "--bits", "4"),
        *("--max-drop", "1.0", "--min-agreement", "90.5"),
        *BOTH,
    ]
    assert run(*command[1:], "--output", tmp_path / "q").code == 0
    (graph,) = (tmp_path / "p").glob("*.onnx")
    assert graph.read_bytes() == (tmp_path / "q" / graph.name).read_bytes()


def test_with_strict_it_is_refused(run: Run, tmp_path: Path) -> None:
    outcome = run(*X86, *BOTH, "--strict", "--output", tmp_path / "p")
    assert outcome.code == 2
    assert "--approximate: full-resolution, pinned-layers with --strict" in outcome.err
    assert "leave out one of the two options" in outcome.err
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("target", ["jetson", "jetson-xavier-nx", "rtx"])
def test_a_target_without_the_pass_refuses(run: Run, tmp_path: Path, target: str) -> None:
    outcome = run("export", "--target", target, "--approximate", "pinned-layers", "--output", tmp_path / "p")
    assert outcome.code == 2
    assert "--approximate: pinned-layers for target " in outcome.err
    assert "allowed: none\n  do: leave it out, or choose another target" in outcome.err
    assert not (tmp_path / "p").exists()


def test_a_refusal_names_what_the_target_has_no_use_for(run: Run, tmp_path: Path) -> None:
    text = bundled_file("targets/x86-cpu.yaml").read_text()
    (tmp_path / "own.yaml").write_text(text.replace("FillContainer, ", ""))
    outcome = run("export", "--target", tmp_path / "own.yaml", *BOTH, "--output", tmp_path / "p")
    assert outcome.code == 2
    assert "error: --approximate: full-resolution for target x86-cpu\n" in outcome.err
    assert "do: choose one of these, or another target" in outcome.err


def test_an_agreement_to_keep_is_refused_where_nothing_is_approximated(run: Run, tmp_path: Path) -> None:
    outcome = run(*X86, "--strict", "--min-agreement", "99.9", "--output", tmp_path / "p")
    assert outcome.code == 2
    assert "--min-agreement: 99.9 with --strict" in outcome.err
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("name", ["everything", "rounded-bias", "residual-codes", "elementwise-codes"])
def test_other_names_are_refused_with_the_known_ones(run: Run, name: str) -> None:
    """The usual approximations are tried anyway: there is nothing to ask for."""
    outcome = run(*X86, "--approximate", name)
    assert outcome.code == 2
    assert "'pinned-layers', 'full-resolution'" in outcome.err


@pytest.mark.parametrize("percent", ["-1", "100.5", "many"])
def test_agreement_is_a_percentage(run: Run, percent: str) -> None:
    outcome = run(*X86, "--min-agreement", percent)
    assert outcome.code == 2
    assert "--min-agreement" in outcome.err
