"""The policy on simulated devices: it reaches the highest width within the budget, follows load, and does not flap."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.runtime import LatencyBudget

WIDTHS = ("w8", "w6", "w4", "w2", "mixed")
COST_MS = {"w8": 12.0, "w6": 10.0, "w4": 6.0, "w2": 4.0}
WINDOW = 40


def simulate(
    policy: LatencyBudget,
    requests: int,
    load: Callable[[int], float] = lambda _: 1.0,
    *,
    noise: float = 0.05,
    cost_ms: Mapping[str, float] = COST_MS,
) -> list[str]:
    """Serve requests whose latency is that of their width times a load, with noise; give the widths chosen."""
    rng = np.random.default_rng(5)
    chosen = ["w8"]
    for index in range(requests):
        width = policy.choose(WIDTHS, chosen[-1])
        policy.observe(width, cost_ms[width] * load(index) * float(rng.normal(1.0, noise)))
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


def test_tries_of_a_higher_width_become_no_rarer_than_every_1024_windows() -> None:
    window = 20
    chosen = simulate(
        LatencyBudget(8.0, window=window), 4200 * window, noise=0.0, cost_ms={"w8": 12.0, "w6": 12.0, "w4": 4.0}
    )
    tries = [index for index, (before, after) in enumerate(pairwise(chosen)) if (before, after) == ("w4", "w6")]
    # two requests at w6 are enough to see that it is too slow
    waits = [later - earlier - 2 for earlier, later in pairwise(tries)]
    assert waits == [windows * window for windows in (4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024, 1024)]


def test_a_step_up_from_a_width_sets_back_how_long_it_is_waited_for() -> None:
    policy = LatencyBudget(20.0, window=WINDOW)

    def serve(requests: int, latency_ms: float) -> list[str]:
        return simulate(policy, requests, noise=0.0, cost_ms=dict.fromkeys(WIDTHS, latency_ms))

    # three slow requests each leave w8 and w6; w6 is left again when it is tried, so that it is waited for longer
    assert serve(6, 30.0) == ["w8"] * 3 + ["w6"] * 3
    assert serve(2 * WINDOW, 1.0) == ["w4"] * 2 * WINDOW
    assert serve(3, 30.0) == ["w6"] * 3
    assert serve(6 * WINDOW + 1, 1.0) == ["w4"] * 4 * WINDOW + ["w6"] * 2 * WINDOW + ["w8"]
    # the next peak
    assert serve(6, 30.0) == ["w8"] * 3 + ["w6"] * 3
    assert serve(2 * WINDOW + 1, 1.0) == ["w4"] * 2 * WINDOW + ["w6"]


def test_a_latency_between_the_two_thresholds_holds_the_width() -> None:
    """w6 takes 10 ms in a budget of 11.5: too slow for a step up (9.2), fast enough to stay. w8 is tried seldom."""
    chosen = simulate(LatencyBudget(11.5, window=WINDOW), 16 * WINDOW, noise=0.01)
    assert changes(chosen) == 1
    assert chosen[-1] == "w6"
    chosen = simulate(LatencyBudget(11.5, window=WINDOW), 1000 * WINDOW, noise=0.01)
    # after 16 windows, 32, 64, ...
    assert changes(chosen) <= 1 + 2 * np.log2(1000 / 16)
    assert chosen.count("w6") > 0.99 * len(chosen)


def test_a_short_peak_costs_no_accuracy_for_ever() -> None:
    """Every width takes 9 ms in a budget of 10, too slow for a step up by room (8), and five requests were slower."""
    chosen = simulate(
        LatencyBudget(10.0, window=WINDOW),
        4000,
        lambda index: 12.0 if index < 5 else 9.0,
        noise=0.01,
        cost_ms=dict.fromkeys(WIDTHS, 1.0),
    )
    assert chosen[3:5] == ["w6", "w6"]
    # two windows, as w8 was left for it once
    assert chosen.index("w8", 5) <= 16 * WINDOW + 5
    assert set(chosen[16 * WINDOW + 5 :]) == {"w8"}


def test_a_width_that_turns_out_no_faster_is_left_upwards() -> None:
    """All take 9.8 ms in a budget of 10, and three requests of the first window happened to take 10.2."""
    chosen = simulate(
        LatencyBudget(10.0, window=WINDOW),
        3 * WINDOW,
        lambda index: 10.2 if index < 3 else 9.8,
        noise=0.0,
        cost_ms=dict.fromkeys(WIDTHS, 1.0),
    )
    assert chosen == ["w8"] * 3 + ["w6"] * 2 * WINDOW + ["w8"] * (WINDOW - 3)


@pytest.mark.parametrize("load", [lambda _: 12.0, lambda index: 12.0 if index < 100 else 9.0])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_widths_that_are_equally_fast_are_served_at_the_highest(load: Callable[[int], float], noise: float) -> None:
    """A budget of 10 ms is missed all the time, or a hundred times and then met by every width."""
    policy = LatencyBudget(10.0, window=WINDOW)
    chosen = simulate(policy, 20_000, load, noise=noise, cost_ms=dict.fromkeys(WIDTHS, 1.0))
    assert chosen.count("w8") > 0.9 * len(chosen)


def test_a_width_that_was_left_early_is_not_taken_for_a_faster_one() -> None:
    """What it was left with is the least that its percentile would have been: here 11 ms, of 12.5 in the end."""
    policy = LatencyBudget(10.0, window=WINDOW)
    chosen = ["w8"]
    since = 0
    for _ in range(11 * WINDOW - 1):
        chosen.append(policy.choose(WIDTHS, chosen[-1]))
        since = since + 1 if chosen[-1] == chosen[-2] else 0
        policy.observe(chosen[-1], 11.0 if since < 10 else 12.5)
    # three windows at the lowest, and then no change for eight
    assert chosen[1:] == ["w8"] * 3 + ["w6"] * 3 + ["w4"] * 3 + ["w2"] * (3 * WINDOW - 1) + ["w8"] * (8 * WINDOW - 9)


def test_lower_widths_that_do_not_help_are_tried_ever_more_seldom() -> None:
    chosen = simulate(LatencyBudget(10.0, window=WINDOW), 1000 * WINDOW, noise=0.0, cost_ms=dict.fromkeys(WIDTHS, 12.0))
    downs = [index for index, (before, after) in enumerate(pairwise(chosen)) if (before, after) == ("w8", "w6")]
    # the lowest takes three windows to be sure of; for the two above it three requests are enough
    waits = [later - earlier - (3 * WINDOW - 1) - 6 for earlier, later in pairwise(downs)]
    assert waits == [2**place * WINDOW + 1 for place in range(3, 9)]


@pytest.mark.parametrize(
    ("cost_ms", "expected"),
    [
        ({"w8": 12.0, "w6": 12.0, "w4": 8.0, "w2": 7.9}, "w4"),
        ({"w8": 12.0, "w6": 12.0, "w4": 8.0, "w2": 11.0}, "w4"),
        ({"w8": 12.0, "w6": 7.0, "w4": 7.0, "w2": 6.9}, "w6"),
        ({"w8": 12.0, "w6": 10.0, "w4": 8.0, "w2": 6.5}, "w2"),
    ],
)
def test_a_budget_that_none_meets_is_served_at_the_highest_of_the_fastest(
    cost_ms: dict[str, float], expected: str
) -> None:
    policy = LatencyBudget(5.0, window=WINDOW)
    chosen = simulate(policy, 20_000, noise=0.02, cost_ms=cost_ms)
    assert chosen.count(expected) > 0.95 * len(chosen)
    assert not policy.is_met


def test_after_an_overload_the_highest_width_within_the_budget_serves_again() -> None:
    """While every width misses, a limit of the fastest holds; it must not let w4 serve above the budget afterwards."""
    cost_ms = {"w8": 48.0, "w6": 40.0, "w4": 24.0, "w2": 16.0}
    policy = LatencyBudget(10.0, window=WINDOW)
    chosen = simulate(policy, 20_000, lambda index: 1.0 if index < 1200 else 0.55, cost_ms=cost_ms)
    assert policy.is_met
    assert chosen[1200:].count("w2") > 0.98 * len(chosen[1200:])


def test_a_budget_that_no_width_meets_is_said_once_and_served_at_the_fastest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = LatencyBudget(1.0, window=WINDOW)
    with caplog.at_level(logging.WARNING):
        chosen = simulate(policy, 2000)
    assert Counter(chosen).most_common(1)[0][0] == "w2"
    assert not policy.is_met
    (record,) = caplog.records
    assert "latency budget of 1 ms: w2, the lowest width, misses it at the 95th percentile" in record.getMessage()


def test_a_percentile_that_comes_and_goes_around_the_budget_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """A device whose widths all take so long that most of the windows miss the budget."""
    policy = LatencyBudget(10.0, window=100)
    met = set()
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            simulate(policy, 1000, noise=0.08, cost_ms=dict.fromkeys(WIDTHS, 9.0))
            met.add(policy.is_met)
    assert met == {True, False}
    assert len(caplog.records) == 1


@pytest.mark.parametrize("share", [0.01, 0.02, 0.03])
def test_windows_that_miss_by_chance_do_not_give_up_the_width_that_keeps_the_budget(share: float) -> None:
    """The lowest width keeps it, since fewer than 5 % are slow; six of a hundred are now and then."""
    rng = np.random.default_rng(1)
    policy = LatencyBudget(1.5, window=100)
    chosen = simulate(
        policy,
        60_000,
        lambda _: 5.0 if rng.random() < share else 1.0,
        noise=0.0,
        cost_ms={"w8": 2.0, "w6": 2.0, "w4": 2.0, "w2": 1.0},
    )
    assert chosen.count("w2") > 0.99 * len(chosen)
    assert policy.is_met


def test_a_budget_that_is_missed_again_after_there_was_room_is_said_again(caplog: pytest.LogCaptureFixture) -> None:
    policy = LatencyBudget(5.0, window=WINDOW)
    with caplog.at_level(logging.WARNING):
        simulate(policy, 3000, lambda index: 0.5 if 1000 <= index < 2000 else 3.0)
    assert len(caplog.records) == 2


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


@pytest.mark.parametrize("widths", [("w8", "mixed", "w2"), (8, "w8", "mixed", 2)])
def test_widths_can_be_named(widths: tuple[int | str, ...]) -> None:
    policy = LatencyBudget(8.0, window=WINDOW, widths=widths)
    assert policy.choose(WIDTHS, "w8") == "w8"
    for _ in range(WINDOW):
        policy.observe("w8", 12.0)
    assert policy.choose(WIDTHS, "w8") == "mixed"


@pytest.mark.parametrize(("widths", "unknown"), [(("w8", "w5"), "w5"), (("4",), "4"), ((8, 3), "w3")])
def test_widths_that_the_package_lacks_are_refused(widths: tuple[int | str, ...], unknown: str) -> None:
    policy = LatencyBudget(8.0, widths=widths)
    for _ in range(2):
        with pytest.raises(UsageError, match=f"width: {unknown}\n  allowed: w8, w6, w4, w2, mixed"):
            policy.choose(WIDTHS, "w8")


def test_a_named_width_that_is_gone_is_left_out() -> None:
    policy = LatencyBudget(8.0, widths=(4, 2))
    assert policy.choose(WIDTHS, "w4") == "w4"
    assert policy.choose(("w8", "w6", "w2", "mixed"), "w2") == "w2"


@pytest.mark.parametrize(
    "arguments", [{"budget_ms": 0.0}, {"budget_ms": True}, {"budget_ms": float("nan")},
                  {"budget_ms": 5.0, "window": 19}, {"budget_ms": 5.0, "relax": 1.0}, {"budget_ms": "5"},
                  {"budget_ms": 5.0, "window": 50.0}]
)  # fmt: skip
def test_numbers_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="allowed: a positive budget, a whole window of 20 or more"):
        LatencyBudget(**arguments)


@pytest.mark.parametrize("widths", [4, "w4"])
def test_one_width_that_is_no_list_is_refused(widths: Any) -> None:
    with pytest.raises(UsageError, match=rf"LatencyBudget: widths: {widths!r}\n.*\n  do: write one width as \(4,\)"):
        LatencyBudget(5.0, widths=widths)


def test_a_width_in_between_that_is_slower_is_stepped_over() -> None:
    """w8 meets the budget again when the load has gone, w6 never did: a Clip may make a lower width the slower one."""
    cost_ms = {"w8": 4.0, "w6": 6.0, "w4": 2.0, "w2": 2.0}
    policy = LatencyBudget(5.0, window=WINDOW)
    chosen = simulate(policy, 20_000, lambda index: 1.5 if index < 2000 else 1.0, cost_ms=cost_ms)
    assert chosen[1900:2000].count("w4") > 90
    assert set(chosen[-5000:]) == {"w8"}


def test_another_package_brings_its_own_widths() -> None:
    policy = LatencyBudget(5.0, window=WINDOW)
    policy.choose(("w8", "w6"), "w8")
    for _ in range(3 * WINDOW):
        width = policy.choose(("w8", "w4", "w2"), "w8")
        policy.observe(width, {"w8": 50.0, "w4": 2.0, "w2": 1.0}[width])
    assert policy.choose(("w8", "w4", "w2"), "w8") == "w4"
    assert policy.is_met
