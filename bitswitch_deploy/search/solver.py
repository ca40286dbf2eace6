"""The best selection under all budgets: a multiple-choice knapsack for scipy's HiGHS, checked in exact integers.

With one binary x[g,k] for each choice: sum over k of x[g,k] = 1, and each row with a cap is one inequality. Two traps
of the solver are met here. It stops at an absolute gap of 1e-6 and accepts rows that are off by 1e-6: so costs are
scaled until the relaxed optimum is 1000, rows are written in whole units (up to 1,000 of them) with half a unit of
room, and whatever comes back is added up again in integers. A point that exceeds a budget is cut off, and the problem
solved again. Rows scaled to a limit of 1 made HiGHS 1.12 (scipy 1.17.1) return a point that is not the best one.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize

from bitswitch_deploy.errors import UnavailableError, UsageError
from bitswitch_deploy.search.problem import Problem, Row, Selection
from bitswitch_deploy.tensors import MIN_BITS

TIME_LIMIT_S = 60.0
_LP_OPTIMUM = 1e3
_LARGEST_COST = 1e5
_LARGEST_USE = 1e3
_MIP_GAP = 1e-9
# after so many points that keep the rows in floating point only, the rows are tightened instead
_MAX_VIOLATIONS = 20
_TIGHTER = 2e-6
_OPTIMAL, _LIMIT, _INFEASIBLE = 0, 1, 2

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Keep away from a selection: at least `distance` groups must choose otherwise."""

    selection: Selection
    distance: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A selection that keeps every budget. bound: no selection costs less; is_optimal: it is the best one."""

    selection: Selection
    cost: float
    bound: float
    is_optimal: bool


def solve(problem: Problem, *, cuts: Sequence[Cut] = (), time_limit_s: float = TIME_LIMIT_S) -> Solution | None:
    """The selection of least cost that keeps every budget and every cut; None when the cuts leave none.

    The same arguments give the same answer. When time is up the best selection found so far comes back, marked.

    Raises:
        UsageError: the budgets alone leave no selection; the message names the one that is in the way.
        UnavailableError: time was up before any selection was found.
    """
    _check_minima(problem)
    found = _best(problem, cuts, time_limit_s)
    if found is None and not cuts:
        raise _contradiction(problem, time_limit_s)
    return found


def _best(problem: Problem, cuts: Sequence[Cut], time_limit_s: float) -> Solution | None:
    """What keeps the budgets in exact integers; what the solver takes for that and is none is cut off."""
    tightened = 0.0
    avoided: list[Cut] = []
    while True:
        found = _Programme(problem, [*cuts, *avoided], tightened).minimise(time_limit_s)
        if found is None or problem.is_feasible(found.selection):
            return found
        avoided.append(Cut(selection=found.selection))
        if len(avoided) >= _MAX_VIOLATIONS:
            tightened = _TIGHTER


class _Programme:
    """One integer programme: columns are the choices of all groups, one after the other."""

    def __init__(self, problem: Problem, cuts: Sequence[Cut], tightened: float) -> None:
        self._problem = problem
        self._starts = np.cumsum([0, *(len(group.widths) for group in problem.groups)])
        lowest = [min(group.costs) for group in problem.groups]
        self._offset = math.fsum(lowest)
        self._costs = np.array([cost - low for group, low in zip(problem.groups, lowest) for cost in group.costs])
        rows = [self._budget(row, tightened) for row in problem.caps] + [self._cut(cut) for cut in cuts]
        self._rows = np.array([row for row, _ in rows]).reshape(len(rows), len(self._costs))
        self._limits = np.array([limit for _, limit in rows])

    def minimise(self, time_limit_s: float) -> Solution | None:
        scale = self._scale()
        if scale is None:
            return None
        result = self._run(self._costs * scale, integral=True, time_limit_s=time_limit_s)
        if result.status == _INFEASIBLE:
            return None
        if result.x is None or result.status not in (_OPTIMAL, _LIMIT):
            raise _out_of_time(time_limit_s, result.message)
        x = np.asarray(result.x)
        selection = tuple(int(np.argmax(x[a:b])) for a, b in itertools.pairwise(self._starts))
        bound = self._offset + float(result.mip_dual_bound) / scale
        cost = self._problem.cost(selection)
        return Solution(selection=selection, cost=cost, bound=min(bound, cost), is_optimal=result.status == _OPTIMAL)

    def _scale(self) -> float | None:
        """Factor that puts the relaxed optimum at 1000; None when even the relaxed problem has no solution."""
        largest = float(self._costs.max())
        if largest == 0:
            return 1.0
        relaxed = self._run(self._costs / largest, integral=False, time_limit_s=TIME_LIMIT_S)
        if relaxed.status == _INFEASIBLE:
            return None
        optimum = float(relaxed.fun or 0.0)
        # an optimum of about nothing says little about the scale: then the largest cost decides
        return min(_LP_OPTIMUM / max(optimum, 1e-9), _LARGEST_COST) / largest

    def _run(self, costs: Matrix, *, integral: bool, time_limit_s: float) -> Any:
        groups = len(self._problem.groups)
        one = np.zeros((groups, len(costs)))
        for index, (a, b) in enumerate(itertools.pairwise(self._starts)):
            one[index, a:b] = 1
        constraints = [optimize.LinearConstraint(one, 1, 1)]
        if len(self._rows):
            constraints.append(optimize.LinearConstraint(self._rows, -np.inf, self._limits))
        with _quiet_stdout():
            return optimize.milp(
                costs,
                integrality=np.full(len(costs), int(integral)),
                bounds=optimize.Bounds(0, 1),
                constraints=constraints,
                options={"time_limit": time_limit_s, "mip_rel_gap": _MIP_GAP},
            )

    def _budget(self, row: Row, tightened: float) -> tuple[Matrix, float]:
        """In units of the common divisor with half a unit of room: there the solver's tolerance decides nothing."""
        assert row.cap is not None
        use = np.array([amount for choices in row.use for amount in choices], dtype=object)
        unit = math.gcd(*(int(amount) for amount in use)) or 1
        room = (row.cap - row.base) // unit
        norm = max(room / _LARGEST_USE, 1.0)
        return (use // unit).astype(np.float64) / norm, (room + 0.5) / norm - tightened

    def _cut(self, cut: Cut) -> tuple[Matrix, float]:
        row = np.zeros(len(self._costs))
        row[self._starts[:-1] + np.array(cut.selection)] = 1
        return row, len(cut.selection) - cut.distance


def _check_minima(problem: Problem) -> None:
    """Refuse a budget that no choice keeps; of a latency the least need not be that of the lowest widths."""
    has_lower = any(min(group.widths) > MIN_BITS for group in problem.groups)
    for row in problem.caps:
        if row.cap is not None and row.minimum > row.cap:
            raise UsageError(
                where=f"--budget {row.name}",
                got="less than any choice of widths needs",
                allowed=f"{row.enough(row.minimum)} or more",
                do=f"raise this budget{', or allow lower widths with --bits' if has_lower else ''}",
            )


def _contradiction(problem: Problem, time_limit_s: float) -> UsageError:
    """Each budget can be kept alone: name those that cannot be kept together, and what one needs beside the others."""
    at_odds = problem.caps
    for row in problem.caps:
        others = tuple(other for other in at_odds if other is not row)
        if _best(replace(problem, rows=others), (), time_limit_s) is None:
            at_odds = others
    *beside, row = at_odds
    groups = tuple(replace(group, costs=tuple(map(float, use))) for group, use in zip(problem.groups, row.use))
    found = solve(Problem(groups=groups, rows=tuple(beside)), time_limit_s=time_limit_s)
    assert found is not None  # without `row` the others can be kept
    return UsageError(
        where=f"--budget {row.name}",
        got=f"not possible together with {', '.join(other.name for other in beside)}",
        allowed=f"{row.enough(row.total(found.selection))} or more while the others are kept",
        do="raise one of these budgets",
    )


def _out_of_time(time_limit_s: float, message: str) -> UnavailableError:
    return UnavailableError(
        where="solver",
        got=f"no assignment after {time_limit_s:g} s ({message})",
        allowed="an assignment within that time",
        do="give fewer budgets, fewer widths, or tie layers together",
    )


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """HiGHS 1.12 prints a line of its own now and then, with all output off; stdout is for results."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C has buffered would come out later
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
