"""Learning rates of joint training: cosine for the weights, ALRS for the scales.

Source: Huang et al., arXiv 2502.01199, section on ALRS. With lambda the schedule's current rate, D = h - b, and
m_b = mean over the quantized layers of min(max|gradient of the layer's scales|, 1):

    none              lambda
    eta               eta_b * lambda                  as the authors' scripts do
    bracket           eta_b * lambda * (1 - m_b)
    bracket_printed   eta_b * max(lambda - m_b, 0)    as the paper prints it, but never negative
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Alrs = Literal["none", "eta", "bracket", "bracket_printed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A mini-batch of a schedule: `step` of `total`, counted from 0, in epochs of `per_epoch`."""

    step: int
    total: int
    per_epoch: int

    @property
    def epoch(self) -> int:
        """The epoch that it belongs to, counted from 0."""
        return self.step // self.per_epoch

    @property
    def epochs(self) -> int:
        """How many epochs the schedule has, a last short one included."""
        return -(-self.total // self.per_epoch)


def cosine_rate(initial: float, step: int, total_steps: int) -> float:
    """Learning rate at `step` of `total_steps` (counted from 0): a half cosine from `initial` to 0, no warm-up."""
    return 0.5 * initial * (1.0 + math.cos(math.pi * step / total_steps))


def alrs_eta(distance: int) -> float:
    """eta_b for D = `distance` = h - b: 10^(-D/2) when D is even, 5 * 10^(-(D+1)/2) when odd."""
    if distance % 2 == 0:
        return float(10.0 ** -(distance // 2))
    return float(5.0 * 10.0 ** -((distance + 1) // 2))


def scale_rate(
    form: Alrs, current: float | Tensor, *, distance: int, mean_gradient: float | Tensor = 0.0
) -> float | Tensor:
    """Learning rate of the scales `distance` bits below the highest width; a scalar tensor where `current` is one.

    Args:
        form: see the module. current: lambda, the schedule's current rate.
        mean_gradient: m_b, 0..1; only the bracket forms use it.
    """
    if form == "none":
        return current
    if form == "eta":
        return alrs_eta(distance) * current
    if not isinstance(current, Tensor):
        mean_gradient = float(mean_gradient)
    if form == "bracket":
        return alrs_eta(distance) * (current * (1.0 - mean_gradient))
    left = current - mean_gradient
    return alrs_eta(distance) * (left.clamp_min(0.0) if isinstance(left, Tensor) else max(left, 0.0))
