"""Latencies as numbers: percentiles by the rule of trtexec, and ratios with an interval that assumes no distribution.

Percentile (samples/common/sampleReporting.cpp of TensorRT 8.5 to 11.1), with `all` values in ascending order:

    value[max(all - 1 - int((1 - p / 100) * all), 0)]                        in float32, as there; no interpolation

Interval of a median from order statistics: of n independent values the k-th smallest and the k-th largest hold the
median between them with the probability 1 - 2 * P(B < k), B binomial(n, 1/2), whatever their distribution is
(David and Nagaraja, Order Statistics, section 7.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
# Fewer turns hold no interval of 95 %: 1 - 2 * 2^-5 is 94 %.
MIN_TURNS = 6

Milliseconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyStatistics:
    """All runs of one candidate, outliers included, warm-up not.

    cv: coefficient of variation, standard deviation / mean. throughput_per_s: samples, not runs.
    """

    runs: int
    min_ms: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    cv: float
    throughput_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Median over the turns of time / time of the reference in the same turn; below 1 is faster.

    low, high: the median lies between them with `confidence`, provided that turns do not depend on each other.
    """

    reference: str
    value: float
    low: float
    high: float
    confidence: float
    turns: int


def percentile(values: Milliseconds, percent: float) -> float:
    """The percentile of `values` [n], n > 0, as trtexec reports it."""
    ordered = np.sort(values)
    count = len(ordered)
    above = int((np.float32(1) - np.float32(percent) / np.float32(100)) * np.float32(count))
    return float(ordered[max(count - 1 - above, 0)])


def describe(values: Milliseconds, *, batch: int) -> LatencyStatistics:
    """Statistics of the latencies `values` [n] in ms of runs of `batch` samples."""
    mean = float(values.mean())
    return LatencyStatistics(
        runs=len(values),
        min_ms=float(values.min()),
        mean_ms=mean,
        p50_ms=percentile(values, 50),
        p90_ms=percentile(values, 90),
        p95_ms=percentile(values, 95),
        p99_ms=percentile(values, 99),
        max_ms=float(values.max()),
        cv=float(values.std()) / mean,
        throughput_per_s=batch * 1000 / mean,
    )


def ratio(times: ArrayLike, reference_times: ArrayLike, *, reference: str) -> Ratio:
    """Compare two candidates by what each took in the same turns.

    Args:
        times, reference_times: a time for each turn in ms, in the order of the turns [turns].
        reference: label of what `reference_times` belong to.

    Raises:
        ValueError: fewer than `MIN_TURNS` turns.
    """
    quotients = np.sort(np.asarray(times, np.float64) / np.asarray(reference_times, np.float64))
    rank, confidence = _rank(len(quotients))
    return Ratio(
        reference=reference,
        value=float(np.median(quotients)),
        low=float(quotients[rank - 1]),
        high=float(quotients[-rank]),
        confidence=confidence,
        turns=len(quotients),
    )


@cache
def _rank(count: int) -> tuple[int, float]:
    """The highest k whose interval holds the median with CONFIDENCE, and with what probability it does."""
    if count < MIN_TURNS:
        raise ValueError(f"{count} turns hold no interval of {CONFIDENCE:.0%}: {MIN_TURNS} are needed")
    rank, ways, below, all_ways, confidence = 0, 1, 0, 2**count, 1.0
    while True:
        below += ways  # to have at most `rank` of the values under the median
        reached = 1 - 2 * (below / all_ways)
        if reached < CONFIDENCE:
            return rank, confidence
        # the next binomial coefficient from this one: an hour has 72,000 turns
        ways = ways * (count - rank) // (rank + 1)
        rank, confidence = rank + 1, reached
