"""From paired outcomes to one of three verdicts.

    regressed                  a drop of more than max_drop is shown, at level alpha over all cases together (Holm)
    not shown to regress       it is not, and a drop of max_drop + effect or more is excluded, at level alpha
    too few samples to tell    neither

With max_drop = 0 the first test of right-or-wrong outcomes is McNemar's. Excluding needs no correction: "no case fell
by that much" is claimed only where every single test rejects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy.stats import exponnorm, norm

from bitswitch_deploy.gate.bootstrap import MIN_SAMPLES
from bitswitch_deploy.gate.config import Limits
from bitswitch_deploy.gate.metrics.classification import TopK
from bitswitch_deploy.gate.metrics.metric import Labels, Metric, Rows
from bitswitch_deploy.gate.multiple_tests import holm
from bitswitch_deploy.gate.paired_counts import (
    critical_score,
    drop_interval,
    p_value_of_drop,
    p_value_of_exclusion,
    power_of_drop,
    power_of_exclusion,
    smallest_n,
)

Verdict = Literal["regressed", "not shown to regress", "too few samples to tell"]

# Draws beyond the smallest level that Holm asks for, so that chance does not decide about it.
_DRAWS_AT_LEVEL = 25
_MIN_DRAWS = 2000
_SEED = 0
_PERCENT = 100.0
_ALMOST_ALL = 1 - 1e-6
# Below this share of the other, the normal or the exponential part of a distribution does not matter.
_NO_SHARE = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the samples of one case say, in the unit of the metric.

    drop: before - now. lower, upper: each is passed with probability alpha, uncorrected.
    lost, gained: samples that were right and are wrong now, and the other way; of other outcomes, worse and better.
    p_drop: of H0 "the drop is at most max_drop", uncorrected. p_excluded: of H0 "at least max_drop + effect".
    spread: standard deviation of what one sample adds to the drop. unseen: how much one that was not seen may add.
    Of fewer than MIN_SAMPLES other outcomes nothing is shown; spread and unseen still tell about how many would do.
    method: `McNemar`, `score test` or `bootstrap`.
    """

    before: float
    now: float
    drop: float
    lower: float
    upper: float
    n: int
    lost: int
    gained: int
    p_drop: float
    p_excluded: float
    spread: float
    unseen: float
    method: Literal["McNemar", "score test", "bootstrap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict. p_value: p_drop by Holm's rule over all cases.

    needed: samples that would tell; None where told, more than MAX_SAMPLES where no number up to that would.
    """

    verdict: Verdict
    p_value: float
    needed: int | None = None


def weigh(metric: Metric, before: Rows, now: Rows, labels: Labels | None, limits: Limits, *, cases: int) -> Evidence:
    """Compare rows [n, k] of one case; `cases` are judged in this run."""
    if isinstance(metric, TopK):
        return _weigh_bits(before[:, 0], now[:, 0], limits)
    return _weigh_rows(metric, before, now, labels, limits, cases)


def judge(evidence: Sequence[Evidence], limits: Limits) -> tuple[Judgement, ...]:
    """The verdicts on all cases of one run, together, with the samples that would be needed."""
    return tuple(
        replace(each, needed=samples_needed(case, limits, cases=len(evidence)))
        if each.verdict == "too few samples to tell"
        else each
        for case, each in zip(evidence, verdicts(evidence, limits))
    )


def verdicts(evidence: Sequence[Evidence], limits: Limits) -> tuple[Judgement, ...]:
    """The verdicts alone."""
    corrected = holm([each.p_drop for each in evidence])
    return tuple(_judge(each, p, limits) for each, p in zip(evidence, corrected))


def _judge(evidence: Evidence, p_value: float, limits: Limits) -> Judgement:
    if p_value <= limits.alpha:
        return Judgement(verdict="regressed", p_value=p_value)
    if evidence.p_excluded <= limits.alpha:
        return Judgement(verdict="not shown to regress", p_value=p_value)
    return Judgement(verdict="too few samples to tell", p_value=p_value)


def samples_needed(evidence: Evidence, limits: Limits, *, cases: int) -> int:
    """Samples with which a drop of max_drop + effect is called a regression, and one of max_drop is not, each with
    probability `power`, if as many outcomes change as did here.

    Where there are as many already, the drop lies in between, and the answer is for half the effect, with which any
    drop falls on one side or the other.
    """
    needed = _needed(evidence, limits, limits.effect, cases)
    return needed if needed > evidence.n else max(evidence.n + 1, _needed(evidence, limits, limits.effect / 2, cases))


def _needed(evidence: Evidence, limits: Limits, effect: float, cases: int) -> int:
    level = limits.alpha / cases
    if evidence.method != "bootstrap":
        return _needed_counts(evidence, limits, effect, level)
    return max(MIN_SAMPLES, smallest_n(lambda n: _power_of_rows(n, evidence, effect, level), wanted=limits.power))


def _power_of_rows(n: int, evidence: Evidence, effect: float, level: float) -> float:
    """Of the bootstrap on n samples to show a drop of `effect` beyond what may be lost; clearing has no less.

    What it subtracts from the drop is about normal, plus the exponential share of the sample that was not seen.
    """
    error, missed = evidence.spread / math.sqrt(n), evidence.unseen / n
    if missed > _NO_SHARE * error:
        error = max(error, _NO_SHARE * missed)
        critical = exponnorm.isf(level, missed / error, scale=error)
    else:
        critical = norm.isf(level, scale=error) if error else 0.0
    return float(norm.cdf(effect - critical, scale=error)) if error else float(effect > critical)


def _needed_counts(evidence: Evidence, limits: Limits, effect: float, level: float) -> int:
    margin, bound = limits.max_drop / _PERCENT, min(_ALMOST_ALL, (limits.max_drop + effect) / _PERCENT)
    # one change more than was seen: none in few samples does not mean that there is none in many
    changed = (evidence.lost + evidence.gained + 1) / (evidence.n + 1)

    def needed(critical: float | None) -> int:
        return smallest_n(lambda n: power(n, critical), wanted=limits.power)

    def power(n: int, critical: float | None) -> float:
        worse = max(changed, bound)
        found = power_of_drop(n, drop=bound, changed=worse, margin=margin, alpha=level, critical=critical)
        unchanged = max(changed, margin)
        cleared = power_of_exclusion(n, drop=margin, changed=unchanged, bound=bound, alpha=limits.alpha)
        return min(found, cleared)

    n = needed(None)
    return n if not 0 < margin < 1 else needed(critical_score(n, margin=margin, alpha=level))


def _weigh_bits(before: Rows, now: Rows, limits: Limits) -> Evidence:
    n, lost, gained = len(before), int((before & ~now).sum()), int((~before & now).sum())
    margin, bound = limits.max_drop / _PERCENT, (limits.max_drop + limits.effect) / _PERCENT
    lower, upper = drop_interval(lost, gained, n, alpha=limits.alpha)
    drop, changed = (lost - gained) / n, (lost + gained) / n
    return Evidence(
        before=_PERCENT * float(before.mean()),
        now=_PERCENT * float(now.mean()),
        drop=_PERCENT * drop,
        lower=_PERCENT * lower,
        upper=_PERCENT * upper,
        n=n,
        lost=lost,
        gained=gained,
        p_drop=p_value_of_drop(lost, gained, n, margin=margin),
        p_excluded=float(p_value_of_exclusion(lost, gained, n, bound=bound)),
        spread=_PERCENT * math.sqrt(max(0.0, changed - drop**2)),
        unseen=_PERCENT,
        method="McNemar" if margin == 0 else "score test",
    )


def _weigh_rows(metric: Metric, before: Rows, now: Rows, labels: Labels | None, limits: Limits, cases: int) -> Evidence:
    n = len(before)
    draws = max(_MIN_DRAWS, math.ceil(_DRAWS_AT_LEVEL * cases / limits.alpha))
    result = metric.bootstrap(before, now, labels, draws=draws, seed=_SEED)
    is_enough = n >= MIN_SAMPLES
    values = [metric.score(rows, labels) for rows in (before, now)]
    lower, upper = result.interval(limits.alpha) if is_enough else (-math.inf, math.inf)
    single = [metric.sample_scores(rows, labels) for rows in (before, now)]
    return Evidence(
        before=values[0],
        now=values[1],
        drop=values[0] - values[1],
        lower=lower,
        upper=upper,
        n=n,
        lost=int((single[1] < single[0]).sum()),
        gained=int((single[1] > single[0]).sum()),
        p_drop=result.p_value_of_drop(limits.max_drop) if is_enough else 1.0,
        p_excluded=result.p_value_of_exclusion(limits.max_drop + limits.effect) if is_enough else 1.0,
        spread=result.standard_error * math.sqrt(n),
        unseen=result.unseen,
        method="bootstrap",
    )
