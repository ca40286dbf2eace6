"""Bayesian bootstrap of a drop, with one sample that was not seen.

The metric is a smooth function of sums over samples: a mean, or a mean of ratios such as IoU over classes. With s [n,
k] what each sample adds before and t [n, k] now,

    drop = value(sum s / n) - value(sum t / n)

and d_i, what sample i adds to the drop, is s_i - t_i for a mean. In general it is what the drop loses without sample i
(the pseudo-values of the jackknife: Quenouille, Biometrika 43, 353-360, 1956): for a ratio that only one sample has,
such as the IoU of a class in one image, any weight of that sample gives the same, but without it the ratio is gone.

    d_i = n * drop - (n - 1) * (drop of the others)

Weights v are drawn from Dirichlet(1, ..., 1) over the n samples (Rubin, Annals of Statistics 9, 130-134, 1981) and one
more:

    low  = (1 - v_n) * (drop of the weighted samples) - v_n * unseen
    high = (1 - v_n) * (drop of the weighted samples) + v_n * unseen

P of H0 "the drop is at most m" is the share of draws with low <= m (Gaffke, Mathematical Methods of Statistics 14,
451-467, 2005). Of outcomes that are right or wrong, `unseen` = 1 and m = 0, it is the exact McNemar test.

Where a metric says how much one sample can change, that is `unseen`. Others have no such bound, and then no test of a
mean keeps its level for every distribution (Bahadur and Savage, Annals of Mathematical Statistics 27, 1115-1122, 1956):
a few samples that lose a little look the same whether or not a rare one gains much. There `unseen` is the largest
change that was seen, times 1 + 20 / (number of samples that make up the change, by Kish's rule): the fewer, the less is
known of the others. The 20 was chosen so that tests/gate keeps the level for lognormal changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# Sums per sample, [..., k] -> [...]: the metric of each row of mean sums.
Value = Callable[[Floats], Floats]

# Below, nothing is concluded: a guess at the number that would do is all that the spread of so few is good for.
MIN_SAMPLES = 30
# Fits the caches.
_BLOCK_CELLS = 1 << 18
# What rounding leaves of a difference of equal sums, in parts of the sum over all samples, is no change.
_ROUNDING = 1e-14
_EQUAL = 1e-9
_DOUBT = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapDrop:
    """A drop with its distribution.

    drop: before minus now. standard_error: of the drop.
    unseen: what a sample that was not seen may add to the drop, either way; 0 where nothing changed.
    low, high: drops where it gained, and lost, that much, [draws].
    """

    drop: float
    standard_error: float
    unseen: float
    low: Floats
    high: Floats

    def p_value_of_drop(self, margin: float) -> float:
        """P of H0: the drop is at most `margin`, in the unit of the metric."""
        return _share(self.low <= margin)

    def p_value_of_exclusion(self, bound: float) -> float:
        """P of H0: the drop is at least `bound`."""
        return _share(self.high >= bound)

    def interval(self, alpha: float) -> tuple[float, float]:
        """Bounds of the drop, each passed with probability `alpha`."""
        low = np.quantile(self.low, alpha, method="lower")
        return float(low), float(np.quantile(self.high, 1 - alpha, method="higher"))


def bootstrap_drop(
    before: npt.NDArray[Any], now: npt.NDArray[Any], value: Value, *, largest: float = 0.0, draws: int, seed: int
) -> BootstrapDrop:
    """Draw `draws` times from paired samples [n, k]; equal arguments give equal results.

    largest: the most that one sample can add to the drop, 0 where it is not known.

    Raises:
        ValueError: shapes that differ, or no samples.
    """
    s, t = np.asarray(before, np.float64), np.asarray(now, np.float64)
    if s.shape != t.shape or s.ndim != 2 or not len(s):
        raise ValueError(f"paired samples [n, k] are needed: {s.shape}, {t.shape}")
    n = len(s)
    level, others = _levels(s, value)
    level_now, others_now = _levels(t, value)
    drop = level - level_now
    changes = pseudo_values(drop, others - others_now, n)
    changes[np.abs(changes) <= _ROUNDING * n * max(1.0, abs(level))] = 0.0
    if not changes.any():
        if not largest:
            return no_drop(draws)
        drop, t = 0.0, s

    def drops(weights: Floats) -> Floats:
        return value(weights @ s) - value(weights @ t)

    low, high = draw_bounds(drops, n, unseen := largest or largest_unseen(changes), draws=draws, seed=seed)
    error = float(changes.std(ddof=min(1, n - 1)) / np.sqrt(n))
    return BootstrapDrop(drop=drop, standard_error=error, unseen=unseen, low=low, high=high)


def no_drop(draws: int) -> BootstrapDrop:
    """What is left to say where nothing changed and no bound is known."""
    nothing = np.zeros(draws)
    return BootstrapDrop(drop=0.0, standard_error=0.0, unseen=0.0, low=nothing, high=nothing)


def pseudo_values(drop: float, others: Floats, n: int) -> Floats:
    """What samples of n add to a drop, [p]. others: the drop without each of them, [p]."""
    return n * drop - (n - 1) * others


def draw_bounds(
    drops: Callable[[Floats], Floats], n: int, unseen: float, *, draws: int, seed: int
) -> tuple[Floats, Floats]:
    """`low` and `high`. drops: those of n samples with weights [b, n] that sum to 1, [b]."""
    low, high = [], []
    for weights in _draw_weights(n, draws, seed):
        missed = weights[:, n]
        seen = drops(weights[:, :n] / (1 - missed)[:, None]) * (1 - missed)
        low.append(seen - missed * unseen)
        high.append(seen + missed * unseen)
    return np.concatenate(low), np.concatenate(high)


def largest_unseen(changes: Floats) -> float:
    """How much a sample that was not seen may add to a drop, by those that were, [n]."""
    largest = float(np.abs(changes).max())
    off = np.abs(changes - np.median(changes))
    off[off <= _EQUAL * largest] = 0.0
    squares = float((off**2).sum())
    effective = float(off.sum()) ** 2 / squares if squares > 0 else 0.0
    return largest * (1 + _DOUBT / max(effective, 1.0))


def _share(beyond: npt.NDArray[np.bool_]) -> float:
    """Of the draws, with the data themselves as one more."""
    return float((1 + beyond.sum()) / (1 + beyond.size))


def _draw_weights(n: int, draws: int, seed: int) -> Iterator[Floats]:
    """Weights of n samples and one more, [b, n + 1], rows that sum to 1, a block of draws at a time."""
    rng = np.random.default_rng(seed)
    size = max(1, _BLOCK_CELLS // n)
    for start in range(0, draws, size):
        weights = rng.standard_exponential((min(size, draws - start), n + 1))
        yield weights / weights.sum(axis=1, keepdims=True)


def _levels(sums: Floats, value: Value) -> tuple[float, Floats]:
    """The metric of what samples add, [n, k], and without each of them, [n]."""
    n, total = len(sums), sums.sum(axis=0)
    return float(value(total / n)), np.asarray(value((total - sums) / max(n - 1, 1)))
