"""Selections worth measuring: near-optimal ones that differ from each other, over a sweep of one budget.

Predicted costs rank assignments well and promise nothing, so several are measured. One that differs from the optimum
in a layer or two would tell nothing new: each must differ from all before it in `distance` groups.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.search.dominance import Dominated
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


def neighbours(
    problem: Problem, selection: Selection, *, dominated: Iterable[Dominated] = (), count: int
) -> tuple[Selection, ...]:
    """Up to `count` feasible selections one move away, cheapest predicted cost first.

    A move takes one group one width down or up, or one group down and another one up. Widths that are dominated in a
    group are stepped over.
    """
    steps = [step for index in range(len(selection)) for step in _steps(problem, selection, index, dominated)]
    used = [(row, row.total(selection)) for row in problem.caps]

    def feasible() -> Iterator[tuple[float, tuple[_Step, ...]]]:
        singles = ((step,) for step in steps)
        pairs = ((a, b) for a, b in itertools.combinations(steps, 2) if a.group != b.group and a.is_up != b.is_up)
        for move in itertools.chain[tuple[_Step, ...]](singles, pairs):
            if all(
                total + sum(row.use[step.group][step.to] - row.use[step.group][selection[step.group]] for step in move)
                <= (row.cap or 0)
                for row, total in used
            ):
                yield math.fsum(step.cost for step in move), move

    return tuple(_moved(selection, move) for _, move in heapq.nsmallest(count, feasible()))


class _Step(NamedTuple):
    """One group to another of its choices. cost: what is predicted on top."""

    group: int
    to: int
    is_up: bool
    cost: float


def _steps(problem: Problem, selection: Selection, index: int, dominated: Iterable[Dominated]) -> Iterator[_Step]:
    group, now = problem.groups[index], selection[index]
    left_out = {each.width for each in dominated if each.group == group.name}
    allowed = [k for k, width in enumerate(group.widths) if width not in left_out]
    nearest = (max((k for k in allowed if k < now), default=None), min((k for k in allowed if k > now), default=None))
    for k in nearest:
        if k is not None:
            yield _Step(group=index, to=k, is_up=k < now, cost=group.costs[k] - group.costs[now])


def _moved(selection: Selection, steps: Iterable[_Step]) -> Selection:
    changed = list(selection)
    for step in steps:
        changed[step.group] = step.to
    return tuple(changed)
