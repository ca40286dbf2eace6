"""Successive halving: all candidates on a few samples, the better half on twice as many, until few are left.

A candidate is dropped only when it is worse than the last one that stays and their paired interval says so: chance
drops nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bitswitch_deploy.search.score import Scores
from bitswitch_deploy.search.statistics import compare
from bitswitch_deploy.tensors import WidthAssignment

FEW = 4

Measure = Callable[[Sequence[WidthAssignment], int], Sequence[Scores]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Survivor:
    """A candidate and its scores on all samples."""

    assignment: WidthAssignment
    scores: Scores


def halve(candidates: Sequence[WidthAssignment], measure: Measure, *, start: int, total: int) -> tuple[Survivor, ...]:
    """Those that are left after the rounds, by mean loss on all `total` samples, best first.

    Args:
        candidates: at least one. measure: scores of assignments on the first so many samples.
        start: samples of the first round. total: samples of the last one.
    """
    left = list(dict.fromkeys(candidates))
    n = min(start, total)
    while True:
        scored = sorted(zip(left, measure(left, n)), key=lambda each: (each[1].mean_loss, _tie(each[0])))
        if n >= total:
            return tuple(Survivor(assignment=assignment, scores=scores) for assignment, scores in scored)
        left = [assignment for assignment, _ in _kept(scored)]
        n = min(2 * n, total)


def _kept(scored: list[tuple[WidthAssignment, Scores]]) -> list[tuple[WidthAssignment, Scores]]:
    if len(scored) <= FEW:
        return scored
    half = max(FEW, (len(scored) + 1) // 2)
    last = scored[half - 1][1]
    return scored[:half] + [each for each in scored[half:] if compare(each[1], last).loss.low <= 0]


def _tie(assignment: WidthAssignment) -> tuple[int, tuple[tuple[str, int], ...]]:
    return (assignment.default, assignment.overrides)
