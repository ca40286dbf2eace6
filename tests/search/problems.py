"""Problems with known optima, random ones, and the optimum by trying every selection."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np

from bitswitch_deploy.search.problem import Group, Problem, Row, Selection

WIDTHS = (8, 6, 4, 2)


def problem(costs: list[tuple[float, ...]], *rows: Row, widths: tuple[int, ...] = WIDTHS) -> Problem:
    """One layer for each tuple of costs, named a, b, c ..."""
    names = [chr(ord("a") + index) if len(costs) < 26 else f"l{index}" for index in range(len(costs))]
    groups = tuple(Group(layers=(name,), widths=widths[: len(each)], costs=each) for name, each in zip(names, costs))
    return Problem(groups=groups, rows=rows)


def average_row(n_layers: int, average: float, widths: tuple[int, ...] = WIDTHS) -> Row:
    return Row(
        name=f"avg_bits<={average:g}", use=(widths,) * n_layers, cap=math.floor(average * n_layers), per_unit=n_layers
    )


def three_layers(cap: int | None) -> Problem:
    """Oracle O1: greedy by slope ends at cost 18 under a cap of 220, the optimum is 13."""
    use = ((160, 120, 80, 40), (120, 90, 60, 30), (80, 60, 40, 20))
    costs: list[tuple[float, ...]] = [(0, 1, 3, 34), (0, 2, 10, 50), (0, 5, 13, 36)]
    return problem(costs, Row(name=f"bytes<={cap}", use=use, cap=cap))


def random_problem(seed: int, *, n_layers: int, n_choices: int, n_rows: int, convex: bool = False) -> Problem:
    """Costs fall and resources rise with the width, both by chance; caps leave about half of the selections."""
    random = np.random.default_rng(seed)
    widths = tuple(range(8, 8 - n_choices, -1)) if n_choices <= 7 else tuple(range(n_choices + 1, 1, -1))
    scale = random.lognormal(0, 1.5, n_layers)
    costs = [
        tuple(float(s * 4.0**-b) if convex else float(s * random.uniform(0.2, 1) * 4.0**-b) for b in widths)
        for s in scale
    ]
    rows = []
    for index in range(n_rows):
        sizes = random.integers(1, 2000, n_layers)
        use = tuple(tuple(int(size * b + random.integers(0, 50)) for b in widths) for size in sizes)
        low, high = sum(map(min, use)), sum(map(max, use))
        rows.append(Row(name=f"r{index}<=", use=use, cap=int(low + (high - low) * random.uniform(0.3, 0.7))))
    return problem(costs, *rows, widths=widths)


def extreme_problem(seed: int) -> Problem:
    """A few layers with costs and uses of extreme size or range, and caps at the edge of what is possible."""
    random = np.random.default_rng(seed)
    n_layers, n_choices, n_rows = (int(random.integers(*ends)) for ends in ((1, 6), (1, 5), (0, 4)))
    shape = (n_layers, n_choices)
    whole = random.integers(0, 5, shape)
    kinds = (random.normal(0, 1, shape), random.lognormal(0, 6, shape), 1e-14 * whole, 1e9 * whole + 1e12)
    costs = [tuple(map(float, row)) for row in kinds[random.integers(0, 4)]]
    rows = []
    for index in range(n_rows):
        small, large = random.integers(0, 5, shape), random.integers(0, 10**12, shape)
        uses = (small, 0 * small, 10**9 + small, large, 10**7 * small + random.integers(0, 3, shape))
        use = tuple(tuple(map(int, row)) for row in uses[random.integers(0, 5)])
        free = Row(name=f"r{index}", use=use, base=int(random.integers(0, 2) * random.integers(0, 10**6)), cap=None)
        share = random.choice([0.0, 1.0, 0.5, random.random()])
        rows.append(replace(free, cap=free.minimum + int(share * (free.maximum - free.minimum))))
    return problem(costs, *rows)


def every_selection(given: Problem) -> list[Selection]:
    """All feasible selections, cheapest first."""
    choices = [range(len(group.widths)) for group in given.groups]
    feasible = [each for each in itertools.product(*choices) if given.is_feasible(each)]
    return sorted(feasible, key=lambda each: (given.cost(each), each))
