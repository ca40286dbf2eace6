from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from bitswitch_deploy.gate.baseline import Case
from bitswitch_deploy.gate.config import Limits
from bitswitch_deploy.report.check_page import print_check
from bitswitch_deploy.report.page import Page
from tests.report.check_results import CASES, check_result


def _page(**changes: Any) -> str:
    stream = io.StringIO()
    print_check(check_result(**changes), Page(stream, 100))
    return stream.getvalue()


def test_one_line_for_each_case() -> None:
    text = _page()
    assert text.startswith("1 regressed, 1 not shown to regress, 1 too few samples to tell\n")
    rows = [line.split() for line in text.splitlines() if line.startswith("  x86-cpu  ")]
    assert rows[0] == ["x86-cpu", "w8", "90.00", "87.50", "+2.50", "+1.50..+3.50", "0.03", "regressed"]
    assert [row[1] for row in rows] == ["w8", "w4", "w2"]
    assert "90 % confidence" in text
    assert "the verdict goes by p" in text
    assert "about 4,321 samples would tell; there are 1,000" in text
    assert "in the baseline and not checked: net x86-cpu w6" in text
    assert "3,000 of 3,000 outcomes were known" in text


def test_it_fits_a_log_of_80_columns() -> None:
    stream = io.StringIO()
    print_check(check_result(), Page(stream))
    assert max(map(len, stream.getvalue().splitlines())) <= 80
    assert "too few samples to tell\n" in stream.getvalue()


def test_several_masters_are_told_apart() -> None:
    other = replace(CASES[0], case=Case(master="other", target="x86-cpu", width="w8"))
    text = _page(cases=(*CASES, other))
    assert any(line.split()[:2] == ["other", "x86-cpu"] for line in text.splitlines())


def test_confidence_follows_alpha_and_an_unknown_bound_is_a_question() -> None:
    evidence = CASES[2].evidence
    assert evidence is not None
    few = replace(CASES[2], evidence=replace(evidence, lower=float("-inf"), upper=float("inf")))
    text = _page(cases=(few,), limits=Limits(alpha=0.01))
    assert "98 % confidence" in text
    assert "?..?" in text


def test_a_recorded_baseline() -> None:
    recorded = tuple(replace(each, evidence=None, judgement=None, notes=()) for each in CASES)
    text = _page(updated=True, cases=recorded, notes=())
    assert text.startswith("Recorded a baseline of 3 cases\n")
    assert any(line.split() == ["net", "x86-cpu", "w4", "89.90", "1,000"] for line in text.splitlines())
