"""The pages of `check`, `profile` and `search`: complete, the same again, and honest where something is missing."""

from __future__ import annotations

import re
from dataclasses import replace

from bitswitch_deploy.profiling.statistics import Ratio
from bitswitch_deploy.report.export_report import ExportReport
from bitswitch_deploy.report.html.check import check_html
from bitswitch_deploy.report.html.export import ExportContent, export_html
from bitswitch_deploy.report.html.profile import profile_html
from bitswitch_deploy.report.html.search import search_html
from tests.profiling.results import candidate
from tests.report.check_results import CASES, check_result
from tests.report.html.drawings import dots, drawings
from tests.report.profile_results import RESULT
from tests.report.search_results import report as search_report

COMMAND = ("bitswitch-deploy", "check", "my file")
SLOW = Ratio(reference="float32", value=1.5, low=1.4, high=1.6, confidence=0.96, turns=40)
WHY = "no faster than float32: 1.500 x its time (1.400 to 1.600), because 2 of 3 layers run in float"


def cells(page: str, first: str) -> list[list[str]]:
    """Texts of the rows that begin with `first`."""
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    texts = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    return [row for row in texts if row[0] == first]


def test_a_check_has_verdicts_intervals_p_and_what_would_tell() -> None:
    page = check_html(check_result(), COMMAND)
    verdict, evidence = cells(page, "net x86-cpu w8")
    assert verdict[1:] == ["regressed", "+2.50", "+1.50", "+3.50", "0.03", "1000", "-"]
    undecided, _ = cells(page, "net x86-cpu w2")
    assert undecided[1] == "too few samples to tell"
    assert undecided[-2:] == ["1000", "4321"]
    assert evidence[1:] == ["engine", "90.00", "87.50", "30", "5", "0.01", "0.2", "10.00", "100.00", "McNemar"]
    for text in (
        "<h1>1 regressed, 1 not shown to regress, 1 too few samples to tell</h1>",
        'class="bad">regressed',
        "<strong>all</strong> in the baseline and not checked: net x86-cpu w6",
        "<strong>net x86-cpu w8, net x86-cpu w4</strong> another graph of the same master",
        "bitswitch-deploy check &#39;my file&#39;",
    ):
        assert text in page, text
    (chart,) = drawings(page)
    assert list(chart.dots()) == [
        "net x86-cpu w8: 2.5 (1.5 to 3.5)",
        "net x86-cpu w4: 0.1 (-0.9 to 1.1)",
        "net x86-cpu w2: 0.3 (-0.7 to 1.3)",
    ]
    # what may be lost and what is not missed, from top to bottom
    assert [line[0][0] for line in chart.lines("mark")] == [chart.ticks("axis x")["0"][0], chart.at("axis x", 1.0)]
    assert check_html(check_result(seconds=99.0), COMMAND) == page


def test_a_check_with_nothing_to_say_and_one_that_recorded() -> None:
    same = tuple(replace(each, notes=()) for each in CASES[:2])
    assert "every case of the baseline was compared" in check_html(check_result(cases=same, notes=()))
    recorded = tuple(replace(each, evidence=None, judgement=None, notes=()) for each in CASES)
    page = check_html(check_result(cases=recorded, updated=True, notes=()))
    assert cells(page, "net x86-cpu w8")[0][1:] == ["engine", "87.50", "1000"]
    assert "was compared" not in page
    assert drawings(page) == []


def test_bounds_that_too_few_samples_leave_open() -> None:
    evidence = CASES[0].evidence
    assert evidence is not None
    infinite = replace(CASES[0], evidence=replace(evidence, lower=-float("inf"), upper=float("inf")))
    page = check_html(check_result(cases=(infinite,)))
    assert cells(page, "net x86-cpu w8")[0][3:5] == ["?", "?"]
    (chart,) = drawings(page)
    ((start, end),) = chart.lines("interval")
    ticks = list(chart.ticks("axis x").values())
    assert (start[0], end[0]) == (ticks[0][0], ticks[-1][0])


