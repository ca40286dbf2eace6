"""Histories of a repository, simulated: outcomes of the same samples before and now."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

HISTORIES = 1000
Bits = npt.NDArray[np.bool_]


def most_alarms(level: float, histories: int = HISTORIES) -> int:
    """Alarms that a test of this level stays below in 999 of 1000 simulations (binomial tolerance)."""
    return int(binom.ppf(0.999, histories, level))


def least_finds(power: float, histories: int = HISTORIES) -> int:
    """Finds that a test of this power stays above in 999 of 1000 simulations."""
    return int(binom.ppf(0.001, histories, power))


def paired_bits(rng: np.random.Generator, n: int, *, loss: float, gain: float, right: float) -> tuple[Bits, Bits]:
    """Outcomes [n, 1] before and now: a right one is lost and a wrong one gained so that the shares are as given."""
    draw = rng.random(n)
    lost, gained = draw < loss, (draw >= loss) & (draw < loss + gain)
    before = np.where(lost, True, np.where(gained, False, rng.random(n) < right))
    now = np.where(lost, False, np.where(gained, True, before))
    return before[:, None], now[:, None]


def skewed_drops(rng: np.random.Generator, n: int, *, mean: float) -> npt.NDArray[Any]:
    """What each sample loses, [n]: skewed as log-likelihoods are, with this mean."""
    return np.asarray(rng.lognormal(0.0, 1.0, n) - np.exp(0.5) + mean)


def few(rng: np.random.Generator, n: int, share: float) -> Bits:
    """Which samples are among this share, [n]."""
    return np.asarray(rng.random(n) < share)
