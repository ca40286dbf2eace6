"""Known optima, brute force, the dynamic programme, and every budget kept in exact integers."""

from __future__ import annotations

import ctypes
import math
import operator
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.errors import UnavailableError, UsageError
from bitswitch_deploy.search import solver
from bitswitch_deploy.search.budget import parse_budget
from bitswitch_deploy.search.candidates import near_optimal
from bitswitch_deploy.search.dominance import remove_dominated
from bitswitch_deploy.search.problem import Group, Problem, Row
from bitswitch_deploy.search.solver import Cut, solve
from tests.search.dynamic_programme import frontier
from tests.search.hawq import hawq_resnet18
from tests.search.problems import (
    WIDTHS,
    average_row,
    every_selection,
    extreme_problem,
    problem,
    random_problem,
    three_layers,
)


def bits(given: Problem) -> tuple[int, ...]:
    found = solve(given)
    assert found is not None
    assert found.is_optimal
    return tuple(given.widths(found.selection).values())


@pytest.mark.parametrize(
    ("cap", "widths", "cost"), [(220, (4, 4, 8), 13), (90, (2, 2, 2), 120), (360, (8, 8, 8), 0), (10**9, (8, 8, 8), 0)]
)
def test_three_layers(cap: int, widths: tuple[int, ...], cost: float) -> None:
    given = three_layers(cap)
    found = solve(given)
    assert found is not None
    assert tuple(given.widths(found.selection).values()) == widths
    assert found.cost == cost
    assert found.bound == pytest.approx(cost, abs=1e-6)
    assert [given.cost(each.selection) for each in near_optimal(three_layers(220), count=2, distance=1)] == [13, 18]


def test_a_budget_below_the_minimum_says_what_the_minimum_is() -> None:
    with pytest.raises(UsageError, match=r"bytes<=89.*\n.*90 or more"):
        solve(three_layers(89))


@pytest.mark.parametrize(
    ("widths", "do"),
    [((4, 3, 2), "raise this budget"), ((4, 3), "raise this budget, or allow lower widths with --bits")],
)
def test_a_budget_below_the_minimum_of_a_width_that_is_not_the_lowest(widths: tuple[int, ...], do: str) -> None:
    """At low widths layers can fall back to float and take longer; below 2 bits there is no width to allow."""
    times = Row(name="latency_p50_ms<=1", use=((2, 3, 4)[: len(widths)],), cap=1)
    with pytest.raises(UsageError) as refused:
        solve(problem([(0, 1, 2)[: len(widths)]], times, widths=widths))
    assert (refused.value.got, refused.value.do) == ("less than any choice of widths needs", do)


@pytest.mark.parametrize(
    ("minimum", "per_unit", "shown"),
    [
        (1_234_564, 10**6, "1.23457"),
        (1_234_560, 10**6, "1.23456"),
        (900_000, 10**6, "0.9"),
        (1, 10**6, "0.000001"),
        (98_765_432_100_001, 10**6, "98765500"),
        (22, 7, "3.14286"),
        (14, 7, "2"),
        (0, 7, "0"),
        (98_765_432, 1, "98765432"),
    ],
)
def test_the_minimum_that_is_named_can_be_kept(minimum: int, per_unit: int, shown: str) -> None:
    """Rounded to nearest, 1.234564 ms would be called 1.23456, which is refused again."""
    row = Row(name="r", use=((minimum, minimum + 9),), cap=minimum - 1, per_unit=per_unit)
    with pytest.raises(UsageError, match=rf"allowed: {re.escape(shown)} or more"):
        solve(problem([(0, 1)], row))
    cap = math.floor(parse_budget(f"avg_bits<={shown}").limit * per_unit)
    assert solve(problem([(0, 1)], replace(row, cap=cap))) is not None


def test_contradictory_budgets_say_what_one_needs_while_the_others_hold() -> None:
    first = Row(name="bytes<=10", use=((9, 1), (9, 1)), cap=10)
    second = Row(name="latency<=10", use=((1, 9), (1, 9)), cap=9)
    given = problem([(0, 1), (0, 1)], first, second)
    with pytest.raises(UsageError, match=r"latency<=10: not possible together with bytes<=10\n.*10 or more"):
        solve(given)
    solve(replace(given, rows=(first, replace(second, cap=10))))
    times = Row(name="ms<=1", use=((1, 1_234_564), (0, 0)), cap=1_000_000, per_unit=10**6)
    with pytest.raises(UsageError, match=r"allowed: 1\.23457 or more while the others are kept"):
        solve(problem([(0, 1), (0, 1)], replace(first, cap=2), times))


