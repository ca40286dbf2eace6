"""Selections of few changes: two or three runs of groups, one behind the other, each run at one width.

A change of width between two layers costs something of its own: the layer behind it gets inputs of another width than
it was trained with. The cost of a single layer holds two such changes, so a sum of these costs charges long runs for
changes that they do not have, and a solver that goes by sums passes them over.

The best selection of a pattern of widths a, b, c lets groups 0..i-1 take a, i..j-1 take b and the others c. With
P[w][i] the sum of the costs at width w of the first i groups it is the one with the i < j of least

    (P[a][i] - P[b][i]) + (P[b][j] + P[c][n] - P[c][j])

and resources add up the same way. Two runs are that with c = b and j = n.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.search.dominance import Dominated
from bitswitch_deploy.search.problem import Problem, Selection

_MOST_ENDS = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sums:
    """Of one quantity. first: [widths, ends], what the groups up to each end have of it at each width."""

    first: npt.NDArray[Any]

    def of(self, pattern: Sequence[int]) -> npt.NDArray[Any]:
        """[i, j]: the whole with runs that end at i and j."""
        a, b, c = (self.first[width] for width in pattern)
        whole: npt.NDArray[Any] = (a - b)[:, None] + (b + c[-1] - c)[None, :]
        return whole


def in_runs(problem: Problem, dominated: Iterable[Dominated], *, count: int) -> tuple[Selection, ...]:
    """Up to `count` selections that keep the budgets: the best of each pattern of widths, least predicted cost first.

    Groups stand in the order of the network, or in that of its master. Where there are many, runs end at 256 places,
    evenly spread. dominated: of the problem; where a wider choice takes no more than another one, a run of that other
    one takes the wider one. Uniform widths are no runs.
    """
    n, widths = len(problem.groups), sorted({width for group in problem.groups for width in group.widths}, reverse=True)
    if n < 2 or count < 1:
        return ()
    ends = np.unique(np.linspace(1, n, min(n, _MOST_ENDS)).round().astype(int))
    taken = _taken(problem, dominated)
    costs = _sums([{w: g.costs[k] for w, k in each.items()} for g, each in zip(problem.groups, taken)], widths, ends)
    limits = [(_sums([dict.fromkeys(set(widths) - set(each), 1) for each in taken], widths, ends), 0)]
    for row in problem.rows:
        if row.cap is not None:
            uses = [{width: use[k] for width, k in each.items()} for use, each in zip(row.use, taken)]
            limits.append((_sums(uses, widths, ends), row.cap - row.base))
    i, j = np.ix_(ends, ends)
    best: dict[Selection, float] = {}
    for pattern in itertools.product(range(len(widths)), repeat=3):
        if pattern[0] == pattern[1]:
            continue
        are_two = pattern[1] == pattern[2]
        allowed = (i < j) & (j == n if are_two else j < n)
        for sums, cap in limits:
            allowed &= sums.of(pattern) <= cap
        if allowed.any():
            whole = np.where(allowed, costs.of(pattern), np.inf)
            first, second = (ends[place] for place in divmod(int(whole.argmin()), len(ends)))
            runs = [pattern[0]] * first + [pattern[1]] * (second - first) + [pattern[2]] * (n - second)
            selection = tuple(each[widths[index]] for each, index in zip(taken, runs))
            if len(set(problem.widths(selection).values())) > 1:
                best[selection] = problem.cost(selection)
    return tuple(sorted(best, key=lambda each: (best[each], each))[:count])


def _taken(problem: Problem, dominated: Iterable[Dominated]) -> list[dict[int, int]]:
    """By width the choice that each group takes in a run of it; without those that it does not offer.

    A width that a narrower one dominates stays: its cost alone is higher, and costs alone mislead in a run.
    """
    instead = {(each.group, each.width): each.by for each in dominated if each.by > each.width}
    return [
        {width: group.widths.index(instead.get((group.name, width), width)) for width in group.widths}
        for group in problem.groups
    ]


def _sums(choices: Sequence[Mapping[int, float]], widths: Sequence[int], ends: npt.NDArray[Any]) -> _Sums:
    """What a group does not offer counts as nothing."""
    first = np.array([[choice.get(width, 0) for choice in choices] for width in widths]).cumsum(axis=1)
    return _Sums(first=first[:, ends - 1])
