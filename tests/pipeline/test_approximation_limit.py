"""When approximations stay: by predictions, or by an accuracy that labels show to be kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bitswitch_deploy.gate.paired_counts import p_value_of_exclusion
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.pipeline.approximation_limit import ApproximationLimit
from bitswitch_deploy.validation.hops import HopResult, WidthResult

USED = frozenset({Approximation.ROUNDED_BIAS, Approximation.RESIDUAL_CODES})
NAMES = "residual-codes, rounded-bias"


def measured(
    *,
    agreement: float | None,
    counts: tuple[int, int] | None = None,
    n: int = 10_000,
    engine: tuple[float, int, int] | None = None,
    error: float | None = None,
) -> WidthResult:
    lost, gained = counts if counts is not None else (None, None)
    top1 = None if lost is None or gained is None else 90.0 - 100.0 * (lost - gained) / n
    lowered = HopResult(
        label="w4",
        hop="lowered",
        top1_percent=top1,
        agreement_percent=agreement,
        relative_error=error,
        lost=lost,
        gained=gained,
        n=n,
    )
    on_engine = HopResult(label="w4", hop="engine", note="not run")
    if engine is not None:
        share, lost, gained = engine
        top1 = 90.0 - 100.0 * (lost - gained) / n
        on_engine = HopResult(
            label="w4", hop="engine", top1_percent=top1, agreement_percent=share, lost=lost, gained=gained, n=n
        )
    trained = HopResult(label="w4", hop="trained")
    canonical = HopResult(label="w4", hop="canonical", top1_percent=90.0, n=n)
    return WidthResult(label="w4", bits=4, hops=(trained, canonical, lowered, on_engine))


def verdict(
    result: WidthResult,
    *,
    least: float = 99.5,
    by_labels: bool = True,
    looks: int = 3,
    guess: float | None = 10.0,
) -> tuple[str, bool]:
    """Return what was said, and whether they stay."""
    change = ApproximationLimit(min_agreement=least, by_labels=by_labels).judge(USED, result, looks=looks, guess=guess)
    assert change.where == "approximations"
    return change.what, not change.exact


def test_agreement_is_enough() -> None:
    assert verdict(measured(agreement=99.5, counts=(900, 0))) == (f"{NAMES}: 99.50 % agreement on 10,000 samples", True)


def test_predictions_that_change_in_both_directions() -> None:
    text, stays = verdict(measured(agreement=85.51, counts=(544, 586)))
    assert stays
    assert text == (
        f"{NAMES}: 85.51 % agreement on 10,000 samples, top-1 90.00 -> 90.42 %, a drop of 0.5 points is excluded"
    )


@pytest.mark.parametrize("counts", [(100, 50), (544, 544), (800, 760)])
def test_a_drop_that_cannot_be_excluded(counts: tuple[int, int]) -> None:
    text, stays = verdict(measured(agreement=85.0, counts=counts))
    assert not stays
    assert text.startswith(f"without {NAMES}: 85.00 % agreement on 10,000 samples, 99.5 % is the limit")
    assert text.endswith("a drop of 0.5 points cannot be excluded")


def test_few_samples_exclude_little() -> None:
    assert not verdict(measured(agreement=98.0, counts=(2, 2), n=200))[1]
    assert verdict(measured(agreement=98.0, counts=(100, 100), n=10_000))[1]


def test_what_was_asked_for_by_name_is_agreement() -> None:
    text, stays = verdict(measured(agreement=99.0, counts=(0, 50)), by_labels=False)
    assert not stays
    assert text == f"without {NAMES}: 99.00 % agreement on 10,000 samples, 99.5 % is the limit (--min-agreement)"


def test_without_labels_there_is_only_agreement() -> None:
    assert not verdict(measured(agreement=99.4))[1]
    assert verdict(measured(agreement=99.6))[1]


def test_all_predictions_means_all() -> None:
    """No drop at all can be excluded on samples."""
    assert not verdict(measured(agreement=99.99, counts=(0, 1)), least=100)[1]
    assert verdict(measured(agreement=100.0, counts=(0, 0)), least=100)[1]


def test_dense_outputs_go_by_their_error() -> None:
    assert verdict(measured(agreement=None, error=0.004))[1]
    assert not verdict(measured(agreement=None, error=0.006))[1]


def test_the_worst_hop_counts() -> None:
    """The engine loses, the graph as written does not."""
    fine = measured(agreement=98.0, counts=(100, 110), engine=(98.0, 100, 105))
    assert verdict(fine)[1]
    text, stays = verdict(measured(agreement=98.0, counts=(100, 110), engine=(97.0, 150, 110)))
    assert not stays
    assert "97.00 % agreement" in text
    assert "top-1 90.00 -> 89.60 %" in text


def test_sets_that_are_tried_share_the_level() -> None:
    """A chance of one in forty is good enough alone, not as one of three tries."""
    result = measured(agreement=98.0, counts=(112, 90))
    chance = float(p_value_of_exclusion(112, 90, 10_000, bound=0.005))
    assert 0.05 / 3 < chance < 0.05
    assert verdict(result, looks=1)[1]
    assert not verdict(result, looks=3)[1]


@pytest.mark.parametrize(("right", "guess", "stays"), [(90.0, 85.0, True), (90.0, 85.1, False), (10.0, 10.0, False)])
def test_a_network_that_guesses_has_nothing_to_lose(right: float, guess: float, stays: bool) -> None:
    """Labels of another network, or one class nearly everywhere: an accuracy that stays says nothing then."""
    fine = measured(agreement=20.0, counts=(0, 0))
    hops = tuple(replace(hop, top1_percent=right) if hop.n else hop for hop in fine.hops)
    text, kept = verdict(replace(fine, hops=hops), guess=guess)
    assert kept is stays
    assert stays or text.endswith(f"labels do not help: {right:.2f} % are right, and {guess:.2f} % are of one class")


def test_without_a_label_for_each_sample_there_is_only_agreement() -> None:
    assert not verdict(measured(agreement=98.0, counts=(100, 110)), guess=None)[1]
