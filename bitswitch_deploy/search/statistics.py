"""Is one assignment better than another? Both have seen the same samples, so differences are taken sample by sample.

    mean difference      m = mean(d), standard error s / sqrt(n) with s^2 = sum (d - m)^2 / (n - 1)
    interval             m +- 1.96 standard errors, 95 %
                         (of k comparisons at once each at 100 - 5 / k %, Bonferroni)
    points               b samples right by A only, c by B only; with p = (b + 1) / (n + 2) and q = (c + 1) / (n + 2)
                         p - q +- 1.96 sqrt((p + q - (p - q)^2) / (n + 2)), the adjusted Wald interval of Bonett and
                         Price (Journal of Educational and Behavioral Statistics 37, 479-488, 2012): without the added
                         samples it has no width where b = c = 0, however few samples there are
    McNemar, exact       two-sided p of b under Binomial(b + c, 1/2)
    Wilson               95 % interval of a share of right samples

Two good candidates disagree on few samples; unpaired, the same difference would need five to ten times as many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, spearmanr

from bitswitch_deploy.search.score import Scores

Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A against B on the same samples. points: A minus B in points of right samples. loss: A minus B in nats.

    p_value: exact McNemar test on right samples, two-sided.
    """

    points: Interval
    loss: Interval
    p_value: float
    n: int


def compare(a: Scores, b: Scores, *, comparisons: int = 1) -> Comparison:
    """Compare two assignments on the samples that both have seen.

    comparisons: how many such intervals are asked whether any of them leaves zero out.

    Raises:
        ValueError: another number of samples.
    """
    if len(a.loss) != len(b.loss):
        raise ValueError(f"{len(a.loss)} samples against {len(b.loss)}")
    return Comparison(
        points=_points(a, b, reach=_reach(comparisons)),
        loss=paired_interval(a.loss, b.loss, comparisons=comparisons),
        p_value=mcnemar(*_only(a, b)),
        n=len(a.loss),
    )


def cautious_drop(a: Scores, b: Scores) -> float:
    """Points of right samples that A has fewer than B, and one standard error on top.

    The cheapest of many that are within a limit is often there by luck, as it stands at the limit's edge. Where the
    standard error counts as well luck must be larger than usual (the one-standard-error rule of Breiman et al., 1984).
    It is that of `points_interval`: no drop on few samples is no proof of none.
    """
    return _points(b, a, reach=1.0).high


def least_reach(n: int) -> float:
    """Points that an interval of n samples reaches to either side at least: where no sample tells A from B."""
    return points_interval(0, 0, n).high


def points_interval(only_a: int, only_b: int, n: int, *, reach: float = Z95) -> Interval:
    """Points of right samples that A has more than B, of n samples of which so many are right by one of them only.

    reach: of the interval, in standard errors. Where few samples differ it holds the truth about as often as it says,
    or more often (tests/search/test_statistics.py).
    """
    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    middle = share_a - share_b
    side = reach * math.sqrt((share_a + share_b - middle**2) / (n + 2))
    low, high = max(middle - side, -1.0), min(middle + side, 1.0)
    return Interval(value=100 * (only_a - only_b) / n, low=100 * low, high=100 * high)


def _points(a: Scores, b: Scores, *, reach: float) -> Interval:
    """Points that A has more than B; a network does not differ from itself, which equal losses of all samples show."""
    if np.array_equal(a.loss, b.loss) and np.array_equal(a.right, b.right):
        return Interval(value=0.0, low=0.0, high=0.0)
    return points_interval(*_only(a, b), len(a.right), reach=reach)


def _only(a: Scores, b: Scores) -> tuple[int, int]:
    """Samples that only A has right, and those that only B has."""
    return int((a.right & ~b.right).sum()), int((b.right & ~a.right).sum())


def paired_interval(a: npt.NDArray[Any], b: npt.NDArray[Any], *, comparisons: int = 1) -> Interval:
    """Mean of a - b [n] with its 95 % interval, wider for the chance of several `comparisons`."""
    difference = a.astype(np.float64) - b.astype(np.float64)
    mean = float(difference.mean())
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    reach = _reach(comparisons) * error
    return Interval(value=mean, low=mean - reach, high=mean + reach)


def _reach(comparisons: int) -> float:
    """Standard errors of a 95 % interval."""
    return Z95 if comparisons == 1 else NormalDist().inv_cdf(1 - 0.025 / comparisons)


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p of `only_a` against `only_b` discordant samples."""
    n = only_a + only_b
    return float(binomtest(only_a, n).pvalue) if n else 1.0


def wilson(right: int, n: int) -> Interval:
    """Share of right samples in percent with its 95 % interval."""
    interval = binomtest(right, n).proportion_ci(method="wilson")
    return Interval(value=100 * right / n, low=100 * float(interval.low), high=100 * float(interval.high))


def rank_correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Spearman's correlation of two arrays [n]; equal values share their mean rank. 0 where one is constant."""
    is_constant = any((each == each[0]).all() for each in (a, b))
    return 0.0 if is_constant else float(spearmanr(a, b).statistic)
