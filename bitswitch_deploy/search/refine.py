"""Local refinement in both directions: one group a width up or down, or one up and another one down, by measurement.

RFQuant's greedy search (arXiv 2401.01543) moves down only until a budget holds, judges each move by one mini-batch and
may undo what it just did. Here the budget always holds, moves are judged on all search samples of the same search, the
predicted best are tried first, and only what a paired interval calls better is taken, one that allows for the number of
moves tried: so no move is ever undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bitswitch_deploy.search.candidates import neighbours
from bitswitch_deploy.search.dominance import Dominated
from bitswitch_deploy.search.problem import Problem, Selection
from bitswitch_deploy.search.score import Scores
from bitswitch_deploy.search.statistics import compare

MAX_ROUNDS = 3

MeasureSelections = Callable[[Sequence[Selection]], Sequence[Scores]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Refined:
    """Where refinement ended. moves: accepted ones."""

    selection: Selection
    scores: Scores
    moves: int


def refine(
    problem: Problem,
    selection: Selection,
    scores: Scores,
    measure: MeasureSelections,
    *,
    tries: int,
    dominated: Iterable[Dominated] = (),
) -> Refined:
    """Take the best significant move, and again, until there is none.

    Args:
        problem: with the budgets, kept by every selection that is tried.
        selection, scores: where to begin. measure: scores of selections on the same samples.
        tries: moves that are measured in each round, those of least predicted cost.
        dominated: widths that no move ends at.
    """
    moves = 0
    seen = {selection}
    for _ in range(MAX_ROUNDS):
        nearest = neighbours(problem, selection, dominated=dominated, count=tries + len(seen))
        nearby = [each for each in nearest if each not in seen][:tries]
        seen.update(nearby)
        better = [
            (measured.mean_loss, each, measured)
            for each, measured in zip(nearby, measure(nearby))
            if compare(measured, scores, comparisons=len(nearby)).loss.high < 0
        ]
        if not better:
            break
        _, selection, scores = min(better, key=lambda each: each[:2])
        moves += 1
    return Refined(selection=selection, scores=scores, moves=moves)
