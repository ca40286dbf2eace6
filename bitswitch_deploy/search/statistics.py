"""Is one assignment better than another? Both have seen the same samples, so differences are taken sample by sample.

    mean difference      m = mean(d), standard error s / sqrt(n) with s^2 = sum (d - m)^2 / (n - 1)
    interval             m +- 1.96 standard errors, 95 %
                         (of k comparisons at once each at 100 - 5 / k %, Bonferroni)
    McNemar, exact       b samples that only A has right, c that only B has: two-sided p of b under Binomial(b + c, 1/2)
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
    only_a, only_b = int((a.right & ~b.right).sum()), int((b.right & ~a.right).sum())
    return Comparison(
        points=paired_interval(100.0 * a.right, 100.0 * b.right, comparisons=comparisons),
        loss=paired_interval(a.loss, b.loss, comparisons=comparisons),
        p_value=mcnemar(only_a, only_b),
        n=len(a.loss),
    )


def cautious_drop(a: Scores, b: Scores) -> float:
    """Points of right samples that A has fewer than B, and one standard error on top.

    The cheapest of many that are within a limit is often there by luck, as it stands at the limit's edge. Where the
    standard error counts as well luck must be larger than usual (the one-standard-error rule of Breiman et al., 1984).
    """
    mean, error = _paired(100.0 * b.right, 100.0 * a.right)
    return mean + error


def paired_interval(a: npt.NDArray[Any], b: npt.NDArray[Any], *, comparisons: int = 1) -> Interval:
    """Mean of a - b [n] with its 95 % interval, wider for the chance of several `comparisons`."""
    mean, error = _paired(a, b)
    reach = (Z95 if comparisons == 1 else NormalDist().inv_cdf(1 - 0.025 / comparisons)) * error
    return Interval(value=mean, low=mean - reach, high=mean + reach)


def _paired(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> tuple[float, float]:
    """Mean of a - b [n] and its standard error."""
    difference = a.astype(np.float64) - b.astype(np.float64)
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    return float(difference.mean()), error


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
