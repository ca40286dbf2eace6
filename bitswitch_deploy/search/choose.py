"""From a problem and a way to measure to the assignment that is taken: under budgets, or from a front.

Predicted costs propose, measured losses decide. Costs that rank the proposed assignments poorly are fitted to what was
measured, and propose again. Uniform widths that keep the budgets are measured on all samples of the search always, so
what comes out is as good as the best of them there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.search.candidates import bounded, near_optimal, sweep, usual_distance
from bitswitch_deploy.search.costs import assignment_of
from bitswitch_deploy.search.dominance import Dominated, remove_dominated, without
from bitswitch_deploy.search.halving import halve
from bitswitch_deploy.search.problem import Problem, Row, Selection
from bitswitch_deploy.search.refine import refine
from bitswitch_deploy.search.refit import refitted
from bitswitch_deploy.search.runs import in_runs
from bitswitch_deploy.search.score import Scores
from bitswitch_deploy.search.solver import Solution
from bitswitch_deploy.search.statistics import rank_correlation
from bitswitch_deploy.tensors import WidthAssignment

# How many are measured. With 12 levels of 3 candidates ResNet-20 takes minutes on two cores.
CANDIDATES = 8
LEVELS = 12
CANDIDATES_PER_LEVEL = 3
# On top of these, with few changes of width; for a front it is one for each level.
CANDIDATES_IN_RUNS = 4
# Levels of average bits are half a bit apart; so many halvings make that 0.03 bits where a drop has its limit.
BISECTIONS = 4
FIRST_ROUND = 512
_FEWEST_TO_CORRELATE = 5
# Below this rank correlation costs of single layers do not say much about whole assignments.
POOR_CORRELATION = 0.7
MAX_REFITS = 2
# Few: a fit adds a tenth to what a search of ResNet-20 measures. For a front it is one for each level.
CANDIDATES_PER_REFIT = 4

Measure = Callable[[Sequence[WidthAssignment], int], Sequence[Scores]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurement:
    """A selection of the problem, with its scores on all samples of the search."""

    selection: Selection
    assignment: WidthAssignment
    scores: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """How well costs of single layers predicted whole assignments, and what was done about it.

    correlation: rank correlation of predicted costs and losses on the samples of the first round, over the candidates
    that were measured before any fit, of a front within each of its levels (across them it is high, however wrong the
    costs are: few bits cost more). None for fewer than 5, or where all have the same loss.
    refits: fits of the costs to these losses. n_proposed: candidates that these proposed.
    n_taken: those of them that were the best, or part of the front, when the fits were done.
    """

    correlation: float | None
    refits: int = 0
    n_proposed: int = 0
    n_taken: int = 0

    @property
    def is_poor(self) -> bool:
        """Whether the costs ranked the candidates too poorly to rely on them."""
        return self.correlation is not None and self.correlation < POOR_CORRELATION


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """What was chosen and from what.

    front: from dear to cheap in the swept resource. n_candidates: those that were measured on all samples.
    n_unproven: proposals for which the solver ran out of time. dominated: choices that no candidate was proposed with.
    """

    chosen: Measurement
    front: tuple[Measurement, ...]
    n_candidates: int
    n_unproven: int
    moves: int
    dominated: tuple[Dominated, ...]
    prediction: Prediction


class Chooser:
    """Measures candidates of one problem, each once, and remembers them.

    Args:
        problem: with all choices. measure: scores of assignments on the first so many samples. n: samples there are.
    """

    def __init__(self, problem: Problem, measure: Measure, n: int) -> None:
        self._problem, self._measure, self._n = problem, measure, n
        self._known: dict[Selection, Measurement] = {}
        # of everything that was measured at all, on the samples that all of it has seen
        self._first_losses: dict[Selection, float] = {}
        self._n_unproven = 0

    def under_budgets(self) -> Choice:
        """The assignment of least measured loss that keeps every budget.

        Raises:
            UsageError: the budgets leave none.
        """
        _, dominated = remove_dominated(self._problem)

        def propose(problem: Problem, count: int) -> list[Selection]:
            fewer = without(problem, dominated)
            return self._proposed(fewer, near_optimal(fewer, count=count, distance=usual_distance(fewer)))

        runs = list(in_runs(self._problem, dominated, count=CANDIDATES_IN_RUNS))
        candidates = propose(self._problem, CANDIDATES) + runs + self.feasible_uniform()
        self._compete(candidates)
        self._scores(self.feasible_uniform())
        problem, prediction = self._refit(
            self._problem,
            self._correlation([candidates]),
            lambda fit: [propose(fit, CANDIDATES_PER_REFIT)],
            kept=lambda: (self._best(),),
        )
        best = self._best()
        chosen, moves = self._refined(problem, best, dominated)
        return self._choice(chosen, (), moves, dominated, prediction)

    def on_front(self, swept: Row, *, is_within: Callable[[Scores], bool] | None) -> Choice:
        """The front over one resource, and the cheapest assignment measured that is within a limit.

        Between the levels where the limit is crossed more is measured, and what is found there is refined. Of those
        that are as cheap the one of least loss is taken, on the front or not.

        is_within: whether scores keep the limit; None takes the best of the front.

        Raises:
            UsageError: the budgets leave nothing.
            LookupError: nothing that was measured is within the limit.
        """
        problem = bounded(self._problem, swept, swept.maximum if swept.cap is None else swept.cap)
        _, dominated = remove_dominated(problem)
        place = self._problem.rows.index(swept)

        def levels(problem: Problem, count: int, n_runs: int = 0) -> list[list[Selection]]:
            fewer = without(problem, dominated)
            found = sweep(fewer, fewer.rows[place], levels=LEVELS, count=count)
            runs = [
                in_runs(bounded(problem, problem.rows[place], level.cap), dominated, count=n_runs) for level in found
            ]
            return [[*self._proposed(fewer, level.solutions), *more] for level, more in zip(found, runs)]

        crowds = levels(problem, CANDIDATES_PER_LEVEL, n_runs=1)
        for crowd in crowds:
            self._compete(crowd)
        self._scores(self.feasible_uniform())
        fit, prediction = self._refit(
            problem, self._correlation(crowds), lambda fit: levels(fit, 1), kept=lambda: self._front(swept)
        )
        if is_within is None:
            best = min(self._front(swept), key=lambda each: each.scores.mean_loss)
            chosen, moves = self._refined(fit, best, dominated)
            return self._choice(chosen, self._front(swept), moves, dominated, prediction)
        self._close_in(without(fit, dominated), swept, is_within)
        cheapest = self._cheapest(swept, is_within)
        cap = swept.total(cheapest.selection)
        _, moves = self._refined(bounded(fit, fit.rows[place], cap), cheapest, dominated)
        return self._choice(self._cheapest(swept, is_within), self._front(swept), moves, dominated, prediction)

    def _refit(
        self,
        problem: Problem,
        correlation: float | None,
        propose: Callable[[Problem], list[list[Selection]]],
        *,
        kept: Callable[[], Sequence[Measurement]],
    ) -> tuple[Problem, Prediction]:
        """Fit costs that predict poorly to what was measured, and measure what they propose, twice at most.

        correlation: of the costs so far. propose: lists of candidates that compete among themselves. kept: the best so
        far, or the front.

        Returns:
            The problem with the costs to rely on, and what became of them.
        """
        prediction, fit, refits = Prediction(correlation=correlation), problem, 0
        proposed: set[Selection] = set()
        while prediction.is_poor and refits < MAX_REFITS:
            fit, refits = refitted(problem, self._first_losses), refits + 1
            n_before = len(proposed)
            for crowd in propose(fit):
                new = [each for each in crowd if each not in self._first_losses]
                if new:
                    self._compete(new)
                proposed.update(new)
            if len(proposed) == n_before:
                break
        n_taken = sum(each.selection in proposed for each in kept())
        return fit, replace(prediction, refits=refits, n_proposed=len(proposed), n_taken=n_taken)

    def _best(self) -> Measurement:
        return min(self._known.values(), key=lambda each: each.scores.mean_loss)

    def _refined(
        self, problem: Problem, best: Measurement, dominated: tuple[Dominated, ...]
    ) -> tuple[Measurement, int]:
        """Where moves from the best one end, and how many were taken."""
        tries = len(problem.groups)
        refined = refine(problem, best.selection, best.scores, self._scores, tries=tries, dominated=dominated)
        self._remember(refined.selection, refined.scores)
        return self._known[refined.selection], refined.moves

    def _correlation(self, crowds: Sequence[Sequence[Selection]]) -> float | None:
        """Of predicted costs and losses on the first samples, both less their mean in each crowd."""
        costs, losses = [], []
        for crowd in crowds:
            unlike = list(dict.fromkeys(crowd))
            costs.append(_centred([self._problem.cost(each) for each in unlike]))
            losses.append(_centred([self._first_losses[each] for each in unlike]))
        cost, loss = np.concatenate(costs), np.concatenate(losses)
        is_telling = len(loss) >= _FEWEST_TO_CORRELATE and bool(loss.any())
        return rank_correlation(cost, loss) if is_telling else None

    def _cheapest(self, swept: Row, is_within: Callable[[Scores], bool]) -> Measurement:
        """Of all that is within the limit and keeps the budgets; the one of least loss where several are as cheap.

        Raises:
            LookupError: nothing is.
        """
        within = [each for each in self.feasible() if is_within(each.scores)]
        if not within:
            raise LookupError("nothing that was measured is within the limit")
        return min(within, key=lambda each: (swept.total(each.selection), each.scores.mean_loss))

    def _close_in(self, fewer: Problem, swept: Row, is_within: Callable[[Scores], bool]) -> None:
        """Measure between the cheapest within the limit and the next cheaper one, which is not, by halves."""
        row = fewer.rows[self._problem.rows.index(swept)]
        totals = [swept.total(each.selection) for each in self.feasible()]
        high = swept.total(self._cheapest(swept, is_within).selection)
        low = max((total for total in totals if total < high), default=high)
        for _ in range(BISECTIONS):
            cap = (low + high) // 2
            if cap <= low:
                break
            found = near_optimal(bounded(fewer, row, cap), count=CANDIDATES_PER_LEVEL, distance=usual_distance(fewer))
            self._compete(self._proposed(fewer, found))
            cheapest = swept.total(self._cheapest(swept, is_within).selection)
            if cheapest <= cap:
                high = cheapest
            else:
                low = cap

    def feasible_uniform(self) -> list[Selection]:
        """Uniform widths that keep the budgets, highest first."""
        return [each for _, each in self._problem.uniform() if self._problem.is_feasible(each)]

    def feasible(self) -> list[Measurement]:
        """All that was measured on all samples and keeps the budgets."""
        return [each for each in self._known.values() if self._problem.is_feasible(each.selection)]

    def _front(self, swept: Row) -> tuple[Measurement, ...]:
        """From dear to cheap, without those for which something as cheap has a lower loss."""
        front: list[Measurement] = []
        for each in sorted(self.feasible(), key=lambda each: (swept.total(each.selection), each.scores.mean_loss)):
            if not front or each.scores.mean_loss < front[-1].scores.mean_loss:
                front.append(each)
        return tuple(reversed(front))

    def _compete(self, selections: Sequence[Selection]) -> None:
        """Measure by halving; the survivors are known then."""
        by_assignment = {assignment_of(self._problem.widths(each)): each for each in selections}

        def measure(wanted: Sequence[WidthAssignment], n: int) -> Sequence[Scores]:
            scores = self._measure(wanted, n)
            for assignment, each in zip(wanted, scores):
                self._first_losses[by_assignment[assignment]] = each.first(FIRST_ROUND).mean_loss
            return scores

        for survivor in halve(list(by_assignment), measure, start=FIRST_ROUND, total=self._n):
            self._remember(by_assignment[survivor.assignment], survivor.scores)

    def _scores(self, selections: Sequence[Selection]) -> Sequence[Scores]:
        scores = self._measure([assignment_of(self._problem.widths(each)) for each in selections], self._n)
        for selection, each in zip(selections, scores):
            self._remember(selection, each)
        return scores

    def _remember(self, selection: Selection, scores: Scores) -> None:
        assignment = assignment_of(self._problem.widths(selection))
        self._first_losses[selection] = scores.first(FIRST_ROUND).mean_loss
        self._known[selection] = Measurement(selection=selection, assignment=assignment, scores=scores)

    def _proposed(self, fewer: Problem, solutions: Sequence[Solution]) -> list[Selection]:
        """Selections of the whole problem."""
        self._n_unproven += sum(not each.is_optimal for each in solutions)
        return [self._problem.selection(fewer.widths(each.selection)) for each in solutions]

    def _choice(
        self,
        chosen: Measurement,
        front: tuple[Measurement, ...],
        moves: int,
        dominated: tuple[Dominated, ...],
        prediction: Prediction,
    ) -> Choice:
        return Choice(
            chosen=chosen,
            front=front,
            n_candidates=len(self._known),
            n_unproven=self._n_unproven,
            moves=moves,
            dominated=dominated,
            prediction=prediction,
        )


def _centred(values: Sequence[float]) -> npt.NDArray[np.float64]:
    array = np.array(values, np.float64)
    centred: npt.NDArray[np.float64] = array - array.mean()
    return centred
