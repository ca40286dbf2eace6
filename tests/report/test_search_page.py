"""The page of a search: what was chosen, its intervals, what was left out, the front, and how to go on."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from bitswitch_deploy.report.html.search import search_html
from bitswitch_deploy.report.page import Page
from bitswitch_deploy.report.search_page import print_search, search_notes
from bitswitch_deploy.report.search_report import BudgetUse
from bitswitch_deploy.search.statistics import Interval
from tests.report.search_results import report


def page() -> str:
    stream = io.StringIO()
    print_search(report(), Page(stream, 120))
    return stream.getvalue()


def test_everything_that_matters_is_on_it() -> None:
    text = " ".join(page().split())
    for part in (
        "Searched 2 layers: mixed written to widths.json",
        "7 left out, the search has seen them",
        "rank correlation with what was measured: 0.93",
        "12 measured, 1 improving moves",
        "Final test, top-1 in % on 100 samples that the search has not seen",
        "2 of 2 layers: a, b",
        "latency table of rtx, measured with batches of 16: 1.5 ms predicted for mixed.",
        "-6.5 % of the whole at w4",
        "`export` with `--bits 8,4` beside `--mixed`, then `bitswitch-deploy profile PACKAGE --latency-table NEW`",
        "0.04 ms are added to every prediction",
        "times of one layer that are within 5 % or a microsecond of each other count as one, their mean, as do 3 of 4",
        "- a note",
        "export --target NAME --master 'm [4].safetensors' --mixed widths.json --data 'my test.npz'",
    ):
        assert part in text


@pytest.mark.parametrize(("threads", "said"), [(1, "1 thread"), (4, "4 threads")])
def test_the_threads_of_a_latency_table_are_said(threads: int, said: str) -> None:
    (check,) = report().table_checks
    (note, *_) = search_notes(replace(report(), table_checks=(replace(check, batch_size=1, threads=threads),)))
    assert note.startswith(f"latency table of rtx, measured with batches of 1 and {said}: 1.5 ms")


def test_a_latency_table_that_is_not_of_one_measurement_is_said_first() -> None:
    (check,) = report().table_checks
    notes = search_notes(replace(report(), table_checks=(replace(check, unstable=("it was hot", "it was busy")),)))
    assert notes[:2] == [f"latency table of rtx: UNSTABLE, it was {what}" for what in ("hot", "busy")]
    assert notes[2].startswith("latency table of rtx, measured with")


@pytest.mark.parametrize(
    ("limit", "exceeded", "verdict"),
    [(1.0, True, "EXCEEDED"), (1.5, False, "kept, though the interval reaches beyond it"), (2.0, False, "kept")],
)
def test_a_limit_of_the_drop_stands_beside_what_was_lost(limit: float, exceeded: bool, verdict: str) -> None:
    found = replace(report(), max_drop=limit, drop_exceeded=exceeded)
    stream = io.StringIO()
    print_search(found, Page(stream, 200))
    said = f"1.25 points (+0.85 .. +1.65) against w8 in the final test, limit {limit:g}: {verdict}"
    assert f"drop  {said}\n" in stream.getvalue()
    assert ("which loses more than --max-drop" in stream.getvalue().splitlines()[0]) is exceeded
    bad = ' class="bad"' if exceeded else ""
    assert f"<dt>drop</dt><dd{bad}>{said}</dd>" in search_html(found)
    assert "limit" not in page().split("Budgets")[0]


def test_rows_have_their_intervals_and_the_front_its_bars() -> None:
    lines = page().splitlines()
    (chosen,) = [
        line.split() for line in lines if line.split()[:2] == ["mixed", "*"] and "..." not in line and ".." in line
    ]
    assert chosen == ["mixed", "*", "3", "88.75", "85.0", "..", "95.0", "-1.25", "+-0.40", "+2.50", "+-0.40", "0.031"]
    (bar,) = [line for line in lines if line.rstrip().endswith("#")]
    assert bar.split()[:5] == ["mixed", "*", "3", "0.1250", "1.25"]


def test_no_number_is_cut_off_in_a_log_of_80_columns() -> None:
    """The longest names and numbers there are: a bar of the front may go, digits may not."""
    found = report()
    uses = (("latency_p50_ms@jetson-orin-nano", 1.234567), ("bops", 12_345_678_901.0), ("avg_bits", 3.714286))
    (check,) = found.table_checks
    interval = Interval(value=-12.34, low=-23.45, high=-1.23)
    measured = replace(
        found.chosen.search,
        right_percent=Interval(value=87.65, low=76.5, high=98.7),
        against_reference=replace(found.chosen.search.against_reference, points=interval, p_value=1.2e-17),
        against_uniform=replace(found.chosen.search.against_reference, points=interval, p_value=1.2e-17),
    )
    chosen = replace(found.chosen, uses=uses, test=measured)
    budgets = tuple(
        BudgetUse(name=name, used=use, limit=12_345_678_901, minimum=1_234_567_890)
        for name, use in (("latency_p50_ms<=12.34@jetson-orin-nano", 1.234567), ("bops<=12.345678901G", 12_345_678_901))
    )
    samples = replace(found.samples, labelled=False)
    stream = io.StringIO()
    found = replace(found, chosen=chosen, uniform=(chosen, chosen), budgets=budgets, samples=samples)
    print_search(replace(found, table_checks=(replace(check, target="jetson-orin-nano"),)), Page(stream))
    lines = [line.split() for line in stream.getvalue().splitlines()]
    first = ["1.235", "87.65", "76.5", "..", "98.7", "-12.34", "+-11.11", "-12.34", "+-11.11", "1.2e-17"]
    assert [line[2:] for line in lines if line[:2] == ["mixed", "*"] and ".." in line] == [first]
    assert ["12,345,678,901", "12,345,678,901", "1,234,567,890"] in [line[-3:] for line in lines]
    assert ["p50", "ms", "same", "95", "%", "against", "w8", "against", "w2", "p"] in lines


def test_a_uniform_width_that_was_chosen_stands_there_once() -> None:
    stream = io.StringIO()
    print_search(replace(report(), chosen=report().uniform[1], front=()), Page(stream))
    rows = stream.getvalue().split("Final test")[1].split("chosen;")[0].splitlines()
    assert [line.split()[0] for line in rows if ".." in line] == ["w2", "w8"]


def test_a_hash_stands_beside_its_own_file() -> None:
    stream = io.StringIO()
    print_search(replace(report(), reestimated=True), Page(stream))
    text = " ".join(stream.getvalue().split())
    assert f"sha256 {'a' * 12}; with the statistics of this assignment: m [4].safetensors" in text
