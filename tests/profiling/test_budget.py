from __future__ import annotations

import pytest

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.profiling.budget import judge_budget, parse_latency_budget
from tests.profiling.results import candidate


@pytest.mark.parametrize(
    ("text", "ms"),
    [("5ms", 5.0), ("0.005s", 5.0), ("800us", 0.8), (" 2.5 MS ", 2.5), ("33µs", 0.033), (".5ms", 0.5), ("1s", 1000.0)],
)
def test_a_budget_has_a_unit(text: str, ms: float) -> None:
    assert parse_latency_budget(text) == pytest.approx(ms)


@pytest.mark.parametrize(
    "text", ["5", "ms", "5 minutes", "-5ms", "0ms", "nan ms", "1e3ms", "5ms5ms", "", "9" * 400 + "ms"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--budget(.|\n)*write for example --budget 5ms"):
        parse_latency_budget(text)


def test_the_p95_decides() -> None:
    fast, slow = candidate("w8", p50_ms=1.0, p95_ms=5.0), candidate("w4", p50_ms=1.0, p95_ms=5.001)
    verdicts = judge_budget([fast, slow], 5.0)
    assert [(each.label, each.verdict) for each in verdicts] == [("w8", "ok"), ("w4", "failed")]
    assert judge_budget([fast, slow], None) == ()
