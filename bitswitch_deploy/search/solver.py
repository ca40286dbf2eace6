"""The best selection under all budgets: a multiple-choice knapsack for scipy's HiGHS, checked in exact integers.

With one binary x[g,k] for each choice: sum over k of x[g,k] = 1, and each row with a cap is one inequality. Two traps
of the solver are met here. It stops at an absolute gap of 1e-6 and accepts rows that are off by 1e-6: so costs are
scaled until the relaxed optimum is 1000, rows are written in whole units (up to 1,000 of them) with half a unit of
room, and whatever comes back is added up again in integers. A point that exceeds a budget is cut off, with all that use
as much of it, and the problem solved again. Rows scaled to a limit of 1 made HiGHS 1.12 (scipy 1.17.1) return a point
that is not the best one; so did costs and uses of extreme size, which therefore are taken above the least of each group
and without the choices that cannot be part of an answer.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
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
# costs of more than so many times the answer's are left out, and the rest is solved again
_WIDEST = 1e2
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
    kept = _affordable(problem, [list(range(len(group.widths))) for group in problem.groups])
    covers: list[_Cover] = []
    best: Solution | None = None
    started = time.monotonic()
    while kept is not None:
        programme = _Programme(problem, kept, cuts, covers)
        found = programme.minimise(time_limit_s)
        if found is None:
            break
        if not problem.is_feasible(found.selection):
            covers.append(_cover(problem, kept, found.selection))
            if time.monotonic() - started > time_limit_s:
                raise _out_of_time(time_limit_s, f"of {len(covers)} none keeps the budgets to the last unit")
            continue
        best = found if best is None else min(best, found, key=lambda each: each.cost)
        excess = programme.excess(best.selection)
        if programme.largest_cost <= _WIDEST * excess or excess == 0:
            break
        # what costs more alone is part of nothing better, and beside it the solver does not see how the rest differs
        kept = _affordable(problem, programme.no_dearer(excess))
    return best


_Kept = list[list[int]]
"""Indices of the choices of each group that may be part of an answer."""


def _affordable(problem: Problem, kept: _Kept) -> _Kept | None:
    """Without choices that keep no budget beside the least use of all other groups; None where a group has no other.

    In exact integers: one entry that is far above a budget would make the solver refuse what is possible without it.
    """
    while True:
        fewer = kept
        for row in problem.caps:
            assert row.cap is not None
            least = _least(row, kept)
            room = row.cap - row.base - sum(least)
            fewer = [[k for k in ks if use[k] - low <= room] for ks, use, low in zip(fewer, row.use, least)]
        if not all(fewer):
            return None
        if fewer == kept:
            return kept
        kept = fewer


def _least(row: Row, kept: _Kept) -> list[int]:
    """What each group uses at least."""
    return [min(use[k] for k in ks) for use, ks in zip(row.use, kept)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cover:
    """Choices (group, choice) of which more than `most` at a time break a budget."""

    choices: frozenset[tuple[int, int]]
    most: int


def _cover(problem: Problem, kept: _Kept, selection: Selection) -> _Cover:
    """Of a selection that breaks a budget: the groups that do it alone, with all choices that use as much or more."""
    row = next(row for row in problem.caps if row.cap is not None and row.total(selection) > row.cap)
    least = _least(row, kept)
    above = sorted(((row.use[g][k] - least[g], g) for g, k in enumerate(selection)), reverse=True)
    totals = itertools.accumulate((more for more, _ in above), initial=row.base + sum(least))
    n = next(n for n, total in enumerate(totals) if total > (row.cap or 0))
    members = [g for _, g in above[:n]]
    as_much = frozenset((g, k) for g in members for k in kept[g] if row.use[g][k] >= row.use[g][selection[g]])
    return _Cover(choices=as_much, most=n - 1)


class _Programme:
    """One integer programme: columns are the kept choices of all groups, one after the other.

    largest_cost: of a choice, above the least of its group.
    """

    def __init__(self, problem: Problem, kept: _Kept, cuts: Sequence[Cut], covers: Sequence[_Cover]) -> None:
        self._problem, self._kept = problem, kept
        self._columns = [(g, k) for g, ks in enumerate(kept) for k in ks]
        self._starts = np.cumsum([0, *map(len, kept)])
        self._lowest = [min(group.costs[k] for k in ks) for group, ks in zip(problem.groups, kept)]
        self._costs = np.array([self._above(g, k) for g, k in self._columns])
        self.largest_cost = float(self._costs.max())
        rows = [self._budget(row) for row in problem.caps]
        rows += [self._at_most(set(enumerate(cut.selection)), len(cut.selection) - cut.distance) for cut in cuts]
        rows += [self._at_most(cover.choices, cover.most) for cover in covers]
        self._rows = np.array([row for row, _ in rows]).reshape(len(rows), len(self._costs))
        self._limits = np.array([limit for _, limit in rows])

    def excess(self, selection: Selection) -> float:
        """What a selection costs more than the cheapest choice of each group."""
        return math.fsum(self._above(g, k) for g, k in enumerate(selection))

    def no_dearer(self, cost: float) -> _Kept:
        """The choices that cost no more than this above the least of their group."""
        return [[k for k in ks if self._above(g, k) <= cost] for g, ks in enumerate(self._kept)]

    def _above(self, g: int, k: int) -> float:
        return self._problem.groups[g].costs[k] - self._lowest[g]

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
        parts = itertools.pairwise(self._starts)
        selection = tuple(ks[int(np.argmax(x[a:b]))] for ks, (a, b) in zip(self._kept, parts))
        bound = math.fsum(self._lowest) + float(result.mip_dual_bound) / scale
        cost = self._problem.cost(selection)
        return Solution(selection=selection, cost=cost, bound=min(bound, cost), is_optimal=result.status == _OPTIMAL)

    def _scale(self) -> float | None:
        """Factor that puts the relaxed optimum at 1000; None when even the relaxed problem has no solution."""
        largest = self.largest_cost
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

    def _budget(self, row: Row) -> tuple[Matrix, float]:
        """Above the least of each group, in units of the common divisor, with half a unit of room: there the solver's
        tolerance decides nothing.
        """
        assert row.cap is not None
        least = _least(row, self._kept)
        above = [row.use[g][k] - least[g] for g, k in self._columns]
        unit = math.gcd(*above) or 1
        room = (row.cap - row.base - sum(least)) // unit
        norm = max(room / _LARGEST_USE, 1.0)
        return np.array([use // unit for use in above], np.float64) / norm, (room + 0.5) / norm

    def _at_most(self, choices: Collection[tuple[int, int]], most: int) -> tuple[Matrix, float]:
        return np.array([float(column in choices) for column in self._columns]), most


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
        # each can be kept alone
        if len(others) > 1 and _best(replace(problem, rows=others), (), time_limit_s) is None:
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
