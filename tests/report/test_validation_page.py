from __future__ import annotations

import io
from typing import Literal

import pytest

from bitswitch_deploy.report.page import Page
from bitswitch_deploy.report.validation_page import _cells, print_validation
from bitswitch_deploy.validation.dataset import DatasetSummary
from bitswitch_deploy.validation.hops import HopResult, ValidationResult, Verdict, WidthResult

RESULT = ValidationResult(dataset=DatasetSummary(name="digits", sha256="ab" * 32, n=9, labelled=True), widths=())


@pytest.mark.parametrize(
    ("verdicts", "titles"),
    [
        (("ok",), []),
        (("ok", "not judged"), ["Not judged"]),
        (("not judged", "failed", "ok"), ["Failed", "Not judged"]),
    ],
)
def test_what_failed_is_told_from_what_is_not_judged(
    verdicts: tuple[Literal["ok", "failed", "not judged"], ...], titles: list[str]
) -> None:
    page = io.StringIO()
    judged = [
        Verdict(label="w4", hop="engine", verdict=verdict, drop_points=None, reason=f"it is {verdict}")
        for verdict in verdicts
    ]
    print_validation(RESULT, judged, Page(page))
    lines = page.getvalue().splitlines()
    assert [line for line in lines if line in ("Failed", "Not judged", "Not ok")] == titles
    assert [line for line in lines if "it is" in line] == [f"  w4 engine  it is {title.lower()}" for title in titles]


def test_the_table_has_a_line_for_each_hop() -> None:
    hops = (
        HopResult(label="w4", hop="trained", note="not recorded"),
        HopResult(label="w4", hop="canonical", top1_percent=70.0, n=9),
        HopResult(label="w4", hop="lowered", top1_percent=61.5, agreement_percent=99.998, max_abs_error=0.25, n=9),
    )
    result = ValidationResult(dataset=RESULT.dataset, widths=(WidthResult(label="w4", bits=4, hops=hops),))
    failed = Verdict(label="w4", hop="lowered", verdict="failed", drop_points=8.5, reason="too low")
    page = io.StringIO()
    print_validation(result, [failed], Page(page))
    lines = [line.split() for line in page.getvalue().splitlines() if line.strip().startswith("w4")]
    # the reason follows the table
    assert lines == [
        ["w4", "trained", "-", "-", "-"],
        ["w4", "canonical", "70.00", "-", "-"],
        ["w4", "lowered", "61.50", "99.99", "0.25", "failed"],
        ["w4", "lowered", "too", "low"],
    ]
    assert _cells(hops[2], failed)[0] == ("w4", "bold red")
    assert _cells(hops[1], None)[0] == ("w4", "")
