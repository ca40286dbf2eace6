"""Assignments of few changes: the best of every pattern, found by trying all of them, and taken where they are best."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from bitswitch_deploy.search import choose
from bitswitch_deploy.search.choose import Chooser
from bitswitch_deploy.search.dominance import remove_dominated
from bitswitch_deploy.search.problem import Problem, Row, Selection
from bitswitch_deploy.search.runs import in_runs
from bitswitch_deploy.search.score import Scores
from bitswitch_deploy.tensors import WidthAssignment
from tests.search.problems import average_row, every_selection, problem, random_problem


def pattern_of(given: Problem, selection: Selection) -> tuple[int, ...]:
    """The widths along the groups, each run once."""
    return tuple(width for width, _ in itertools.groupby(given.widths(selection).values()))


@pytest.mark.parametrize("n_rows", [0, 1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_best_of_every_pattern(seed: int, n_rows: int) -> None:
    given = random_problem(seed, n_layers=6, n_choices=4, n_rows=n_rows)
    best: dict[tuple[int, ...], Selection] = {}
    for each in every_selection(given):  # cheapest first
        if 1 < len(pattern_of(given, each)) <= 3:
            best.setdefault(pattern_of(given, each), each)
    found = in_runs(given, (), count=999)
    assert list(found) == sorted(best.values(), key=lambda each: (given.cost(each), each))
    assert in_runs(given, (), count=3) == found[:3]


def test_budgets_are_kept_in_exact_integers() -> None:
    """Beyond 2^53 a float cannot tell the cap from one more."""
    big = 2**60
    use = tuple((big + 1, big) for _ in range(3))
    given = problem([(0.0, 1.0)] * 3, Row(name="bops", use=use, cap=3 * big + 1), widths=(8, 4))
    assert [pattern_of(given, each) for each in in_runs(given, (), count=9)] == [(8, 4), (4, 8, 4), (4, 8)]
    shifted = replace(given.rows[0], base=7, cap=3 * big + 8)  # what is used whatever is chosen
    assert in_runs(replace(given, rows=(shifted,)), (), count=9) == in_runs(given, (), count=9)
    tighter = replace(given, rows=(replace(given.rows[0], cap=3 * big),))
    assert in_runs(tighter, (), count=9) == ()


def test_a_run_of_a_format_that_buys_nothing_takes_what_does() -> None:
    """In group b 6 bits take what 8 bits take: a run of 6 has 8 there, and none proposes a width that was left out."""
    row = Row(name="bytes", use=((8, 6, 4), (8, 8, 4), (8, 6, 4)), cap=22)
    given = problem([(0.0, 1.0, 3.0)] * 3, row, widths=(8, 6, 4))
    _, dominated = remove_dominated(given)
    assert [(each.group, each.width, each.by) for each in dominated] == [("b", 6, 8)]
    found = in_runs(given, dominated, count=99)
    assert (1, 0, 0) in found
    assert all(given.widths(each)["b"] != 6 for each in found)
    assert all(given.is_feasible(each) for each in found)


def test_a_cost_that_is_higher_by_chance_breaks_no_run() -> None:
    """Group b costs no more at 4 bits than at 6: as a layer alone, which says little about a run."""
    given = problem([(0.0, 1.0, 2.0), (0.0, 1.0, 1.0), (0.0, 1.0, 2.0), (0.0, 1.0, 2.0)], widths=(8, 6, 4))
    given = replace(given, rows=(average_row(4, 6.5, (8, 6, 4)),))
    _, dominated = remove_dominated(given)
    assert [(each.group, each.width, each.by) for each in dominated] == [("b", 6, 4)]
    assert in_runs(given, dominated, count=99) == in_runs(given, (), count=99)


def test_many_groups_have_runs_too() -> None:
    """More groups than places where runs end: still within the budget, and cheaper than the uniform width in it."""
    given = random_problem(0, n_layers=700, n_choices=4, n_rows=1, convex=True)
    found = in_runs(given, (), count=4)
    assert len(found) == 4
    assert all(given.is_feasible(each) and len(pattern_of(given, each)) <= 3 for each in found)
    uniform = min(given.cost(each) for _, each in given.uniform() if given.is_feasible(each))
    assert given.cost(found[0]) < uniform
    assert in_runs(given, (), count=0) == ()


def test_a_format_that_buys_nothing_anywhere_leaves_no_runs() -> None:
    row = Row(name="latency", use=((5, 5),) * 4, cap=20)
    given = problem([(0.0, 1.0)] * 4, row, widths=(8, 4))
    assert in_runs(given, remove_dominated(given)[1], count=9) == ()


def test_one_group_has_no_runs() -> None:
    assert in_runs(problem([(0.0, 1.0)], average_row(1, 8, (8, 4)), widths=(8, 4)), (), count=9) == ()


def test_groups_need_not_offer_the_same_widths() -> None:
    given = problem([(0.0, 1.0, 2.0), (0.0, 1.0), (0.0, 1.0, 2.0)], widths=(8, 6, 4))
    found = {pattern_of(given, each) for each in in_runs(given, (), count=99)}
    assert (8, 6, 4) in found
    assert (8, 4, 8) not in found  # needs 4 bits in the second
    assert (8, 6, 8) in found


def test_where_changes_of_width_cost_a_search_finds_few_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change of width costs as much as some layers: costs of single layers hold two of them, mixtures few."""
    names, widths = "abcdefghi", (8, 6, 4)
    own = np.random.default_rng(1).lognormal(0, 1, len(names))

    def truth(bits: Sequence[int]) -> float:
        return float(own @ 2.0 ** (8 - np.array(bits))) + 4 * sum(a != b for a, b in itertools.pairwise(bits))

    def measure(wanted: Sequence[WidthAssignment], n: int) -> list[Scores]:
        losses = [np.linspace(-0.01, 0.01, n) + truth([each.bits_of(name) for name in names]) for each in wanted]
        return [Scores(loss=loss, right=loss < 1) for loss in losses]

    costs = [tuple(truth([width if name == each else 8 for each in names]) for width in widths) for name in names]
    row = average_row(len(names), 6.5, widths)
    given = problem(costs, row, widths=widths)

    def found() -> tuple[float, float]:
        chosen = Chooser(given, measure, 201).under_budgets().chosen
        front = Chooser(given, measure, 201).on_front(row, is_within=None).front
        return chosen.scores.mean_loss, front[0].scores.mean_loss

    best, best_of_front = found()
    assert best == pytest.approx(min(truth(list(given.widths(each).values())) for each in every_selection(given)))
    monkeypatch.setattr(choose, "in_runs", lambda *_, **__: ())
    best_without, best_of_front_without = found()
    assert best < best_without - 1
    assert best_of_front < best_of_front_without - 1
