from __future__ import annotations

import io
from typing import Literal

import pytest

from bitswitch_deploy.report.validation_page import print_validation
from bitswitch_deploy.validation.dataset import DatasetSummary
from bitswitch_deploy.validation.hops import ValidationResult, Verdict

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
    print_validation(RESULT, judged, page)
    lines = page.getvalue().splitlines()
    assert [line for line in lines if line in ("Failed", "Not judged", "Not ok")] == titles
    assert [line for line in lines if "it is" in line] == [f"  w4 engine  it is {title.lower()}" for title in titles]