@pytest.mark.parametrize("seed", range(4))
def test_of_many_budgets_only_those_in_the_way_are_named(seed: int) -> None:
    """a and b contradict each other, as c and d do; e bothers nobody."""
    pairs = (("a", 0, (9, 1)), ("b", 0, (1, 9)), ("c", 1, (9, 1)), ("d", 1, (1, 9)))
    rows = [Row(name=name, use=((use, (0, 0))[k], (use, (0, 0))[1 - k]), cap=5) for name, k, use in pairs]
    rows.append(Row(name="e", use=((1, 1), (1, 1)), cap=2))
    order = np.random.default_rng(seed).permutation(5)
    with pytest.raises(UsageError, match=r"not possible together with") as refused:
        solve(problem([(0, 1), (0, 1)], *(rows[i] for i in order)))
    named = set(re.findall(r"\b[a-e]\b", str(refused.value).split("\n")[0]))
    assert named in ({"a", "b"}, {"c", "d"})
    assert "9 or more while the others are kept" in str(refused.value)


def test_the_printed_objective_is_not_what_is_minimised() -> None:
    """Oracle O2: sensitive layers get more bits, and the answer is neither uniform nor all or nothing."""
    given = problem([tuple(a * 4.0**-b for b in WIDTHS) for a in (16, 1, 1 / 16)], average_row(3, 4))
    assert bits(given) == (6, 4, 2)
    found = solve(given)
    assert found is not None
    assert found.cost == pytest.approx(3 / 256, rel=1e-12)


@pytest.mark.parametrize(
    ("resource", "eight", "cost"),
    [
        ("size", set(range(19)) - {15, 17, 18}, 0.074506),
        ("bops", {0, 1, 2, 4, 5, 6, 7, 9, 10, 11}, 0.215689),
        ("latency", {0, 1, 2, 3, 4, 6, 7, 9, 10, 11, 14, 16}, 0.202674),
    ],
)
def test_published_tables_of_resnet18(resource: str, eight: set[int], cost: float) -> None:
    """Oracle O4: traces, errors and T4 latencies of HAWQ-V3 (arXiv 2011.10680), budgets halfway, three ties."""
    given = hawq_resnet18(resource)
    found = solve(given)
    assert found is not None
    assert {int(layer) for layer, width in given.widths(found.selection).items() if width == 8} == eight
    assert found.cost == pytest.approx(cost, abs=5e-7)
    assert given.cost((1,) * 16) == pytest.approx(1.307713, abs=5e-7)
    assert given.cost((0,) * 16) == pytest.approx(0.004258, abs=5e-7)


@pytest.mark.parametrize("factor", [1e-12, 1e-6, 1.0, 1e12])
def test_the_answer_does_not_depend_on_the_unit_of_the_costs(factor: float) -> None:
    given = random_problem(3, n_layers=9, n_choices=4, n_rows=2)
    scaled = [replace(group, costs=tuple(cost * factor + 7 for cost in group.costs)) for group in given.groups]
    shifted = given if factor < 1e-6 else replace(given, groups=tuple(scaled))
    pure = tuple(replace(group, costs=tuple(cost * factor for cost in group.costs)) for group in given.groups)
    assert bits(replace(given, groups=pure)) == bits(given) == bits(shifted)


def test_order_of_the_layers_does_not_matter() -> None:
    given = random_problem(5, n_layers=8, n_choices=4, n_rows=2)
    order = np.random.default_rng(0).permutation(8)
    rows = tuple(replace(row, use=tuple(row.use[i] for i in order)) for row in given.rows)
    shuffled = Problem(groups=tuple(given.groups[i] for i in order), rows=rows)
    assert bits(shuffled) == tuple(bits(given)[i] for i in order)


def test_equal_layers_get_equal_widths() -> None:
    assert bits(problem([tuple(4.0**-b for b in WIDTHS)] * 5, average_row(5, 4))) == (4,) * 5


@pytest.mark.parametrize("seed", range(200))
def test_solver_programme_and_brute_force_agree(seed: int) -> None:
    random = np.random.default_rng(seed)
    n_layers, n_rows = int(random.integers(2, 7)), int(random.integers(1, 5))
    given = random_problem(seed, n_layers=n_layers, n_choices=int(random.integers(2, 5)), n_rows=n_rows)
    feasible = every_selection(given)
    if not feasible:
        with pytest.raises(UsageError, match="or more"):
            solve(given)
        return
    found = solve(given)
    assert found is not None
    assert given.is_feasible(found.selection)
    assert found.cost == pytest.approx(given.cost(feasible[0]), rel=1e-9)
    alone = replace(given, rows=given.rows[:1])
    cap = alone.rows[0].cap
    assert cap is not None
    exact = frontier(alone, alone.rows[0]).selection(cap)
    by_solver = solve(alone)
    assert exact is not None
    assert by_solver is not None
    assert alone.cost(exact) == pytest.approx(by_solver.cost, rel=1e-9)


