"""The values that a quantizer gives, as its data show them: no assumption about the operators that it is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Smallest step between the values of a quantizer (NaN with one value only), the lowest and the highest one."""

    step: float
    low: float
    high: float


class LevelSet:
    """Collects the values of one quantizer, at most a few hundred."""

    def __init__(self) -> None:
        self._values: npt.NDArray[Any] = np.empty(0, np.float32)

    def add(self, values: npt.NDArray[Any]) -> None:
        """Add one batch of any shape."""
        self._values = np.unique(np.concatenate([self._values, np.unique(values)]))

    def result(self) -> Levels:
        """The levels so far.

        Raises:
            ValueError: nothing was added.
        """
        if not self._values.size:
            raise ValueError("no batch was added")
        gaps = np.diff(self._values.astype(np.float64))
        return Levels(
            step=float(gaps.min()) if gaps.size else math.nan,
            low=float(self._values[0]),
            high=float(self._values[-1]),
        )
