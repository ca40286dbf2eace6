"""The exact optimum under one budget, for all its amounts at once, in NumPy alone. A cross-check of the solver.

best[c] = least cost of the groups so far that use no more than c units; one group after the other, one pass each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.search.problem import Problem, Row, Selection

MAX_CELLS = 50_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """The optimum for every amount of one resource.

    costs: float64 [amounts], least cost with at most base + unit * index; inf where there is none.
    """

    unit: int
    base: int
    costs: npt.NDArray[np.float64]
    choices: tuple[npt.NDArray[np.uint8], ...]
    uses: tuple[tuple[int, ...], ...]

    def selection(self, cap: int) -> Selection | None:
        """The optimum that uses at most `cap`, None when nothing does."""
        room = min((cap - self.base) // self.unit, len(self.costs) - 1)
        if room < 0 or not math.isfinite(self.costs[room]):
            return None
        chosen = []
        for choice, use in zip(reversed(self.choices), reversed(self.uses)):
            k = int(choice[room])
            chosen.append(k)
            room -= use[k]
        return tuple(reversed(chosen))


def frontier(problem: Problem, row: Row) -> Frontier:
    """Solve for every amount of `row`, whatever its cap; other rows are not looked at.

    Raises:
        ValueError: the resource is too fine for a table.
    """
    unit = math.gcd(*(amount for use in row.use for amount in use)) or 1
    uses = tuple(tuple(amount // unit for amount in use) for use in row.use)
    n_amounts = sum(map(max, uses)) + 1
    if n_amounts * len(uses) > MAX_CELLS:
        raise ValueError(f"{n_amounts} amounts of {row.name} are too many for a table")
    best = np.zeros(n_amounts)
    choices = []
    for group, use in zip(problem.groups, uses):
        options = np.full((len(use), n_amounts), np.inf)
        for k, (amount, cost) in enumerate(zip(use, group.costs)):
            options[k, amount:] = best[: n_amounts - amount] + cost
        choice = options.argmin(axis=0).astype(np.uint8)
        best = np.take_along_axis(options, choice[None].astype(np.intp), axis=0)[0]
        choices.append(choice)
    return Frontier(unit=unit, base=row.base, costs=best, choices=tuple(choices), uses=uses)
