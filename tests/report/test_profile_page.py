"""The page of a profile, from results made up."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from bitswitch_deploy.profiling.result import ProfileResult
from bitswitch_deploy.report.page import Page
from bitswitch_deploy.report.profile_page import milliseconds_beside, print_profile, throughput
from tests.profiling.results import candidate
from tests.report.profile_results import RESULT


def page(result: ProfileResult) -> str:
    stream = io.StringIO()
    print_profile(result, Page(stream, 100))
    return stream.getvalue()


def test_every_number_stands_in_its_row() -> None:
    lines = [line.split() for line in page(RESULT).splitlines()]
    assert ["width", "p50", "p90", "p95", "p99", "mean", "CV", "%", "per", "s", "of", "float32", "mJ"] in lines
    assert ["w8", *["1.500"] * 5, "0", "667", "0.75", "2.50"] in lines
    assert ["float32", *["2.000"] * 5, "0", "500", "-", "-"] in lines
    # nodes of a layer are added up, and the reference has no column there
    assert ["body.1", "1.250"] in lines
    assert not any("only_here" in line for line in lines)


def test_what_was_decided_and_seen_is_said() -> None:
    text = page(RESULT)
    for words in (
        "2 threads, arrays in to arrays out",
        "40 of about 50 ms for each, 6 before as warm-up",
        "faster than float32: 0.750 x its time",
        "failed  w8, batch 1: p95 1.500 ms of 1 ms",
        "1.100 of 1.000 ms, +10.0 %",
        "tj 48 to 55",
        "15W",
        "locked",
        "VDD_IN 6.00 W",
        "nothing moved that could be seen",
        "not told      throttling",
        "- a note",
    ):
        assert words in text, words


@pytest.mark.parametrize(
    ("value", "limit", "text"),
    [
        (1.5, 1.0, "1.500"),
        (5.0003, 5.0, "5.0003"),
        (4.9996, 5.0, "5.000"),
        (5.0, 5.0, "5.000"),
        (5 + 1e-12, 5.0, "5.000"),
    ],
)
def test_a_time_above_its_budget_is_not_rounded_to_it(value: float, limit: float, text: str) -> None:
    assert milliseconds_beside(value, limit) == text


@pytest.mark.parametrize(("per_s", "text"), [(1234.5, "1234"), (99.6, "99.6"), (0.3333, "0.333"), (1e5, "100000")])
def test_what_runs_seldom_is_not_rounded_to_nothing(per_s: float, text: str) -> None:
    assert throughput(per_s) == text


def test_an_unstable_result_says_why_and_not_that_it_is_stable() -> None:
    text = page(replace(RESULT, unstable=("temperature tj moved",)))
    assert "UNSTABLE      temperature tj moved" in text
    assert "nothing moved" not in text


def test_without_energy_reference_and_layers_nothing_is_made_up() -> None:
    bare = replace(candidate("w4", p50_ms=1.0), layers=())
    text = page(replace(RESULT, candidates=(bare,), reference_label=None, budget=(), residuals=(), notes=()))
    for words in ("mJ", "Layers", "Budget", "Latency table", "Notes", "faster"):
        assert words not in text
