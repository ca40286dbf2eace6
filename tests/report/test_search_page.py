"""The page of a search: what was chosen, its intervals, what was left out, the front, and how to go on."""

from __future__ import annotations

import io

from bitswitch_deploy.report.search_page import print_search
from tests.report.search_results import report


def page() -> str:
    stream = io.StringIO()
    print_search(report(), stream, width=120)
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
        "-6.5 % of the whole at w4",
        "0.04 ms are added to every prediction",
        "- a note",
        "--master 'm [4].safetensors' --target NAME --mixed widths.json",
    ):
        assert part in text


def test_rows_have_their_intervals_and_the_front_its_bars() -> None:
    lines = page().splitlines()
    (chosen,) = [
        line.split() for line in lines if line.split()[:2] == ["mixed", "*"] and "..." not in line and ".." in line
    ]
    assert chosen == ["mixed", "*", "3", "88.75", "85.0", "..", "95.0", "-1.25", "+-0.40", "+2.50", "+-0.40", "0.031"]
    (bar,) = [line for line in lines if line.rstrip().endswith("#")]
    assert bar.split()[:5] == ["mixed", "*", "3", "0.1250", "1.25"]
