"""How long the solver takes: layers x choices x budgets, median and worst of some random problems, one thread.

python tools/bench/search.py
"""

from __future__ import annotations

import sys
import time
from importlib import metadata
from statistics import median

import click
import numpy as np

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.search.candidates import near_optimal, usual_distance
from bitswitch_deploy.search.problem import Group, Problem, Row
from bitswitch_deploy.search.solver import solve

SIZES = ((20, 4, 1), (20, 4, 4), (60, 4, 4), (200, 4, 1), (200, 4, 4))


@click.command()
@click.option("--turns", type=click.IntRange(min=1), default=5, show_default=True, help="Random problems of each size.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(turns: int, seed: int) -> None:
    """Time the optimum and eight candidates."""
    click.echo("layers  choices  budgets   optimum s: median  worst   8 candidates s: median  worst")
    for n_layers, n_choices, n_rows in SIZES:
        problems = [_problem(seed + turn, n_layers, n_choices, n_rows) for turn in range(turns)]
        one = [_seconds(lambda given=each: solve(given)) for each in problems]
        eight = [_seconds(lambda given=each: _eight(given)) for each in problems]
        times = f"{median(one):18.2f} {max(one):6.2f} {median(eight):24.2f} {max(eight):6.2f}"
        click.echo(f"{n_layers:6} {n_choices:8} {n_rows:8}  {times}")
    click.echo(
        f"scipy {metadata.version('scipy')}, numpy {np.__version__}, Python {sys.version.split()[0]}, seed {seed}"
    )


def _eight(problem: Problem) -> None:
    near_optimal(problem, count=8, distance=usual_distance(problem))


def _seconds(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start


def _problem(seed: int, n_layers: int, n_choices: int, n_rows: int) -> Problem:
    """Layers like those of a residual network: costs fall by about 4 for each bit, resources grow with it."""
    random = np.random.default_rng(seed)
    widths = tuple(range(8, 0, -2))[:n_choices]
    sensitivity = random.lognormal(0, 1.5, n_layers)
    groups = tuple(
        Group(
            layers=(f"l{i}",), widths=widths, costs=tuple(float(s * random.uniform(0.5, 1) * 4.0**-b) for b in widths)
        )
        for i, s in enumerate(sensitivity)
    )
    for _ in range(100):
        rows = tuple(_row(random, index, n_layers, widths) for index in range(n_rows))
        problem = Problem(groups=groups, rows=rows)
        try:
            solve(problem)
        except UsageError:
            continue
        return problem
    raise RuntimeError("no feasible problem by chance")


def _row(random: np.random.Generator, index: int, n_layers: int, widths: tuple[int, ...]) -> Row:
    sizes = random.integers(100, 100_000, n_layers)
    use = tuple(tuple(int(size * bits + random.integers(0, 50)) for bits in widths) for size in sizes)
    low, high = sum(map(min, use)), sum(map(max, use))
    return Row(name=f"r{index}", use=use, cap=int(low + (high - low) * random.uniform(0.3, 0.7)))


if __name__ == "__main__":
    main()
