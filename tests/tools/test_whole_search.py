"""The benchmark of whole searches says what it did: which searches, on how much, with what."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import tools.bench.whole_search
from bitswitch_deploy.master import write_master
from bitswitch_deploy.pipeline.searching.search import SearchRequest, search
from bitswitch_deploy.report.search_report import SearchReport
from tests.search.masters import two_blocks
from tools.bench.whole_search import main

N = 160


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A master with two layers to choose widths for, and some samples of noise."""
    random = np.random.default_rng(5)
    write_master(two_blocks(), tmp_path / "tiny.safetensors")
    x = random.normal(size=(N, 2, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "tiny.npz", x=x, y=random.integers(0, 3, N))
    return ["--master", str(tmp_path / "tiny.safetensors"), "--data", str(tmp_path / "tiny.npz"), "--jobs", "1"]


def output(words: list[str]) -> list[str]:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_both_searches_and_what_they_ran_on(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[SearchRequest, SearchReport]] = []

    def watched(request: SearchRequest, *more: object) -> SearchReport:
        assert not request.cache.exists()
        done.append((request, search(request)))
        return done[-1][1]

    monkeypatch.setattr(tools.bench.whole_search, "search", watched)
    budget, front, last = output([*words, "--samples", "64", "--budget", "avg_bits<=5"])
    (one, of_budget), (other, of_front) = done
    found = re.fullmatch(r"avg_bits<=5: \d+ s, (\d+) assignments on all 64 samples", budget)
    assert found is not None, budget
    assert int(found[1]) == of_budget.n_candidates > 1
    found = re.fullmatch(r"front of average bits: \d+ s, (\d+) assignments on all 64 samples", front)
    assert found is not None, front
    assert int(found[1]) == of_front.n_candidates > of_budget.n_candidates
    assert of_budget.samples.n_test == of_front.samples.n_test == N - 64  # the time is that with the final test
    assert [budget.name for budget in of_budget.budgets] == ["avg_bits<=5"]
    assert of_budget.budgets[0].used <= 5
    assert not of_budget.front
    assert of_front.front
    assert one.cache != other.cache
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "scipy", "onnxruntime"))
    machine = re.escape(f"{versions}, Python {sys.version.split()[0]}, seed 0")
    assert re.fullmatch(rf"1 jobs, \w+, {machine}", last)


def test_no_more_samples_than_the_final_test_leaves(words: list[str]) -> None:
    lines = output([*words, "--samples", "2048"])
    assert [line.rpartition(" on ")[2] for line in lines[:2]] == [f"all {N // 2} samples"] * 2


@pytest.mark.parametrize("extra", [[], ["--cifar10", "x", "--data", "y"]])
def test_one_source_of_data_is_asked_for(words: list[str], extra: list[str]) -> None:
    done = CliRunner().invoke(main, [*words[:2], *extra])
    assert done.exit_code == 2
    assert "name --data or --cifar10" in done.stderr
