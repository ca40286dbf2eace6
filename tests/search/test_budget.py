"""What may stand behind --budget."""

from __future__ import annotations

from fractions import Fraction

import pytest

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.search.budget import parse_budget


@pytest.mark.parametrize(
    ("text", "resource", "limit", "target"),
    [
        ("avg_bits<=4", "avg_bits", Fraction(4), None),
        ("avg_weight_bits <= 3.5", "avg_weight_bits", Fraction(7, 2), None),
        ("bytes<=200k", "bytes", Fraction(200_000), None),
        ("bytes<=1.5M@rtx", "bytes", Fraction(1_500_000), "rtx"),
        ("bops<=5G", "bops", Fraction(5 * 10**9), None),
        ("latency_p50_ms<=0.9@jetson-orin-nano", "latency_p50_ms", Fraction(9, 10), "jetson-orin-nano"),
    ],
)
def test_budgets(text: str, resource: str, limit: Fraction, target: str | None) -> None:
    budget = parse_budget(text)
    assert (budget.resource, budget.limit, budget.target) == (resource, limit, target)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("avg_bits<4", "not a budget"),
        ("avg_bits<=-1", "not a budget"),
        ("avg_bits<=nan", "not a budget"),
        ("avg_bits<=1e9", "not a budget"),
        ("speed<=4", "not a budget"),
        ("", "not a budget"),
        ("bytes<=" + "9" * 400, "not a budget"),
        ("avg_bits<=4@rtx", "the same on every target"),
        ("latency_p50_ms<=1", "a latency without its target"),
    ],
)
def test_what_is_no_budget(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_budget(text)
