"""The choice of a width for each group of layers, as numbers: costs to minimise, budgets to keep. Data only.

    minimise    sum over groups g of cost[g][k_g]
    subject to  base[r] + sum over groups g of use[r][g][k_g] <= cap[r]     for every row r

Every `use`, `base` and `cap` is a whole number in the unit of its row, so whether a selection keeps a budget is decided
in exact integers and never by a tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context

from bitswitch_deploy.errors import UsageError

_UP = Context(prec=6, rounding=ROUND_CEILING)

Selection = tuple[int, ...]
"""Index of the chosen width in each group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Layers that take one width together: its choices, and what each of them is expected to cost in loss.

    widths: bits, highest first. costs: one for each width, in any unit, as long as all groups have the same.

    Raises:
        UsageError: a cost is not finite.
        ValueError: no choice, or another number of costs.
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]
    costs: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.layers or not self.widths or len(self.widths) != len(self.costs):
            raise ValueError(f"{len(self.widths)} widths and {len(self.costs)} costs for the layers {self.layers}")
        for width, cost in zip(self.widths, self.costs):
            if not math.isfinite(cost):
                raise UsageError(
                    where=f"cost of {self.name} at {width} bits",
                    got=str(cost),
                    allowed="a finite number",
                    do="measure the costs again without --costs, or correct the file",
                )

    @property
    def name(self) -> str:
        """The layers' names, for people."""
        return " + ".join(self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One resource: what each choice uses of it, and how much there is.

    name: for people, `avg_bits<=4`. use: [groups][choices]. base: what is used whatever is chosen. cap: None for a
    resource that is only counted. per_unit: divide by it to get the number in the unit of the name.
    """

    name: str
    use: tuple[tuple[int, ...], ...]
    cap: int | None
    base: int = 0
    per_unit: int = 1

    def total(self, selection: Selection) -> int:
        """What a selection uses, `base` included."""
        return self.base + sum(use[k] for use, k in zip(self.use, selection))

    @property
    def minimum(self) -> int:
        """What every selection uses at least."""
        return self.base + sum(map(min, self.use))

    @property
    def maximum(self) -> int:
        """What no selection exceeds."""
        return self.base + sum(map(max, self.use))

    def enough(self, amount: int) -> str:
        """A budget in the unit of the name that an amount keeps: six digits, rounded up where there are more.

        Written as --budget takes it, which knows no commas.
        """
        return f"{_UP.divide(amount, self.per_unit):f}" if self.per_unit != 1 else str(amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Groups and the rows that bind them.

    Raises:
        ValueError: a layer in two groups, or a row of another shape.
    """

    groups: tuple[Group, ...]
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        layers = [layer for group in self.groups for layer in group.layers]
        if not layers or len(set(layers)) != len(layers):
            raise ValueError(f"each layer belongs to one group: {layers}")
        shape = [len(group.widths) for group in self.groups]
        for row in self.rows:
            if [len(use) for use in row.use] != shape:
                raise ValueError(f"row {row.name} is of another shape than the groups")

    def cost(self, selection: Selection) -> float:
        """Predicted cost of a selection."""
        return math.fsum(group.costs[k] for group, k in zip(self.groups, selection))

    def is_feasible(self, selection: Selection) -> bool:
        """Whether every budget is kept, in exact integers."""
        return all(row.cap is None or row.total(selection) <= row.cap for row in self.rows)

    def widths(self, selection: Selection) -> dict[str, int]:
        """Width of each layer in bits."""
        return {
            layer: group.widths[k] for group, k in zip(self.groups, selection, strict=True) for layer in group.layers
        }

    def selection(self, widths: Mapping[str, int]) -> Selection:
        """The selection that gives each layer its width.

        Raises:
            ValueError: a group does not offer the width of its first layer.
        """
        return tuple(group.widths.index(widths[group.layers[0]]) for group in self.groups)

    @property
    def caps(self) -> tuple[Row, ...]:
        """The rows that bind."""
        return tuple(row for row in self.rows if row.cap is not None)

    def uniform(self) -> Iterator[tuple[int, Selection]]:
        """(width, selection) of every width that all groups offer, highest first."""
        for width in sorted(set.intersection(*(set(group.widths) for group in self.groups)), reverse=True):
            yield width, tuple(group.widths.index(width) for group in self.groups)
