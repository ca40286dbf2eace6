"""Fitted costs against the normal equations written out, and what a search gains by them where costs mislead."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from bitswitch_deploy.search import choose
from bitswitch_deploy.search.choose import Choice, Chooser
from bitswitch_deploy.search.problem import Problem, Selection
from bitswitch_deploy.search.refit import RIDGE, refitted
from bitswitch_deploy.search.score import Scores
from bitswitch_deploy.tensors import WidthAssignment
from tests.search.problems import average_row, every_selection, problem
from tests.search.test_choose import NAMES, WIDTHS, measured_by

SHAPE = np.array([0.0, 1.0, 4.0])


def costs_of(given: Problem) -> list[tuple[float, ...]]:
    return [group.costs for group in given.groups]


def test_one_pair_of_measurements_by_hand() -> None:
    """One layer: costs differ by 2, losses by 4, so u = 2 says it all. Two: costs say -2, losses 2, and u = 1."""
    given = problem([(0.0, 2.0)], widths=(8, 4))
    assert costs_of(refitted(given, {(0,): 1.0, (1,): 5.0})) == [(0.0, 4.0)]
    # each of the four choices takes its part of the 4 that are missed, and the ridge the rest
    wrong = refitted(problem([(0.0, 2.0), (4.0, 0.0)], widths=(8, 4)), {(0, 0): 1.0, (1, 1): 3.0})
    part = 4 / (4 + 2 * RIDGE)
    assert costs_of(wrong) == [pytest.approx((-part, 2 + part)), pytest.approx((4 - part, part))]


def test_the_fit_is_the_least_of_its_objective() -> None:
    """The same by another way: normal equations of costs and offset, both unknown."""
    random = np.random.default_rng(0)
    given = problem([tuple(map(float, random.uniform(0, 3, 3))) for _ in range(4)], widths=WIDTHS)
    chosen = [tuple(map(int, random.integers(0, 3, 4))) for _ in range(7)]
    losses = dict(zip(chosen, map(float, random.uniform(0, 2, 7))))
    one_hot = np.array([[float(k == wanted) for k in each for wanted in range(3)] + [1.0] for each in losses])
    measured = np.array(list(losses.values()))
    prior = np.array([cost for group in given.groups for cost in group.costs] + [0.0])
    prior *= measured.std() / (one_hot @ prior).std()
    penalty = RIDGE * np.diag([1.0] * 12 + [0.0])
    solved = np.linalg.solve(one_hot.T @ one_hot + penalty, one_hot.T @ measured + penalty @ prior)
    assert np.ravel(costs_of(refitted(given, losses))) == pytest.approx(solved[:-1], abs=1e-12)


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e9])
def test_costs_that_were_right_stay_whatever_their_unit(factor: float) -> None:
    given = problem([tuple(float(w * s * factor) for s in SHAPE) for w in (3, 2, 1)], widths=WIDTHS)
    losses = {each: 0.7 + given.cost(each) / factor for each in itertools.product(range(3), repeat=3)}
    fitted = refitted(given, losses)
    assert np.array(costs_of(fitted)) == pytest.approx(np.array(costs_of(given)) / factor, rel=1e-9, abs=1e-12)
    assert fitted.rows == given.rows


def test_predictions_that_are_equal_but_for_rounding_set_no_unit() -> None:
    """0.1 + 0.2 and 0.3: divided by the difference, costs would be of the order of 1e15."""
    given = problem([(0.0, 0.1, 0.3), (0.0, 0.1, 0.2), (0.0, 0.2, 0.3)], widths=WIDTHS)
    losses: dict[Selection, float] = {(1, 0, 1): 1.0, (2, 0, 0): 2.0, (0, 1, 1): 1.5}
    assert max(abs(cost) for costs in costs_of(refitted(given, losses)) for cost in costs) < 1


def searched(seed: int, *, off: float = 1.2) -> tuple[Choice, list[WidthAssignment], int]:
    """A search over six layers whose costs are off by random factors: what it chose and measured, and its true rank."""
    random = np.random.default_rng(seed)
    true = random.lognormal(0, 1, 6)[:, None] * SHAPE
    costs = true * random.lognormal(0, off, (6, 1))
    given = problem([tuple(map(float, each)) for each in costs], average_row(6, 6, WIDTHS), widths=WIDTHS)

    def cost(selection: Selection) -> float:
        return float(sum(row[k] for row, k in zip(true, selection)))

    asked: list[WidthAssignment] = []
    measure = measured_by(lambda bits: cost(tuple(map(WIDTHS.index, bits))) / 100 + 0.5, asked)
    choice = Chooser(given, measure, 201).under_budgets()
    better = [each for each in every_selection(given) if cost(each) < cost(choice.chosen.selection) - 1e-9]
    return choice, list(dict.fromkeys(asked)), len(better)


@pytest.mark.parametrize("seed", [0, 7])
def test_where_costs_mislead_a_fit_finds_the_optimum(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Of the seeds 0 to 13 the optimum comes out of 11 with fits, of 8 without; of these two only with them."""
    choice, asked, n_better = searched(seed)
    assert n_better == 0
    prediction = choice.prediction
    assert prediction.is_poor
    assert 1 <= prediction.refits <= 2
    assert 1 <= prediction.n_proposed <= 2 * 4
    assert prediction.n_taken + choice.moves > 0  # fitted costs also say which moves are tried
    tries = 6 * (choice.moves + 1)  # of the refinement
    assert len(asked) <= choose.CANDIDATES + choose.CANDIDATES_IN_RUNS + 1 + prediction.n_proposed + tries
    monkeypatch.setattr(choose, "MAX_REFITS", 0)
    alone, _, n_better = searched(seed)
    assert n_better > 0
    assert alone.prediction == replace(prediction, refits=0, n_proposed=0, n_taken=0)


