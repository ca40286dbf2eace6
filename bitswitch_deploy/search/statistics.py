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
    if n == 0:
        return 1.0
    # in logarithms: the binomials of thousands of samples leave the range of floats
    logs = [_log_binomial(n, k) - n * math.log(2) for k in range(min(only_a, only_b) + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def wilson(right: int, n: int) -> Interval:
    """Share of right samples in percent with its 95 % interval."""
    share, z2 = right / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Interval(value=100 * share, low=100 * max(0.0, middle - reach), high=100 * min(1.0, middle + reach))


def rank_correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Spearman's correlation of two arrays [n]; equal values share their mean rank. 0 where one is constant."""
    ranks = [_ranks(each) for each in (a, b)]
    centred = [each - each.mean() for each in ranks]
    norm = math.sqrt(float((centred[0] ** 2).sum()) * float((centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / norm if norm else 0.0


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[inverse.reshape(-1)]
    return ranks


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
