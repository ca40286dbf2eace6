"""From a problem and a way to measure to the assignment that is taken: under budgets, or from a front.

Predicted costs propose, measured losses decide. Uniform widths that keep the budgets are among the candidates always,
so what comes out is as good as the best of them on the samples of the search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bitswitch_deploy.search.candidates import near_optimal, sweep, usual_distance
from bitswitch_deploy.search.costs import assignment_of
from bitswitch_deploy.search.dominance import Dominated, remove_dominated
from bitswitch_deploy.search.halving import halve
from bitswitch_deploy.search.problem import Problem, Row, Selection
from bitswitch_deploy.search.refine import refine
from bitswitch_deploy.search.score import Scores
from bitswitch_deploy.search.statistics import rank_correlation
from bitswitch_deploy.tensors import WidthAssignment

# How many are measured. With 12 levels of 3 candidates ResNet-20 takes minutes on two cores.
CANDIDATES = 8
LEVELS = 12
CANDIDATES_PER_LEVEL = 3
# Levels of average bits are half a bit apart; so many halvings make that 0.03 bits where a drop has its limit.
BISECTIONS = 4
FIRST_ROUND = 512
_FEWEST_TO_CORRELATE = 5

Measure = Callable[[Sequence[WidthAssignment], int], Sequence[Scores]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurement:
    """A selection of the problem, with its scores on all samples of the search."""

    selection: Selection
    assignment: WidthAssignment
    scores: Scores


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """What was chosen and from what.

    front: from dear to cheap in the swept resource. n_candidates: measured ones. correlation: of predicted cost and
    measured loss over them.
    """

    chosen: Measurement
    front: tuple[Measurement, ...]
    n_candidates: int
    moves: int
    dominated: tuple[Dominated, ...]
    correlation: float | None


class Chooser:
    """Measures candidates of one problem, each once, and remembers them.

    Args:
        problem: with all choices. measure: scores of assignments on the first so many samples. n: samples there are.
    """

    def __init__(self, problem: Problem, measure: Measure, n: int) -> None:
        self._problem, self._measure, self._n = problem, measure, n
        self._known: dict[Selection, Measurement] = {}

    def under_budgets(self) -> Choice:
        """The assignment of least measured loss that keeps every budget.

        Raises:
            UsageError: the budgets leave none.
        """
        fewer, dominated = remove_dominated(self._problem)
        solutions = near_optimal(fewer, count=CANDIDATES, distance=usual_distance(fewer))
        best = self._best([self._selection(fewer, each.selection) for each in solutions] + self.feasible_uniform())
        refined = refine(self._problem, best.selection, best.scores, self._scores, tries=len(self._problem.groups))
        self._remember(refined.selection, refined.scores)
        chosen = self._known[refined.selection]
        return self._choice(chosen, (), refined.moves, dominated)

    def on_front(self, swept: Row, *, max_drop: float | None, done: Callable[[], object] = lambda: None) -> Choice:
        """The front over one resource, and of it the cheapest that is right on at most `max_drop` points less.

        The drop is that of right samples against the highest width. Between the levels where it crosses `max_drop`
        more is measured. Without `max_drop` the best of the front is chosen.

        Raises:
            UsageError: the budgets leave nothing.
            LookupError: nothing on the front is within `max_drop`.
        """
        bounded = replace(swept, cap=swept.maximum if swept.cap is None else swept.cap)
        problem = replace(self._problem, rows=tuple(bounded if row is swept else row for row in self._problem.rows))
        fewer, dominated = remove_dominated(problem)
        row = fewer.rows[problem.rows.index(bounded)]
        for level in sweep(fewer, row, levels=LEVELS, count=CANDIDATES_PER_LEVEL, done=done):
            self._best([self._selection(fewer, each.selection) for each in level.solutions])
        self._scores(self.feasible_uniform())
        if max_drop is None:
            front = self._front(swept)
            return self._choice(min(front, key=lambda each: each.scores.mean_loss), front, 0, dominated)
        ((_, highest), *_) = self._problem.uniform()
        (reference,) = self._scores([highest])
        limit = reference.right_percent - max_drop
        chosen = self._within(swept, limit)
        if chosen is None:
            raise LookupError(f"nothing within {max_drop:g} points")
        chosen = self._closer(fewer, row, swept, limit, chosen)
        return self._choice(chosen, self._front(swept), 0, dominated)

    def _within(self, swept: Row, limit: float) -> Measurement | None:
        """The cheapest of the front that is right on `limit` percent."""
        within = [each for each in self._front(swept) if each.scores.right_percent >= limit]
        return within[-1] if within else None

    def _closer(self, fewer: Problem, row: Row, swept: Row, limit: float, chosen: Measurement) -> Measurement:
        """Measure between the cheapest within the limit and the next cheaper one, which is not, by halves."""
        totals = [swept.total(each.selection) for each in self._front(swept)]
        high = swept.total(chosen.selection)
        low = max((total for total in totals if total < high), default=high)
        for _ in range(BISECTIONS):
            cap = (low + high) // 2
            if cap <= low:
                break
            bound = replace(row, cap=cap)
            bounded = replace(fewer, rows=tuple(bound if other is row else other for other in fewer.rows))
            found = near_optimal(bounded, count=CANDIDATES_PER_LEVEL, distance=usual_distance(fewer))
            self._best([self._selection(fewer, each.selection) for each in found])
            cheaper = self._within(swept, limit)
            if cheaper is not None and swept.total(cheaper.selection) <= cap:
                chosen, high = cheaper, swept.total(cheaper.selection)
            else:
                low = cap
        return chosen

    def feasible_uniform(self) -> list[Selection]:
        """Uniform widths that keep the budgets, highest first."""
        return [each for _, each in self._problem.uniform() if self._problem.is_feasible(each)]

    def _front(self, swept: Row) -> tuple[Measurement, ...]:
        """From dear to cheap, without those for which something as cheap has a lower loss."""
        front: list[Measurement] = []
        full = [each for each in self._known.values() if self._problem.is_feasible(each.selection)]
        for each in sorted(full, key=lambda each: (swept.total(each.selection), each.scores.mean_loss)):
            if not front or each.scores.mean_loss < front[-1].scores.mean_loss:
                front.append(each)
        return tuple(reversed(front))

    def _best(self, selections: Sequence[Selection]) -> Measurement:
        by_assignment = {assignment_of(self._problem.widths(each)): each for each in selections}
        survivors = halve(list(by_assignment), self._measure, start=FIRST_ROUND, total=self._n)
        for survivor in survivors:
            self._remember(by_assignment[survivor.assignment], survivor.scores)
        return self._known[by_assignment[survivors[0].assignment]]

    def _scores(self, selections: Sequence[Selection]) -> Sequence[Scores]:
        scores = self._measure([assignment_of(self._problem.widths(each)) for each in selections], self._n)
        for selection, each in zip(selections, scores):
            self._remember(selection, each)
        return scores

    def _remember(self, selection: Selection, scores: Scores) -> None:
        assignment = assignment_of(self._problem.widths(selection))
        self._known[selection] = Measurement(selection=selection, assignment=assignment, scores=scores)

    def _selection(self, fewer: Problem, selection: Selection) -> Selection:
        return self._problem.selection(fewer.widths(selection))

    def _choice(
        self, chosen: Measurement, front: tuple[Measurement, ...], moves: int, dominated: tuple[Dominated, ...]
    ) -> Choice:
        known = list(self._known.values())
        costs = np.array([self._problem.cost(each.selection) for each in known])
        losses = np.array([each.scores.mean_loss for each in known])
        return Choice(
            chosen=chosen,
            front=front,
            n_candidates=len(known),
            moves=moves,
            dominated=dominated,
            correlation=rank_correlation(costs, losses) if len(known) >= _FEWEST_TO_CORRELATE else None,
        )
