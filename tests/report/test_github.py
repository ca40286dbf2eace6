from __future__ import annotations

from dataclasses import replace

from bitswitch_deploy.gate.baseline import Case
from bitswitch_deploy.report.github import annotation_lines, step_summary
from tests.report.check_results import CASES, check_result


def test_the_summary_is_a_table_of_the_cases() -> None:
    lines = step_summary(check_result()).splitlines()
    assert lines[0].startswith("### bitswitch-deploy check: 1 regressed, 1 not shown to regress, 1 too few")
    rows = [line for line in lines if line.startswith("| net")]
    assert rows[0] == "| net x86-cpu w8 | 90.00 | 87.50 | +2.50 | 0.03 | :x: regressed |"
    assert rows[2].endswith("| :grey_question: too few samples to tell (about 4,321 would) |")
    assert "- net x86-cpu w8, net x86-cpu w4: another graph of the same master" in lines
    assert all(row.count("|") == 7 for row in rows)


def test_the_summary_of_a_recorded_baseline() -> None:
    recorded = tuple(replace(each, evidence=None, judgement=None, notes=()) for each in CASES)
    text = step_summary(check_result(updated=True, cases=recorded, notes=()))
    assert "Recorded a baseline of 3 cases" in text
    assert "| net x86-cpu w4 | 89.90 |" in text


def test_names_do_not_become_markup() -> None:
    strange = replace(CASES[0], case=Case(master="a|b<img>`*", target="x", width="w8"))
    assert r"| a\|b\<img\>\`\* x w8 |" in step_summary(check_result(cases=(strange,)))


def test_a_case_that_fails_is_an_error_and_one_that_cannot_be_told_a_warning() -> None:
    error, warning = annotation_lines(check_result())
    assert error.startswith("::error title=net x86-cpu w8::regressed: top-1 90.00 -> 87.50")
    assert warning.startswith("::warning title=net x86-cpu w2::too few samples to tell")
    assert [line[:7] for line in annotation_lines(check_result(require_proof=True))] == ["::error", "::error"]
    assert annotation_lines(check_result(cases=CASES[1:2])) == ()


def test_text_does_not_become_commands() -> None:
    strange = replace(CASES[0], case=Case(master="a\n::error::x,y:z", target="100%", width="w8"))
    (line,) = annotation_lines(check_result(cases=(strange,)))
    assert "\n" not in line
    assert line.startswith("::error title=a%0A%3A%3Aerror%3A%3Ax%2Cy%3Az 100%25 w8::")