def test_where_costs_predict_well_nothing_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "refitted", lambda *_: pytest.fail("costs that need no fit"))
    choice, _, n_better = searched(0, off=0.0)
    assert n_better == 0
    assert choice.prediction.correlation == pytest.approx(1)
    assert choice.prediction.refits == 0


def test_losses_that_are_all_the_same_rank_nothing() -> None:
    given = problem([tuple(map(float, SHAPE))] * 6, average_row(6, 6, WIDTHS), widths=WIDTHS)
    choice = Chooser(given, measured_by(lambda bits: 0.5, []), 201).under_budgets()
    assert (choice.prediction.correlation, choice.prediction.refits) == (None, 0)


def test_a_front_is_swept_again_with_fitted_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """True: layers count the other way round. The front may get no worse anywhere, and gets better somewhere."""
    monkeypatch.setattr(choose, "LEVELS", 4)
    row = average_row(6, 6, WIDTHS)
    given = problem([tuple(float(w * s) for s in SHAPE) for w in (32, 16, 8, 4, 2, 1)], row, widths=WIDTHS)

    def truth(bits: list[int]) -> float:
        return sum(w * float(SHAPE[WIDTHS.index(b)]) for w, b in zip((1, 2, 4, 8, 16, 32), bits)) / 100

    fronts = []
    for fits in (0, choose.MAX_REFITS):
        monkeypatch.setattr(choose, "MAX_REFITS", fits)
        choice = Chooser(given, measured_by(truth, []), 201).on_front(row, is_within=None)
        fronts.append({row.total(each.selection): each.scores.mean_loss for each in choice.front})
    assert (choice.prediction.is_poor, choice.prediction.refits, choice.prediction.n_taken) == (True, 2, 2)
    assert choice.prediction.n_proposed <= 2 * 4
    before, after = fronts
    assert {36, 32, 28, 24} <= set(before) <= set(after)  # and where refinement ended
    assert all(after[bits] <= before[bits] for bits in before)
    assert after[32] < 0.5 * before[32]


def test_what_a_fit_proposes_for_a_front_competes_within_its_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """More levels than a halving keeps, on more samples than its first round: cheap ones always lose more."""
    monkeypatch.setattr(choose, "LEVELS", 7)
    row = average_row(6, 6, WIDTHS)
    given = problem([tuple(float(w * s) for s in SHAPE) for w in (32, 16, 8, 4, 2, 1)], row, widths=WIDTHS)
    noise = np.random.default_rng(0).uniform(-0.005, 0.005, 4 * choose.FIRST_ROUND)
    seen: dict[WidthAssignment, int] = {}

    def measure(wanted: Sequence[WidthAssignment], n: int) -> list[Scores]:
        seen.update((each, n) for each in wanted)
        losses = [
            noise[:n] + sum(w * SHAPE[WIDTHS.index(each.bits_of(name))] for w, name in zip((1, 2, 4, 8, 16, 32), NAMES))
            for each in wanted
        ]
        return [Scores(loss=loss, right=loss < 1) for loss in losses]

    choice = Chooser(given, measure, len(noise)).on_front(row, is_within=None)
    assert choice.prediction.n_proposed > 4
    assert set(seen.values()) == {len(noise)}
    assert choice.n_candidates == len(seen)
