"""Many tests at once: with twenty widths and targets, one false alarm a week is certain unless they are corrected."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """P values by Holm's step-down rule (Scandinavian Journal of Statistics 6, 65-70, 1979), in the given order.

    Rejecting those <= alpha keeps the probability of even one false rejection <= alpha, however the tests depend on
    each
    other: p of rank i (from 0) of k is multiplied by k - i, and never falls below its predecessor.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    scaled = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(scaled, 1.0)
    return tuple(adjusted.tolist())
