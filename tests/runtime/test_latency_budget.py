"""The policy on simulated devices: it reaches the highest width within the budget, follows load, and does not flap."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.runtime import LatencyBudget

WIDTHS = ("w8", "w6", "w4", "w2", "mixed")
COST_MS = {"w8": 12.0, "w6": 10.0, "w4": 6.0, "w2": 4.0}
WINDOW = 40


def simulate(
    policy: LatencyBudget, requests: int, load: Callable[[int], float] = lambda _: 1.0, *, noise: float = 0.05
) -> list[str]:
    """Serve requests whose latency is that of their width times a load, with noise; give the widths chosen."""
    rng = np.random.default_rng(5)
    chosen = ["w8"]
    for index in range(requests):
        width = policy.choose(WIDTHS, chosen[-1])
        policy.observe(width, COST_MS[width] * load(index) * float(rng.normal(1.0, noise)))
        chosen.append(width)
    return chosen[1:]


def changes(chosen: list[str]) -> int:
    return sum(before != after for before, after in pairwise(chosen))


@pytest.mark.parametrize(("budget_ms", "expected"), [(20.0, "w8"), (11.5, "w6"), (9.0, "w4"), (5.0, "w2")])
def test_it_settles_at_the_highest_width_within_the_budget(budget_ms: float, expected: str) -> None:
    chosen = simulate(LatencyBudget(budget_ms, window=WINDOW), 4000)
    assert chosen[-1] == expected or chosen[-WINDOW * 2 :].count(expected) > WINDOW
    assert chosen.count(expected) > 0.8 * len(chosen)


def test_a_few_slow_requests_change_nothing() -> None:
    """One in forty is 2.5 %, below the 5 % that the 95th percentile leaves out."""
    chosen = simulate(LatencyBudget(20.0, window=WINDOW), 2000, lambda index: 10.0 if index % 40 == 7 else 1.0)
    assert set(chosen) == {"w8"}


def test_too_many_slow_requests_are_acted_on_within_a_window() -> None:
    policy = LatencyBudget(20.0, window=WINDOW)
    chosen = simulate(policy, 300, lambda index: 2.0 if index >= 100 else 1.0)
    first = chosen.index("w6")
    assert 100 < first <= 100 + WINDOW


def test_it_follows_the_load_down_and_up_again() -> None:
    policy = LatencyBudget(14.0, window=WINDOW)
    chosen = simulate(policy, 6000, lambda index: 2.0 if 1000 <= index < 2000 else 1.0)
    assert set(chosen[:1000]) == {"w8"}
    assert set(chosen[1500:2000]) <= {"w4", "w2", "w6"}
    assert chosen[1900:2000].count("w4") > 50
    assert chosen[-1] == "w6" or chosen[-1] == "w8"


def test_a_width_that_served_well_is_tried_as_soon_after_the_next_peak() -> None:
    ends = [1200 + 5000 * index for index in range(4)]
    policy = LatencyBudget(20.0, window=WINDOW)
    chosen = simulate(
        policy, ends[-1] + 4000, lambda index: 2.8 if any(end - 200 <= index < end for end in ends) else 1.0
    )
    waits = [chosen.index("w8", end) - end for end in ends]
    assert all(wait > 0 for wait in waits)
    assert max(waits) <= waits[0] + WINDOW


def test_it_does_not_flap_where_a_higher_width_never_fits() -> None:
    """w4 leaves so much room that w6 is tried again and again, and w6 never fits: tries become rare."""
    requests = 40_000
    chosen = simulate(LatencyBudget(8.0, window=WINDOW), requests)
    # down from w8 and w6, then up and down once for each doubling of the wait
    doublings = np.log2(requests / WINDOW)
    assert changes(chosen) <= 2 + 2 * doublings
    assert chosen.count("w4") > 0.97 * requests


def test_a_latency_between_the_two_thresholds_holds_the_width() -> None:
    """w6 takes 10 ms in a budget of 11.5: too slow for a step up (9.2), fast enough to stay."""
    chosen = simulate(LatencyBudget(11.5, window=WINDOW), 3000, noise=0.01)
    assert changes(chosen) == 1
    assert chosen[-1] == "w6"


def test_a_budget_that_no_width_meets_is_said_once_and_served_at_the_lowest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = LatencyBudget(1.0, window=WINDOW)
    with caplog.at_level(logging.WARNING):
        chosen = simulate(policy, 2000)
    assert chosen[-1] == "w2"
    assert not policy.is_met
    (record,) = caplog.records
    assert "latency budget of 1 ms: w2, the lowest width, misses it at the 95th percentile" in record.getMessage()


def test_a_budget_that_is_met_again_is_said_to_be() -> None:
    policy = LatencyBudget(5.0, window=WINDOW)
    simulate(policy, 1000, lambda _: 3.0)
    assert not policy.is_met
    simulate(policy, 1000)
    assert policy.is_met


def test_requests_of_another_width_do_not_count() -> None:
    policy = LatencyBudget(20.0, window=WINDOW)
    assert policy.choose(WIDTHS, "w8") == "w8"
    for _ in range(500):
        policy.observe("w6", 1000.0)
    assert policy.choose(WIDTHS, "w8") == "w8"
    assert policy.is_met


def test_a_width_that_is_gone_is_left() -> None:
    policy = LatencyBudget(20.0, window=WINDOW)
    assert policy.choose(WIDTHS, "w8") == "w8"
    assert policy.choose(WIDTHS[1:], "w6") == "w6"


def test_widths_can_be_named() -> None:
    policy = LatencyBudget(8.0, window=WINDOW, widths=("w8", "mixed", "w2"))
    assert policy.choose(WIDTHS, "w8") == "w8"
    for _ in range(WINDOW):
        policy.observe("w8", 12.0)
    assert policy.choose(WIDTHS, "w8") == "mixed"


@pytest.mark.parametrize(
    "arguments", [{"budget_ms": 0.0}, {"budget_ms": float("nan")}, {"budget_ms": 5.0, "window": 19},
                  {"budget_ms": 5.0, "relax": 1.0}]
)  # fmt: skip
def test_numbers_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="allowed: a positive budget, a window of 20 or more"):
        LatencyBudget(**arguments)  # type: ignore[arg-type]
