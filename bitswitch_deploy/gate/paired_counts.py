"""Tests for outcomes that are right or wrong, on the same samples before and now.

Of n samples, `lost` were right and are wrong now, `gained` the other way round; the rest did not change.

    drop = (lost - gained) / n        a share; positive when accuracy fell

* H0: drop <= 0 is tested as McNemar did, exactly: under it `lost` is at most Binomial(lost + gained, 1/2). Exact at
  every count: the usual switch to the normal form from 25 on saves time that nothing here needs, and the mid-p form
  gives up the guarantee for a gain in power that vanishes with the counts.
* H0: drop <= margin and H0: drop >= bound have no such conditional test. Their statistic is Tango's score (Statistics
  in Medicine 17, 891-908, 1998, the restricted maximum likelihood of the nuisance parameter), drawn half a sample
  towards 0. The normal form of it keeps the level of the exclusion, but for a level of 6 % at 5 % where every sample
  changed (sums over all tables of 30 to 600 samples, tests/gate); not that of the drop: where few samples changed
  there are more alarms than its level says, most so at the small levels of Holm's rule. So the p value of a drop is
  exact: the probability of a score like this one or higher, at the share of gained samples that makes it largest
  (Berger and Sidik, Statistical Methods in Medical Research 12, 91-108, 2003). Power takes the critical score of about
  as many samples.

Arguments of the functions on counts may be arrays of one shape, but for the exact one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import binom, norm

Floats = npt.NDArray[np.float64]

# Cells of the table of (lost, gained) that is summed for a power; a larger one is thinned out evenly.
_MAX_CELLS = 40_000
_TAIL_SD = 8.0
# of the bounds of a drop: a ten-thousandth of a point
_XTOL = 1e-6
_SAME_SCORE = 1e-9
_MOST_SCORE, _SCORE_TOL = 12.0, 1e-3
_MANY = 10**6
# Above that no number of samples is looked for.
MAX_SAMPLES = 10**9
# Shares of gained samples that the exact test tries: from a hundredth of a sample on, twice as many as this.
_LEAST_CHANGES, _GAINS = 0.01, 50
# Of so many numbers of lost samples one is looked at alone.
_FAR = 32


def p_value_of_drop(lost: int, gained: int, n: int, *, margin: float) -> float:
    """P of H0: the drop is at most `margin` (a share, 0 or more), exact."""
    if margin == 0:
        return float(binom.sf(lost - 1, lost + gained, 0.5))
    if margin >= 1:  # all may be lost
        return 1.0
    return _probability(float(_score(np.float64(lost), np.float64(gained), n, margin)), n, margin)


def critical_score(n: int, *, margin: float, alpha: float) -> float:
    """The score from which on H0: drop <= `margin` (0 < margin < 1) is rejected at level `alpha`, to a thousandth.

    Of more than a million samples it is the normal form of the score that is meant, whose error is gone by then.
    """
    if n > _MANY:
        return float(norm.isf(alpha))
    low, high = 0.0, _MOST_SCORE
    while high - low > _SCORE_TOL:
        middle = (low + high) / 2
        low, high = (low, middle) if _probability(middle, n, margin, enough=alpha) <= alpha else (middle, high)
    return high


def p_value_of_exclusion(lost: npt.ArrayLike, gained: npt.ArrayLike, n: int, *, bound: float) -> Floats:
    """P of H0: the drop is at least `bound` (a share above 0)."""
    if bound > 1:  # nothing falls that far
        return np.zeros(np.broadcast(lost, gained).shape)
    return np.asarray(norm.cdf(_score(np.asarray(lost, np.float64), np.asarray(gained, np.float64), n, bound)))


def drop_interval(lost: int, gained: int, n: int, *, alpha: float) -> tuple[float, float]:
    """Bounds of the drop, a share; each is passed with probability `alpha`, about, by inversion of the score test."""
    z, drop = float(norm.isf(alpha)), (lost - gained) / n
    edge = 1 - 1e-9

    def distance(margin: float, wanted: float) -> float:
        return float(_score(np.float64(lost), np.float64(gained), n, margin)) - wanted

    lower = brentq(distance, -edge, drop, args=(z,), xtol=_XTOL) if distance(-edge, z) > 0 else -1.0
    upper = brentq(distance, drop, edge, args=(-z,), xtol=_XTOL) if distance(edge, -z) < 0 else 1.0
    return float(lower), float(upper)


def power_of_drop(
    n: int, *, drop: float, changed: float, margin: float, alpha: float, critical: float | None = None
) -> float:
    """Probability that H0: drop <= `margin` is rejected at level `alpha` where the drop is `drop`, at least.

    changed: share of samples whose outcome changes, at least |drop|.
    critical: critical_score of about as many samples, where there is a margin; without it, its normal form.
    """
    if margin == 0:
        return _power(lambda b, c: binom.sf(b - 1, b + c, 0.5) <= alpha, n, drop=drop, changed=changed)
    least = norm.isf(alpha) if critical is None else critical
    # counts are whole, so that the critical score goes up and down with n: at worst it asks for one lost sample more
    return _power(lambda b, c: _score(b - 1, c, n, margin) >= least, n, drop=drop, changed=changed)


def power_of_exclusion(n: int, *, drop: float, changed: float, bound: float, alpha: float) -> float:
    """Probability that H0: drop >= `bound` is rejected at level `alpha` where the drop is `drop`."""
    return _power(lambda b, c: p_value_of_exclusion(b, c, n, bound=bound) <= alpha, n, drop=drop, changed=changed)


def smallest_n(power: Callable[[int], float], *, wanted: float) -> int:
    """Least n, to one in a hundred, from which on `power(n)` is `wanted`; the count goes up in steps of 1 %.

    More than MAX_SAMPLES where none up to that has it.
    """
    high = 8
    while power(high) < wanted and high < MAX_SAMPLES:
        high *= 2
    low = high // 2
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= wanted else (middle, high)
    return high


def _score(lost: Any, gained: Any, n: int, margin: float) -> Any:
    """Tango's z of drop - margin, drawn half a sample towards 0."""
    linear = -lost - gained + (2 * n - lost + gained) * margin
    root = np.sqrt(linear**2 + 8 * n * gained * margin * (1 - margin))
    gain_share = (root - linear) / (4 * n)
    variance = n * (2 * gain_share + margin * (1 - margin))
    excess = lost - gained - n * margin
    drawn = np.sign(excess) * np.maximum(np.abs(excess) - 0.5, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(drawn == 0, 0.0, drawn / np.sqrt(np.maximum(variance, 0)))


def _probability(score: float, n: int, margin: float, *, enough: float = 1.0) -> float:
    """Of a score like this or a higher one where the drop is `margin`, at the share of gained samples that has most.

    enough: no larger one is looked for than one above this.
    """
    edge, highest = (1 - margin) / 2, 0.0
    most = _most_gained(np.arange(_likely(n, edge + margin)[-1] + 1), n, margin, score)
    for gain in (*np.linspace(0, edge, _GAINS), *np.geomspace(_LEAST_CHANGES / n, edge / _GAINS, _GAINS)):
        loss = gain + margin
        lost = _likely(n, loss)
        below = binom.cdf(most[lost.astype(np.int64)], n - lost, min(1.0, gain / (1 - loss)))
        highest = max(highest, float(binom.pmf(lost, n, loss) @ below))
        if highest > enough:
            break
    return min(1.0, highest)


def _most_gained(lost: Floats, n: int, margin: float, score: float) -> Floats:
    """For each number of lost samples the largest one of gained with this score or a higher one; -1 where none has."""

    def reaches(some_lost: Floats, gained: Floats) -> npt.NDArray[np.bool_]:
        return np.asarray(_score(some_lost, np.maximum(gained, 0), n, margin) >= score - _SAME_SCORE)

    low, high = np.full(lost.shape, -1.0), n - lost
    if lost.size > _FAR:
        # the bound is smooth: a guess between others is off by one, and where it is not both ends stay as they are
        guess = np.interp(lost, lost[::_FAR], _most_gained(lost[::_FAR], n, margin, score))
        below, above = np.clip(np.floor(guess) - 1, -1, high), np.clip(np.ceil(guess) + 1, 0, high)
        low, high = np.where(reaches(lost, below), below, low), np.where(reaches(lost, above), high, above - 1)
    while (is_open := np.flatnonzero(low < high)).size:
        middle = np.ceil((low[is_open] + high[is_open]) / 2)
        does = reaches(lost[is_open], middle)
        low[is_open], high[is_open] = np.where(does, middle, low[is_open]), np.where(does, high[is_open], middle - 1)
    return low


def _power(rejects: Callable[[Floats, Floats], npt.NDArray[np.bool_]], n: int, *, drop: float, changed: float) -> float:
    """Sum of the probabilities of the tables (lost, gained) that are rejected."""
    loss, gain = (changed + drop) / 2, (changed - drop) / 2
    lost, gained = _likely(n, loss), _likely(n, gain)
    step = int(np.ceil(np.sqrt(lost.size * gained.size / _MAX_CELLS)))
    # thinned out where the table is very large: neighbouring cells are alike there
    lost, gained = lost[::step], gained[::step]
    weight = binom.pmf(lost, n, loss)[:, None] * binom.pmf(gained, n - lost[:, None], min(1.0, gain / (1 - loss)))
    total = float(weight.sum())
    return float(weight[rejects(lost[:, None], np.broadcast_to(gained, weight.shape))].sum()) / total


def _likely(n: int, share: float) -> Floats:
    """Counts that a binomial variable takes with more than negligible probability."""
    mean, spread = n * share, _TAIL_SD * np.sqrt(n * share * (1 - share)) + _TAIL_SD
    return np.arange(max(0, int(mean - spread)), min(n, int(mean + spread)) + 1, dtype=np.float64)
