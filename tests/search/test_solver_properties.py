"""What holds for every solution: with more allowed, with ties, in any unit, and whatever the last bits of a table."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.search.budget import parse_budget
from bitswitch_deploy.search.candidates import near_optimal, sweep
from bitswitch_deploy.search.problem import Problem, Selection
from bitswitch_deploy.search.resources import Choices, Resources
from bitswitch_deploy.search.solver import solve
from tests.search.masters import two_blocks
from tests.search.problems import WIDTHS, average_row, every_selection, problem, random_problem
from tests.search.test_resources import table


def optimum(given: Problem) -> tuple[Selection, float]:
    found = solve(given)
    assert found is not None
    return found.selection, found.cost


def test_what_uniform_widths_and_the_printed_objective_would_cost() -> None:
    """Oracle O2: the optimum (6, 4, 2) costs 3/256; the printed objective takes bits from where they count."""
    given = problem([tuple(a * 4.0**-b for b in WIDTHS) for a in (16, 1, 1 / 16)], average_row(3, 4))
    costs = {bits: given.cost(tuple(map(WIDTHS.index, bits))) for bits in ((4, 4, 4), (8, 2, 2), (2, 2, 8))}
    assert costs == pytest.approx({(4, 4, 4): 0.0666504, (8, 2, 2): 0.0666504, (2, 2, 8): 1.0625009}, abs=1e-7)
    least_printed = min(
        every_selection(given), key=lambda each: sum(a * WIDTHS[k] for a, k in zip((16, 1, 1 / 16), each))
    )
    assert optimum(given)[1] < costs[2, 2, 8] <= given.cost(least_printed)


def test_a_constant_for_each_layer_changes_nothing() -> None:
    given = random_problem(7, n_layers=8, n_choices=4, n_rows=2)
    shifts = np.random.default_rng(1).normal(0, 100, 8)
    groups = tuple(
        replace(group, costs=tuple(1e6 * cost + float(shift) for cost in group.costs))  # large, or rounding takes them
        for group, shift in zip(given.groups, shifts)
    )
    assert optimum(replace(given, groups=groups))[0] == optimum(given)[0]


@pytest.mark.parametrize("seed", range(5))
def test_more_choices_and_looser_budgets_never_cost_more(seed: int) -> None:
    given = random_problem(seed, n_layers=6, n_choices=3, n_rows=2)
    random = np.random.default_rng(seed)
    costs = [optimum(given)[1]]
    for index in range(6):  # one group after the other gets a choice more, of any cost and use
        groups, rows = list(given.groups), []
        worth = float(random.uniform(0.2, 1)) * groups[index].costs[-1]
        group = groups[index]
        groups[index] = replace(group, widths=(*group.widths, 2), costs=(*group.costs, worth))
        for row in given.rows:
            use = list(row.use)
            use[index] = (*use[index], int(random.integers(min(use[index]) // 2, max(use[index]))))
            rows.append(replace(row, use=tuple(use)))
        given = Problem(groups=tuple(groups), rows=tuple(rows))
        costs.append(optimum(given)[1])
    for row in given.rows:
        looser = replace(row, cap=(row.cap or 0) + (row.maximum - row.minimum) // 5)
        given = replace(given, rows=tuple(looser if other is row else other for other in given.rows))
        costs.append(optimum(given)[1])
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(costs))
    assert len(set(costs)) > 2


def test_a_sweep_is_monotone_without_dominated_points() -> None:
    given = random_problem(9, n_layers=12, n_choices=4, n_rows=2)
    row = given.rows[0]
    levels = sweep(given, row, levels=8, count=1)
    points = [(row.total(level.solutions[0].selection), level.solutions[0].cost) for level in levels]
    assert len(points) > 4
    assert points == sorted(points, reverse=True)  # cheaper each
    assert [cost for _, cost in points] == sorted({cost for _, cost in points})  # and dearer in loss each
    assert all(given.is_feasible(level.solutions[0].selection) for level in levels)


_TIED = """
from bitswitch_deploy.search.candidates import near_optimal
from tests.search.problems import average_row, problem
tied = problem([(0.0, 1.0, 4.0, 9.0)] * 7, average_row(7, 5))
print([each.selection for each in near_optimal(tied, count=4, distance=2)])
"""


def test_ties_come_out_the_same_each_time() -> None:
    """Seven equal layers, 140 optima; in another process with other hashes too."""
    tied = problem([(0.0, 1.0, 4.0, 9.0)] * 7, average_row(7, 5))
    here = [each.selection for each in near_optimal(tied, count=4, distance=2)]
    environment = {**os.environ, "PYTHONHASHSEED": "2"}
    command = [sys.executable, "-c", _TIED]
    there = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert there == f"{here}\n"
    (best, *_) = every_selection(tied)
    assert optimum(tied) == (here[0], tied.cost(best))


def test_the_last_bits_of_a_latency_table_decide_nothing() -> None:
    """Times that change by less than the slack: every selection stays on its side of the budget."""
    master = two_blocks()
    names = [each.name for each in master.spec.layers if not each.pinned]
    choices = Choices(groups=tuple((name,) for name in names), widths=(WIDTHS,) * 2)
    whole = table(master)
    nudged = replace(
        whole,
        layers=tuple(
            replace(each, latency_ms=tuple((bits, ms * (1 + 2**-50)) for bits, ms in each.latency_ms))
            for each in whole.layers
        ),
    )
    assert nudged != whole
    rows = [
        Resources(master, choices, macs=dict.fromkeys(names, 1), targets={}, tables=(each,)).row(
            parse_budget("latency_p50_ms<=0.8105@jetson-orin-nano")
        )
        for each in (whole, nudged)
    ]
    problems = [problem([(0.0, 1.0, 2.0, 4.0), (0.0, 1.0, 3.0, 9.0)], row) for row in rows]
    feasible = [every_selection(each) for each in problems]
    assert 0 < len(feasible[0]) < 16
    assert feasible[0] == feasible[1]
    assert optimum(problems[0]) == optimum(problems[1])
    with pytest.raises(UsageError, match="or more"):
        solve(replace(problems[1], rows=(replace(rows[1], cap=rows[1].minimum - 1),)))
