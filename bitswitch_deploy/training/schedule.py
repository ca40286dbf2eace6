"""Learning rates of joint training: cosine for the weights, ALRS decay per width for the scales.

Source: Huang et al., arXiv 2502.01199, section on ALRS; the form that the authors' scripts use (eta only).
"""

from __future__ import annotations

import math


def cosine_rate(initial: float, step: int, total_steps: int) -> float:
    """Learning rate at `step` of `total_steps` (counted from 0): a half cosine from `initial` to 0, no warm-up."""
    return 0.5 * initial * (1.0 + math.cos(math.pi * step / total_steps))


def alrs_eta(distance: int) -> float:
    """eta_b for D = `distance` = h - b: 10^(-D/2) when D is even, 5 * 10^(-(D+1)/2) when odd."""
    if distance % 2 == 0:
        return float(10.0 ** -(distance // 2))
    return float(5.0 * 10.0 ** -((distance + 1) // 2))


def scale_rate(current: float, *, bits: int, highest: int) -> float:
    """Learning rate of the scales at `bits`, from the schedule's current rate: eta_b * lambda."""
    return alrs_eta(highest - bits) * current
