"""What is taken: measured losses decide, uniform widths take part, and fronts and drops are what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from bitswitch_deploy.search import choose
from bitswitch_deploy.search.candidates import near_optimal
from bitswitch_deploy.search.choose import Chooser, Measure
from bitswitch_deploy.search.problem import Row
from bitswitch_deploy.search.score import Scores
from bitswitch_deploy.search.solver import Solution
from bitswitch_deploy.search.statistics import cautious_drop
from bitswitch_deploy.tensors import WidthAssignment
from tests.search.problems import average_row, every_selection, problem

WIDTHS = (8, 6, 4)
NAMES = "abcdef"


def measured_by(truth: Callable[[list[int]], float], asked: list[WidthAssignment]) -> Measure:
    """Scores whose mean loss is the truth; a sample is right where its loss is below 1."""
    spread = np.linspace(-0.5, 0.5, 201)

    def measure(wanted: Sequence[WidthAssignment], n: int) -> list[Scores]:
        asked.extend(wanted)
        losses = [spread[:n] + truth([each.bits_of(name) for name in NAMES]) for each in wanted]
        return [Scores(loss=loss, right=loss < 1) for loss in losses]

    return measure


def within(max_drop: float, reference: Scores) -> Callable[[Scores], bool]:
    return lambda scores: cautious_drop(scores, reference) <= max_drop


def test_a_uniform_width_wins_where_predictions_are_wrong() -> None:
    """Predicted: the first layers need bits. True: whatever is not uniform is bad."""
    costs: list[tuple[float, ...]] = [(0.0, s, 4.0 * s) for s in (32, 16, 8, 4, 2, 1)]
    given = problem(costs, average_row(6, 6, WIDTHS), widths=WIDTHS)
    asked: list[WidthAssignment] = []
    choice = Chooser(given, measured_by(lambda bits: float(np.std(bits)) + 1 / bits[0], asked), 201).under_budgets()
    assert set(given.widths(choice.chosen.selection).values()) == {6}
    assert all(sum(each.bits_of(name) for name in NAMES) <= 36 for each in asked)


def test_a_uniform_width_is_measured_on_all_samples_whatever_the_first_ones_say() -> None:
    """On the first 512 it is the worst of all, by far, and the best on the 1,536 behind them."""
    given = problem([(0.0, s, 4.0 * s) for s in (6, 5, 4, 3, 2, 1)], average_row(6, 6, WIDTHS), widths=WIDTHS)
    late = np.where(np.arange(4 * choose.FIRST_ROUND) < choose.FIRST_ROUND, 10.0, -10.0)

    def measure(wanted: Sequence[WidthAssignment], n: int) -> list[Scores]:
        uniform = [len({each.bits_of(name) for name in NAMES}) == 1 for each in wanted]
        losses = [late[:n] if each else np.zeros(n) for each in uniform]
        return [Scores(loss=loss, right=loss < 1) for loss in losses]

    choice = Chooser(given, measure, len(late)).under_budgets()
    assert len(set(given.widths(choice.chosen.selection).values())) == 1


def test_proposals_that_the_solver_had_no_time_to_prove_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem([(0.0, s, 4.0 * s) for s in (6, 5, 4, 3, 2, 1)], average_row(6, 5, WIDTHS), widths=WIDTHS)
    measure = measured_by(lambda bits: 1 / bits[0], [])
    assert Chooser(given, measure, 201).under_budgets().n_unproven == 0

    def out_of_time(*given: object, **more: object) -> tuple[Solution, ...]:
        first, *others = near_optimal(*given, **more)  # type: ignore[arg-type]
        return (replace(first, is_optimal=False), *others)

    monkeypatch.setattr(choose, "near_optimal", out_of_time)
    assert Chooser(given, measure, 201).under_budgets().n_unproven >= 1


def test_fronts_and_drops() -> None:
    costs: list[tuple[float, ...]] = [(0.0, s, 4.0 * s) for s in (6, 5, 4, 3, 2, 1)]
    row = replace(average_row(6, 8, WIDTHS), cap=None, name="avg_bits")
    given = problem(costs, row, widths=WIDTHS)
    truth = lambda bits: sum(w * (8 - b) for w, b in zip((6, 5, 4, 3, 2, 1), bits)) / 100 + 0.5  # noqa: E731
    chooser = Chooser(given, measured_by(truth, []), 201)
    reference = chooser.on_front(row, is_within=None).chosen
    assert set(given.widths(reference.selection).values()) == {8}
    is_within = within(20, reference.scores)
    choice = chooser.on_front(row, is_within=is_within)
    totals = [row.total(each.selection) for each in choice.front]
    losses = [each.scores.mean_loss for each in choice.front]
    assert totals == sorted(set(totals), reverse=True)
    assert losses == sorted(losses)
    assert reference.selection == choice.front[0].selection
    assert is_within(choice.chosen.scores)
    after = choice.front[[each.selection for each in choice.front].index(choice.chosen.selection) + 1]
    assert not is_within(after.scores)
    tight = replace(row, cap=24)
    with pytest.raises(LookupError, match="nothing that was measured is within"):
        Chooser(replace(given, rows=(tight,)), measured_by(truth, []), 201).on_front(
            tight, is_within=within(1, reference.scores)
        )


def test_the_cheapest_within_a_limit_may_be_off_the_front() -> None:
    """What is right on all samples at 6 bits loses by the criterion to something as cheap that is not within."""
    row = replace(average_row(6, 8, WIDTHS), cap=None, name="avg_bits")
    given = problem([(0.0, 1.0, 2.0)] * 6, row, widths=WIDTHS)

    def measure(wanted: Sequence[WidthAssignment], n: int) -> list[Scores]:
        bits = [[each.bits_of(name) for name in NAMES] for each in wanted]
        return [
            Scores(loss=np.full(n, 3.0 * (len(set(each)) == 1) - sum(each)), right=np.full(n, len(set(each)) == 1))
            for each in bits
        ]

    choice = Chooser(given, measure, 201).on_front(row, is_within=lambda scores: bool(scores.right.all()))
    assert set(given.widths(choice.chosen.selection).values()) == {4}
    assert choice.chosen.selection in {each.selection for each in choice.front}  # nothing is cheaper than 4 bits
    six = Chooser(given, measure, 201).on_front(
        row, is_within=lambda scores: bool(scores.right.all()) and float(scores.loss[0]) < -30
    )
    assert set(given.widths(six.chosen.selection).values()) == {6}
    assert six.chosen.selection not in {each.selection for each in six.front}


@pytest.mark.parametrize("max_drop", [5.0, 12.0, 20.0, 30.0])
def test_between_levels_a_drop_is_closed_in_on(monkeypatch: pytest.MonkeyPatch, max_drop: float) -> None:
    """Three levels are two bits apart; where predictions are right the cheapest of all assignments is found."""
    monkeypatch.setattr(choose, "LEVELS", 3)
    row = replace(average_row(6, 8, WIDTHS), cap=None, name="avg_bits")
    given = problem([(0.0, 2.0 * s, 4.0 * s) for s in (6, 5, 4, 3, 2, 1)], row, widths=WIDTHS)
    truth = lambda bits: sum(w * (8 - b) for w, b in zip((6, 5, 4, 3, 2, 1), bits)) / 100 + 0.5  # noqa: E731
    measure = measured_by(truth, [])
    every = {each: given.widths(each).items() for each in every_selection(given)}
    scores = measure([WidthAssignment(default=8, overrides=tuple(widths)) for widths in every.values()], 201)
    right = dict(zip(every, scores))
    is_within = within(max_drop, right[(0,) * 6])
    cheapest = min(row.total(each) for each in right if is_within(right[each]))
    choice = Chooser(given, measure, 201).on_front(row, is_within=is_within)
    assert row.total(choice.chosen.selection) == cheapest
    swept, closed_in = (times * choose.CANDIDATES_PER_LEVEL for times in (3, choose.BISECTIONS))
    refined = len(NAMES) * (choice.moves + 1)
    assert choice.n_candidates <= swept + len(WIDTHS) + closed_in + refined


@pytest.mark.parametrize("front", [False, True])
def test_what_is_taken_was_refined_over_what_buys_something(monkeypatch: pytest.MonkeyPatch, front: bool) -> None:
    """6 bits take what 8 take. Costs are the same for all layers, losses are not: only exchanges of 8 and 4 help."""
    monkeypatch.setattr(choose, "MAX_REFITS", 0)
    names = "abcdefghijkl"
    row = Row(name="bytes", use=((8, 8, 4),) * len(names), cap=72)
    given = problem([(0.0, 1.0, 4.0)] * len(names), row, widths=WIDTHS)
    weight = np.random.default_rng(3).permutation(len(names)) + 1.0

    def measure(wanted: Sequence[WidthAssignment], n: int) -> list[Scores]:
        totals = [weight @ [8.0 - each.bits_of(name) for name in names] for each in wanted]
        return [Scores(loss=total + np.linspace(-0.01, 0.01, n), right=np.ones(n, np.bool_)) for total in totals]

    chooser = Chooser(given, measure, 201)
    choice = chooser.on_front(row, is_within=None) if front else chooser.under_budgets()
    assert choice.moves > 0
    assert 6 not in given.widths(choice.chosen.selection).values()
    assert all(given.is_feasible(each.selection) for each in (choice.chosen, *choice.front))
    if front:
        assert choice.front[0].selection == choice.chosen.selection
