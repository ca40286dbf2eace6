"""`search` from the command line to `export --mixed`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.catalogue import bundled_master, sample_set
from bitswitch_deploy.master import assemble_master, read_master, write_master
from bitswitch_deploy.pipeline.inputs import load_samples
from bitswitch_deploy.search.evaluate import open_session, run_batches
from bitswitch_deploy.tensors import WidthAssignment
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
    other = read_master(bundled_master())
    write_master(
        assemble_master(spec=replace(other.spec, accuracy=()), tensors=other.tensors, skeleton=other.skeleton),
        tmp_path / "other.safetensors",
    )
    words = ("--target", "x86-cpu", "--mixed", output, "--output", tmp_path / "none")
    refused = run("export", "--master", tmp_path / "other.safetensors", *words)
    assert refused.code == 2
    assert "chose for the master with sha256" in refused.err
    assert not (tmp_path / "none").exists()


def test_a_drop_that_the_final_test_exceeds_exits_with_1(run: Run, tmp_path: Path, cache: Path) -> None:
    """The labels of the test are what the highest width says of noisy digits, of which 2 bits are less sure."""
    found = sample_set("digits")
    assert found is not None
    with np.load(found.test) as stored:
        x = np.clip(stored["x"][:300] + np.random.default_rng(3).integers(0, 9, (300, 8, 8)), 0, 16)
    np.savez(tmp_path / "x.npz", x=x)
    master = read_master(bundled_master())
    noisy = load_samples(master, tmp_path / "x.npz", limit=None)
    assert noisy is not None
    said = run_batches(open_session(master, WidthAssignment(default=8)), noisy.source.read(0, 300)).argmax(axis=1)
    np.savez(tmp_path / "test.npz", x=x, y=said)
    only = ("--budget", "avg_bits<=2")
    words = ("--max-drop", 3, "--samples", 100, "--cache", cache, "-o", tmp_path / "a.json", "--json", *only)
    outcome = run("search", "--data", found.train, "--test", tmp_path / "test.npz", *words)
    assert outcome.code == 1
    report = json.loads(outcome.out)
    chosen, drop = report["chosen"], report["drop"]
    assert (report["max_drop"], report["drop_exceeded"]) == (3, True)
    assert drop["low"] < drop["value"] < drop["high"]
    assert chosen["search"]["against_reference"]["points"]["value"] >= -1
    assert (tmp_path / "a.json").exists()
    assert drop["value"] == -chosen["test"]["against_reference"]["points"]["value"] > 3
    words = ("--max-drop", drop["value"], *words[2:])
    within = run("search", "--data", found.train, "--test", tmp_path / "test.npz", *words)
    assert (within.code, json.loads(within.out)["chosen"]["widths"]) == (0, chosen["widths"])


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


def test_a_search_that_is_terminated_leaves_no_worker(tmp_path: Path) -> None:
    words = ("--pareto", "--bits", "8,7,6,5,4,3,2", "--backend", "loky", "--jobs", 2, "--cache", tmp_path / "cache")
    command = [sys.executable, "-m", "bitswitch_deploy", "search", *map(str, words), "-o", str(tmp_path / "a.json")]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], start_new_session=True) as search:
        _wait_for(lambda: any((tmp_path / "cache").glob("??/*.npz")))
        assert len(_processes_of(search.pid)) >= 3
        search.terminate()
        assert search.wait(timeout=60) == 143
    _wait_for(lambda: not _processes_of(search.pid))


def _wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _processes_of(session: int) -> list[int]:
    """Those that live in a session; the sixth word of their state behind the name, which may hold anything."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = path.read_text().rpartition(")")[2].split()
            if words[3] == str(session) and words[0] != "Z":
                found.append(int(path.parent.name))
    return found