def test_a_profile_has_spread_interval_reason_layers_board_and_front(report: ExportReport) -> None:
    slow = candidate("w2", p50_ms=3.0, ratio=SLOW, verdict=WHY)
    result = replace(RESULT, candidates=(*RESULT.candidates, slow), unstable=("temperature tj moved",))
    page = profile_html(result, report, COMMAND)
    for text in (
        f"<strong>w2</strong> {WHY}",
        "<strong>w8</strong> faster than float32: 0.750 x its time",
        "<strong>unstable</strong> temperature tj moved",
        "unstable: see Board",
        "40 of about 50 ms for each, 6 before as warm-up",
        "<dt>power mode</dt><dd>15W</dd>",
        "the float reference was not validated and has no dot",
        'class="bad">failed',
        "<li>a note</li>",
    ):
        assert text in page, text
    times, front = cells(page, "w8")[0], cells(page, "w8")[1]
    assert times[1:] == [*["1.500"] * 7, "0", "667", "100", "0.750", "0.700", "0.800", "2.50"]
    # Wilson of 922 in 1000
    assert front[1:] == ["lowered", "92.15", "90.37", "93.71", "1.500"]
    # w8 is faster and better than w2
    assert dots(page)[-1] == "w8: 92.2 (90.37 to 93.71) at 1.5"
    assert dots(page, "off") == ["w2: 88.9 (86.8 to 90.7) at 3"]
    assert len(dots(page)) == 3 + 2 + 1
    assert cells(page, "body.1") == [["body.1", "1.2500"]]
    assert "only_here" not in page


def test_a_profile_of_a_package_without_accuracy_and_without_reference() -> None:
    bare = replace(candidate("w4", p50_ms=1.0), layers=())
    result = replace(RESULT, candidates=(bare,), reference_label=None, budget=(), residuals=(), notes=())
    page = profile_html(result, None)
    assert "the package holds no accuracy of these widths" in page
    assert "nothing moved that was seen" in page
    for name in ("budget", "layers", "table", "notes", "again"):
        assert f'id="{name}"' not in page
    assert "multiple of" not in page


def test_a_search_has_its_front_its_test_and_how_to_go_on() -> None:
    page = search_html(search_report(), ("bitswitch-deploy", "search", "--pareto"))
    chosen, *_ = cells(page, "mixed, chosen")
    assert chosen[1:] == ["3", "1.5", "88.75", "85.00", "95.00", "-1.25", "+2.50", "0.031", "0.1250", "yes"]
    assert cells(page, "w2")[0][-1] == "no"
    # w8 at 8 bits 90.00, mixed at 3 bits 88.75, w2 at 2 bits 86.25: all of them on the front
    assert dots(page) == ["mixed, chosen: 88.75 (85 to 95) at 3", "w8: 90 (85 to 95) at 8", "w2: 86.25 (85 to 95) at 2"]
    assert dots(page, "off") == []
    assert "w2 (86.25 at 2), mixed, chosen (88.75 at 3), w8 (90.00 at 8)" in page
    for text in (
        "avg_bits&lt;=4",
        "--mixed widths.json",
        "a note",
        "-6.5 % of the whole at w4",
        "bitswitch-deploy search",
    ):
        assert text in page, text
    assert search_html(replace(search_report(), seconds=99.0), ("bitswitch-deploy", "search", "--pareto")) == page


def test_a_search_without_a_sweep() -> None:
    page = search_html(replace(search_report(), front=(), swept="", budgets=()))
    assert cells(page, "mixed, chosen")[0][-1] == "not swept"
    assert 'id="budgets"' not in page


def test_the_front_of_bytes_of_an_export(report: ExportReport) -> None:
    rows = tuple(replace(row, size_bytes=size) for row, size in zip(report.widths, (300_000, 100_000)))
    shared = replace(report, widths=rows, shared_weights="w.bin", shared_bytes=100_000)
    page = export_html(ExportContent(title="a", report=shared))
    assert "w2 (88.90 at 200), w8 (92.20 at 400)" in page
    assert "kB with the shared weights" in page
