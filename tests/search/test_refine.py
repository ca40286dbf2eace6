"""Moves in both directions: better ones are taken, budgets hold, nothing is undone."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from bitswitch_deploy.search.candidates import neighbours
from bitswitch_deploy.search.dominance import remove_dominated
from bitswitch_deploy.search.problem import Problem, Row, Selection
from bitswitch_deploy.search.refine import refine
from bitswitch_deploy.search.score import Scores
from tests.search.problems import average_row, problem, random_problem

Measure = Callable[[Sequence[Selection]], list[Scores]]


def _measure(
    given: Problem, true: Mapping[str, Sequence[float]], asked: list[Selection], noise: float = 0.0, seed: int = 0
) -> Measure:
    random = np.random.default_rng(seed)
    shared = random.normal(0, 1, 400)

    def measure(selections: Sequence[Selection]) -> list[Scores]:
        asked.extend(selections)
        totals = [sum(costs[k] for costs, k in zip(true.values(), each)) for each in selections]
        losses = [shared + total + noise * random.normal(0, 1, 400) for total in totals]
        return [Scores(loss=loss, right=loss < 0) for loss in losses]

    return measure


def test_finds_what_the_prediction_got_wrong() -> None:
    """Predicted: a is sensitive; true: c is. One goes down, the other one up, and the budget holds all the time."""
    given = problem([(0, 1, 9), (0, 1, 5), (0, 1, 2)], average_row(3, 6, (8, 6, 4)), widths=(8, 6, 4))
    asked: list[Selection] = []
    true = {"a": (0, 0, 0.1), "b": (0, 1, 5), "c": (0, 3, 9)}
    measure = _measure(given, true, asked)
    (start,) = measure([(0, 1, 2)])
    refined = refine(given, (0, 1, 2), start, measure, tries=20)
    assert refined.selection in [(2, 1, 0), (1, 1, 1), (2, 0, 1)]
    assert refined.selection == (2, 1, 0)
    assert refined.moves >= 2
    assert all(given.is_feasible(each) for each in asked)
    assert len(set(asked)) == len(asked)


def test_chance_is_no_reason_to_move() -> None:
    """Nothing is better; the lowest of six means is lower nearly always, beyond an interval for one time in seven."""
    given = problem([(0, 1, 9)] * 3, average_row(3, 6, (8, 6, 4)), widths=(8, 6, 4))
    moves = 0
    for seed in range(40):
        measure = _measure(given, dict.fromkeys("abc", (0, 0, 0)), [], noise=0.02, seed=seed)
        (start,) = measure([(1, 1, 1)])
        moves += refine(given, (1, 1, 1), start, measure, tries=20).moves
    assert moves <= 2


def test_neighbours_move_one_group_or_swap_two() -> None:
    given = problem([(0, 1, 2)] * 3, average_row(3, 6, (8, 6, 4)), widths=(8, 6, 4))
    assert set(neighbours(given, (1, 1, 1), count=99)) == {
        *((2, 1, 1), (1, 2, 1), (1, 1, 2)),
        *((0, 2, 1), (0, 1, 2), (2, 0, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0)),
    }
    loose = replace(given, rows=())
    assert {(0, 1, 1), (1, 0, 1), (1, 1, 0)} < set(neighbours(loose, (1, 1, 1), count=99))


def test_neighbours_come_cheapest_first_and_no_more_than_were_asked_for() -> None:
    given = problem([(0.0, 1.0, 9.0), (0.0, 2.0, 5.0), (0.0, 0.5, 2.0)], average_row(3, 6, (8, 6, 4)), widths=(8, 6, 4))
    every = neighbours(given, (1, 1, 1), count=99)
    costs = [given.cost(each) for each in every]
    assert costs == sorted(costs)
    assert neighbours(given, (1, 1, 1), count=4) == every[:4]


def test_moves_step_over_what_a_format_buys_nothing_with() -> None:
    """6 bits take what 8 take: only 8 for 4 in one layer, and 4 for 8 in another, is an exchange."""
    row = Row(name="bytes", use=((8, 8, 4),) * 4, cap=24)
    given = problem([(0.0, 1.0, 9.0)] * 4, row, widths=(8, 6, 4))
    _, dominated = remove_dominated(given)
    assert {(each.width, each.by) for each in dominated} == {(6, 8)}
    found = set(neighbours(given, (0, 0, 2, 2), dominated=dominated, count=99))
    assert found == {
        *((2, 0, 2, 2), (0, 2, 2, 2)),
        *((2, 0, 0, 2), (2, 0, 2, 0), (0, 2, 0, 2), (0, 2, 2, 0)),
    }
    # one that stands at such a width leaves it both ways
    assert {(0, 0, 2, 2), (2, 0, 2, 2)} <= set(neighbours(given, (1, 0, 2, 2), dominated=dominated, count=99))


def test_a_large_network_has_its_cheapest_neighbours_in_no_time() -> None:
    """400 groups of 7 widths have half a million neighbours: they are not all built."""
    given = random_problem(0, n_layers=400, n_choices=7, n_rows=2)
    selection = tuple([3] * 400)
    loose = replace(given, rows=tuple(replace(row, cap=row.total(selection)) for row in given.rows))
    tracemalloc.start()
    found = neighbours(loose, selection, count=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 20
    assert all(loose.is_feasible(each) for each in found)
    assert peak < 10 * 2**20