# the first six were refused, told an empty list of budgets, or answered with something that is not the best
@pytest.mark.parametrize("seed", [7, 55, 63, 135, 501, 542, *range(1000, 1040)])
def test_extreme_sizes_are_solved_exactly_or_refused_with_what_is_in_the_way(seed: int) -> None:
    given = extreme_problem(seed)
    feasible = every_selection(given)
    if not feasible:
        with pytest.raises(UsageError, match=r"not possible together with r\d"):
            solve(given)
        return
    found = solve(given)
    assert found is not None
    assert found.is_optimal
    assert given.is_feasible(found.selection)
    # by what the choice costs above the cheapest of each group
    floor = math.fsum(min(group.costs) for group in given.groups)
    best = given.cost(feasible[0])
    assert found.cost - floor == pytest.approx(best - floor, rel=1e-6, abs=1e-12 * abs(floor))


@pytest.mark.parametrize("ms", [10, 10**6, 10**20, 10**300])
def test_one_entry_far_above_a_budget_is_left_out(ms: int) -> None:
    use = ((ms * 10**6, 10_000, 5_000, 7_000), *[(10_000, 10_000, 5_000, 7_000)] * 6)
    row = Row(name="ms", use=use, cap=10**6, per_unit=10**6)
    assert bits(problem([(0.0, 0.1, 0.2, 0.3)] * 7, row)) == (6, *[8] * 6)


