"""Choices that cannot be part of an optimum, because another one costs no more and uses no more of anything.

That is what becomes of a format that the target does not speed up: 6 bits in an 8-bit container take the time and
the bytes of 8 bits, and lose accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from bitswitch_deploy.search.problem import Group, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Dominated:
    """A choice that was left out. by: the width that is at least as good in cost and in every budget."""

    group: str
    width: int
    by: int


def remove_dominated(problem: Problem) -> tuple[Problem, tuple[Dominated, ...]]:
    """The same problem without dominated choices, and what was left out. The optimum costs the same.

    Of two choices that are equal in everything the wider one stays.
    """
    dominated = tuple(
        Dominated(group=group.name, width=group.widths[k], by=group.widths[winner])
        for index, group in enumerate(problem.groups)
        for k in range(len(group.widths))
        if (winner := _dominator(problem, index, k)) is not None
    )
    return without(problem, dominated), dominated


def without(problem: Problem, dominated: Iterable[Dominated]) -> Problem:
    """The problem without these choices; its rows stay in order."""
    left_out = {(each.group, each.width) for each in dominated}
    kept = [
        [k for k, width in enumerate(group.widths) if (group.name, width) not in left_out] for group in problem.groups
    ]
    groups = tuple(_only(group, ks) for group, ks in zip(problem.groups, kept))
    rows = tuple(
        replace(row, use=tuple(tuple(use[k] for k in ks) for use, ks in zip(row.use, kept))) for row in problem.rows
    )
    return Problem(groups=groups, rows=rows)


def _only(group: Group, ks: list[int]) -> Group:
    return replace(group, widths=tuple(group.widths[k] for k in ks), costs=tuple(group.costs[k] for k in ks))


def _dominator(problem: Problem, index: int, k: int) -> int | None:
    """The choice that is best among those that dominate `k`; it is not dominated itself."""

    def measures(choice: int) -> tuple[float, ...]:
        group = problem.groups[index]
        return (group.costs[choice], *(row.use[index][choice] for row in problem.caps), -group.widths[choice])

    own = measures(k)
    others = [measures(j) for j in range(len(problem.groups[index].widths))]
    better = [
        j
        for j, other in enumerate(others)
        if j != k and other != own and all(a <= b for a, b in zip(other[:-1], own[:-1])) and other < own
    ]
    return min(better, key=lambda j: others[j]) if better else None
