"""Selections worth measuring: near-optimal ones that differ from each other, over a sweep of one budget.

Predicted costs rank assignments well and promise nothing, so several are measured. One that differs from the optimum
in a layer or two would tell nothing new: each must differ from all before it in `distance` groups.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.search.problem import Problem, Row, Selection
from bitswitch_deploy.search.solver import Cut, Solution, solve

GROUPS_PER_DIFFERENCE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Candidates under one cap of the swept resource, best predicted cost first."""

    cap: int
    solutions: tuple[Solution, ...]


def usual_distance(problem: Problem) -> int:
    """Groups in which two candidates differ at least: one in twenty, and two."""
    return min(max(2, len(problem.groups) // GROUPS_PER_DIFFERENCE), len(problem.groups))


def near_optimal(problem: Problem, *, count: int, distance: int) -> tuple[Solution, ...]:
    """Up to `count` selections of least cost, each `distance` groups or more away from all before it.

    Costs never fall from one to the next. Fewer come back when the budgets allow no more.

    Raises:
        UsageError: the budgets leave no selection.
    """
    found: list[Solution] = []
    while len(found) < count:
        cuts = [Cut(selection=solution.selection, distance=distance) for solution in found]
        solution = solve(problem, cuts=cuts)
        if solution is None:
            break
        found.append(solution)
    return tuple(found)


def sweep(problem: Problem, row: Row, *, levels: int, count: int) -> tuple[Level, ...]:
    """Candidates at `levels` caps of `row`, from its cap (or what the widest selection uses) down to its minimum.

    Caps that lead to an optimum that is known already are left out. The other budgets hold at every level; where they
    leave nothing, the sweep ends.

    Args:
        problem: with `row` among its rows. row: the resource that is swept. levels: caps to try.
        count: candidates of each.
    """
    distance = usual_distance(problem)
    top = row.maximum if row.cap is None else min(row.cap, row.maximum)
    found: list[Level] = []
    for step in range(levels):
        cap = top - (top - row.minimum) * step // max(levels - 1, 1)
        try:
            solutions = near_optimal(bounded(problem, row, cap), count=count, distance=distance)
        except UsageError:
            if step == 0:
                raise
            break
        if all(level.solutions[0].selection != solutions[0].selection for level in found):
            found.append(Level(cap=cap, solutions=solutions))
    return tuple(found)


def bounded(problem: Problem, row: Row, cap: int) -> Problem:
    """The problem with another cap for one of its rows."""
    return replace(problem, rows=tuple(replace(row, cap=cap) if other is row else other for other in problem.rows))


def neighbours(problem: Problem, selection: Selection) -> tuple[Selection, ...]:
    """Feasible selections one move away, cheapest predicted cost first.

    A move takes one group one width down or up, or one group down and another one up.
    """
    steps = [
        (index, k + step)
        for index, k in enumerate(selection)
        for step in (-1, 1)
        if 0 <= k + step < len(problem.groups[index].widths)
    ]
    moved = {_moved(selection, [step]) for step in steps}
    moved |= {_moved(selection, [a, b]) for a in steps for b in steps if a[0] < b[0] and _opposite(selection, a, b)}
    return tuple(sorted(filter(problem.is_feasible, moved), key=lambda each: (problem.cost(each), each)))


def _opposite(selection: Selection, a: tuple[int, int], b: tuple[int, int]) -> bool:
    return (a[1] > selection[a[0]]) != (b[1] > selection[b[0]])


def _moved(selection: Selection, steps: list[tuple[int, int]]) -> Selection:
    changed = list(selection)
    for index, k in steps:
        changed[index] = k
    return tuple(changed)