@pytest.mark.parametrize(("n_layers", "average"), [(20, 3.05), (60, 4), (200, 5.3)])
def test_the_programme_agrees_for_many_layers(n_layers: int, average: float) -> None:
    given = random_problem(n_layers, n_layers=n_layers, n_choices=4, n_rows=0)
    row = average_row(n_layers, average, (8, 7, 6, 5))
    row = replace(row, cap=int(max(row.minimum, row.cap or 0) + n_layers // 3))
    given = replace(given, rows=(row,))
    found, exact = solve(given), frontier(given, row).selection(row.cap or 0)
    assert found is not None
    assert exact is not None
    assert found.cost == pytest.approx(given.cost(exact), rel=1e-9)


def test_marginal_greedy_is_optimal_for_convex_costs_of_one_average() -> None:
    """Oracle O6."""
    for seed in range(5):
        given = replace(random_problem(seed, n_layers=12, n_choices=4, n_rows=0, convex=True), rows=())
        row = average_row(12, 6.5, given.groups[0].widths)
        given = replace(given, rows=(row,))
        chosen = [3] * 12
        while True:
            gains = [(g.costs[k] - g.costs[k - 1], i) for i, (g, k) in enumerate(zip(given.groups, chosen)) if k]
            best = max(gains)[1]
            chosen[best] -= 1
            if not given.is_feasible(tuple(chosen)):
                chosen[best] += 1
                break
        found = solve(given)
        assert found is not None
        assert found.cost == pytest.approx(given.cost(tuple(chosen)), rel=1e-9)


@pytest.mark.parametrize("cap", [10**6, 10**9 + 7, 10**12 + 39, 10**15 + 37])
def test_budgets_are_kept_to_the_last_unit_however_large(cap: int) -> None:
    """Floating point would let the cheaper choice pass: it is over by one unit in 10^15."""
    half = cap // 2
    use = ((half + 1, half, 1), (cap - half, cap - half - 1, 2))
    given = problem([(0.0, 1.0, 100.0), (0.0, 1.5, 100.0)], Row(name="bops", use=use, cap=cap), widths=(8, 6, 4))
    assert bits(given) == (6, 8)
    assert bits(replace(given, rows=(replace(given.rows[0], cap=cap + 1),))) == (8, 8)
    assert bits(replace(given, rows=(replace(given.rows[0], cap=cap - 1),))) == (6, 6)


@pytest.mark.parametrize("size", [10**3, 10**9, 10**15])
def test_budgets_that_contradict_each_other_by_one_unit_are_refused(size: int) -> None:
    """A layer at 8 bits and one at 4 use size + 1 of b; in floating point that is size where it is large."""
    first = Row(name="a", use=((size, 0), (size, 0)), cap=size)
    second = Row(name="b", use=((1, size), (1, size)), cap=size)
    given = replace(problem([(0.0, 1.0), (0.0, 1.0)], first, widths=(8, 4)), rows=(first, second))
    with pytest.raises(UsageError, match=rf"--budget b: not possible together with a\n  allowed: {size + 1} or more"):
        solve(given)
    assert sorted(bits(replace(given, rows=(first, replace(second, cap=size + 1))))) == [4, 8]


def test_tightening_a_budget_never_lowers_the_optimum() -> None:
    given = random_problem(11, n_layers=7, n_choices=4, n_rows=2)
    row = given.rows[0]
    optima = []
    for cap in range(row.maximum, row.minimum, -(row.maximum - row.minimum) // 8):
        try:
            found = solve(replace(given, rows=(replace(row, cap=cap), given.rows[1])))
        except UsageError:
            break
        assert found is not None
        optima.append(found.cost)
    assert optima == sorted(optima)
    assert len(set(optima)) > 3


def test_near_optimal_exhausts_the_feasible_set_in_order() -> None:
    given = random_problem(2, n_layers=4, n_choices=3, n_rows=2)
    all_of_them = every_selection(given)
    found = near_optimal(given, count=1000, distance=1)
    assert len(found) == len(all_of_them) > 5
    assert [each.cost for each in found] == pytest.approx([given.cost(each) for each in all_of_them], rel=1e-9)


def test_candidates_keep_their_distance() -> None:
    given = random_problem(4, n_layers=10, n_choices=4, n_rows=2)
    found = near_optimal(given, count=6, distance=3)
    costs = [each.cost for each in found]
    assert len(found) == 6
    assert costs == sorted(costs)
    assert found[0] == solve(given)
    pairs = [(a, b) for i, a in enumerate(found) for b in found[:i]]
    assert all(sum(map(operator.ne, a.selection, b.selection)) >= 3 for a, b in pairs)


def test_dominated_choices_change_no_optimum_and_are_named() -> None:
    for seed in range(10):
        given = random_problem(seed, n_layers=6, n_choices=4, n_rows=2)
        # a target that does nothing for the second width: same use as the first, at a higher cost
        rows = tuple(replace(r, use=tuple((u[0], u[0], *u[2:]) for u in r.use)) for r in given.rows)
        groups = tuple(replace(g, costs=(0.0, *g.costs[1:])) for g in given.groups)
        given = Problem(groups=groups, rows=rows)
        fewer, removed = remove_dominated(given)
        assert {(each.group, each.width, each.by) for each in removed} >= {(g.name, 7, 8) for g in groups}
        if every_selection(given):
            before, after = solve(given), solve(fewer)
            assert before is not None
            assert after is not None
            assert after.cost == pytest.approx(before.cost, rel=1e-9)


def test_of_equal_choices_the_wider_one_stays() -> None:
    given = problem([(1.0, 1.0)], Row(name="ms", use=((3, 3),), cap=9))
    fewer, removed = remove_dominated(given)
    assert fewer.groups[0].widths == (8,)
    assert [(each.width, each.by) for each in removed] == [(6, 8)]


def test_tied_layers_and_single_choices() -> None:
    tied = Group(layers=("a", "b"), widths=(8, 4), costs=(0.0, 1.0))
    fixed = Group(layers=("c",), widths=(6,), costs=(5.0,))
    given = Problem(groups=(tied, fixed), rows=(Row(name="avg", use=((16, 8), (6,)), cap=15),))
    found = solve(given)
    assert found is not None
    assert given.widths(found.selection) == {"a": 4, "b": 4, "c": 6}


def test_cuts_that_leave_nothing() -> None:
    given = problem([(0.0, 1.0)])
    assert solve(given, cuts=[Cut(selection=(0,)), Cut(selection=(1,))]) is None


def test_costs_must_be_finite() -> None:
    with pytest.raises(UsageError, match="cost of a at 6 bits: nan"):
        problem([(0.0, float("nan"))])


def test_the_solver_imports_no_other_solver_and_no_torch() -> None:
    code = (
        "import sys; from bitswitch_deploy.search.solver import solve; from tests.search.problems import three_layers;"
        "solve(three_layers(220)); print(sorted({'highspy', 'ortools', 'torch', 'pulp'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_nothing_of_the_solver_reaches_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    """HiGHS 1.12 prints a line now and then, through C's buffer; a JSON result on stdout must stay one."""
    print("before")
    with solver._quiet_stdout():
        ctypes.CDLL(None).puts(b"a line")
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"


def test_when_time_is_up_the_best_so_far_comes_back_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    original = solver._Programme._run

    def out_of_time(self: Any, costs: Any, *, integral: bool, time_limit_s: float) -> Any:
        result = original(self, costs, integral=integral, time_limit_s=time_limit_s)
        if integral:
            result.status, result.mip_dual_bound = 1, 0.0
            result.x = None if found is None else np.array(found)
        return result

    monkeypatch.setattr(solver._Programme, "_run", out_of_time)
    found: list[int] | None = [0, 0, 0, 1] * 3
    incumbent = solve(three_layers(220))
    assert incumbent is not None
    assert (incumbent.cost, incumbent.bound, incumbent.is_optimal) == (120, 0, False)
    found = None
    with pytest.raises(UnavailableError, match=r"no assignment after 0.5 s"):
        solve(three_layers(220), time_limit_s=0.5)
