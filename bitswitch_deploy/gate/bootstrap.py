"""Paired bootstrap of a drop: samples are drawn with replacement, before and now together.

The metric is a smooth function of sums over samples: a mean, or a mean of ratios such as IoU over classes. With s [n,
k] what each sample adds before and t [n, k] now,

    drop = value(sum s / n) - value(sum t / n)

and what one sample weighs in it, its influence (infinitesimal jackknife, Efron 1982), is the derivative of `value`
times its row. A drawn drop is looked at as it is, and divided by the standard error of its own draw (bootstrap-t).
Where every sample moves a little and outcomes are skewed, as log-likelihoods are, the first form gives too many
alarms; where few samples moved at all, as between two nearly equal graphs, the second does. So the larger p value of
the two counts (tests/gate). Where few samples moved and these are very skewed, no test of a mean keeps its level.
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

# Below, a standard error says nothing.
MIN_SAMPLES = 30
# Fits the caches, and an int32.
_BLOCK_CELLS = 1 << 18
_STEP = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapDrop:
    """A drop with its distribution.

    drop: before minus now. standard_error: of the drop; 0 where no sample changed.
    ratios: (drawn drop - drop) / standard error, [2, draws]: of the drop, and of the draw itself.
    """

    drop: float
    standard_error: float
    ratios: Floats

    def p_value_of_drop(self, margin: float) -> float:
        """P of H0: the drop is at most `margin`, in the unit of the metric."""
        return self._tail(margin, above=True)

    def p_value_of_exclusion(self, bound: float) -> float:
        """P of H0: the drop is at least `bound`."""
        return self._tail(bound, above=False)

    def interval(self, alpha: float) -> tuple[float, float]:
        """Bounds of the drop, each passed with probability `alpha`."""
        if self.standard_error == 0:
            return self.drop, self.drop
        low = np.quantile(self.ratios, 1 - alpha, axis=1, method="higher").max()
        high = np.quantile(self.ratios, alpha, axis=1, method="lower").min()
        return float(self.drop - low * self.standard_error), float(self.drop - high * self.standard_error)

    def _tail(self, limit: float, *, above: bool) -> float:
        distance = self.drop - limit
        if self.standard_error == 0:  # every sample is as it was: there is nothing random about it
            return 0.0 if (distance > 0) == above and distance != 0 else 1.0
        seen = distance / self.standard_error
        beyond = self.ratios >= seen if above else self.ratios <= seen
        return float((1 + beyond.sum(axis=1).max()) / (1 + beyond.shape[1]))


def bootstrap_drop(
    before: npt.NDArray[Any], now: npt.NDArray[Any], value: Value, *, draws: int, seed: int
) -> BootstrapDrop:
    """Draw `draws` times from paired samples [n, k]; equal arguments give equal results.

    Raises:
        ValueError: shapes that differ, or fewer than MIN_SAMPLES samples.
    """
    s, t = np.asarray(before, np.float64), np.asarray(now, np.float64)
    if s.shape != t.shape or s.ndim != 2 or len(s) < MIN_SAMPLES:
        raise ValueError(f"paired samples [n, k] with n of {MIN_SAMPLES} or more are needed: {s.shape}, {t.shape}")
    n = len(s)
    drop = float(value(s.mean(axis=0)) - value(t.mean(axis=0)))
    influence = (s - s.mean(axis=0)) @ _gradient(value, s.mean(axis=0))
    influence -= (t - t.mean(axis=0)) @ _gradient(value, t.mean(axis=0))
    error = _standard_error(influence.mean(), (influence**2).mean(), n)
    # what rounding leaves of a difference of equal sums is no change
    if error <= 1e-12 * max(1.0, abs(float(value(s.mean(axis=0))))):
        return BootstrapDrop(drop=drop, standard_error=0.0, ratios=np.zeros((2, 0)))
    columns = np.column_stack((s, t, influence, influence**2))
    k, ratios = s.shape[1], []
    for weights in draw_weights(n, draws, seed):
        means = weights @ columns / n
        drawn = value(means[:, :k]) - value(means[:, k : 2 * k])
        own_error = _standard_error(means[:, -2], means[:, -1], n)
        shift = drawn - drop
        ratios.append(np.stack((shift / error, shift / np.maximum(own_error, error * 1e-3))))
    return BootstrapDrop(drop=drop, standard_error=float(error), ratios=np.concatenate(ratios, axis=1))


def mean_value(means: Floats) -> Floats:
    """The metric that is the mean of one value per sample, [..., 1] -> [...]."""
    return np.asarray(means[..., 0])


def _standard_error(mean: Any, mean_square: Any, n: int) -> Any:
    return np.sqrt(np.maximum(mean_square - mean**2, 0) / (n - 1))


def draw_weights(n: int, draws: int, seed: int) -> Iterator[Floats]:
    """How often each sample is drawn, [b, n], a block of draws at a time."""
    rng = np.random.default_rng(seed)
    size = max(1, _BLOCK_CELLS // n)
    for start in range(0, draws, size):
        rows = min(size, draws - start)
        # one count over all draws of the block: each has n numbers of its own
        drawn = rng.integers(n, size=(rows, n), dtype=np.int32) + np.arange(rows, dtype=np.int32)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _gradient(value: Value, at: Floats) -> Floats:
    """Derivative of `value` at mean sums [k], by central differences."""
    steps = np.diag(np.maximum(np.abs(at), 1e-9) * _STEP)
    difference = value(at + steps) - value(at - steps)
    return np.asarray(difference / (2 * np.diag(steps)))
