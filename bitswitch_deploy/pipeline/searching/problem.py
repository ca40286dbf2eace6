"""What a search decides: groups of layers, their choices and costs, and the budgets as rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bitswitch_deploy.catalogue import load_target
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.latency_table import LatencyTable, read_latency_table
from bitswitch_deploy.master import Master
from bitswitch_deploy.search.budget import Budget
from bitswitch_deploy.search.costs import CostTable
from bitswitch_deploy.search.latency import TableCheck
from bitswitch_deploy.search.problem import Group, Problem, Row
from bitswitch_deploy.search.resources import Choices, Resources, count_macs
from bitswitch_deploy.search.samples import Inputs
from bitswitch_deploy.search.shapes import layer_shapes
from bitswitch_deploy.search.solver import solve


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgeted:
    """Rows of the budgets as given, then rows that are only counted; and how the latency tables add up."""

    rows: tuple[Row, ...]
    checks: tuple[TableCheck, ...]


def widths_to_choose(master: Master, wanted: Sequence[int] | None) -> tuple[int, ...]:
    """The widths to choose from, highest first; None takes the trained ones.

    Raises:
        UsageError: one is above the master's own.
    """
    widths = tuple(sorted(wanted or master.spec.widths, reverse=True))
    if widths[0] > master.spec.bits:
        raise UsageError(
            where="--bits",
            got=f"{widths[0]} bits from a master of {master.spec.bits} bits",
            allowed=f"2..{master.spec.bits}",
            do="leave the width out",
        )
    return widths


def layer_groups(master: Master, ties: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Quantized layers in the order of the master; those that a tie names stand together in the place of the first.

    ties: each some names or patterns, separated by commas. Layers that share one weight are one layer of the master
    already.

    Raises:
        UsageError: a tie that names fewer than two layers, by a name that no layer has, or one that another tie has.
    """
    layers = [layer.name for layer in master.spec.layers if not layer.pinned]
    tied: dict[str, tuple[str, ...]] = {}
    for tie in ties:
        patterns = [word.strip() for word in tie.split(",")]
        named = {pattern: [name for name in layers if _is_named(name, pattern)] for pattern in patterns}
        members = tuple(name for name in layers if any(name in names for names in named.values()))
        problems = [f"no quantized layer is named {pattern!r}" for pattern, names in named.items() if not names]
        problems += [f"{name} is in another tie" for name in members if name in tied]
        problems += [f"{len(members)} quantized layers"] * (len(members) < 2)
        if problems:
            raise UsageError(
                where=f"--tie {tie}",
                got=problems[0],
                allowed=f"two or more of: {', '.join(layers)}",
                do="correct the names; `bitswitch-deploy inspect` lists them",
            )
        tied |= dict.fromkeys(members, members)
    return tuple(dict.fromkeys(tied.get(name, (name,)) for name in layers))


def _is_named(name: str, pattern: str) -> bool:
    """In a pattern `*` alone is special; names of layers may have brackets."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None


def budget_rows(
    master: Master, choices: Choices, budgets: Sequence[Budget], tables: Sequence[Path], sample: Inputs
) -> Budgeted:
    """The budgets in whole numbers.

    sample: one input of the network, to see the shapes of its layers.

    Raises:
        UsageError: an unknown target, a budget or a table given twice, or a latency table that is missing or of another
            master.
        InputFileError: a latency table that cannot be read or does not add up.
    """
    read = _read_tables(tables)
    budgets = [_with_table(budget, read) for budget in budgets]
    names = [f"{budget.resource}@{budget.target}" for budget in budgets]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                where="--budget",
                got=f"{name.removesuffix('@None')} twice",
                allowed="each once",
                do="keep the lower one",
            )
    targets = {
        budget.target: load_target(budget.target).target
        for budget in budgets
        if budget.target is not None and budget.resource == "bytes"
    }
    resources = Resources(
        master,
        choices,
        macs=count_macs(master, layer_shapes(master, sample)),
        targets=targets,
        tables=read,
    )
    counted = tuple(
        row for row in resources.counted() if row.name not in {name.removesuffix("@None") for name in names}
    )
    return Budgeted(rows=(*(resources.row(budget) for budget in budgets), *counted), checks=resources.checks)


def _with_table(budget: Budget, tables: Sequence[LatencyTable]) -> Budget:
    """A budget of latency under the name that tables have for its target: `jetson` is an alias, and a table of a target
    of one's own may be all that is here of it.
    """
    if budget.resource != "latency_p50_ms" or budget.target is None:
        return budget
    if budget.target in [table.target for table in tables]:
        return budget
    name = load_target(budget.target).target.name
    return replace(budget, target=name, text=f"{budget.text.partition('@')[0]}@{name}")


def _read_tables(paths: Sequence[Path]) -> list[LatencyTable]:
    tables: dict[str, LatencyTable] = {}
    for path in paths:
        table = read_latency_table(path)
        if table.target in tables:
            raise UsageError(
                where=f"--latency-table {path}",
                got=f"another table of target {table.target}",
                allowed="one for each target",
                do="leave one of them out",
            )
        tables[table.target] = table
    return list(tables.values())


def refuse_impossible(choices: Choices, rows: Sequence[Row]) -> None:
    """See that the budgets can be kept at all, before anything is measured.

    Raises:
        UsageError: a budget below the least that is possible, or budgets that contradict each other.
    """
    groups = tuple(
        Group(layers=layers, widths=widths, costs=(0.0,) * len(widths))
        for layers, widths in zip(choices.groups, choices.widths)
    )
    solve(Problem(groups=groups, rows=tuple(rows)))


def make_problem(choices: Choices, table: CostTable, rows: Sequence[Row], *, where: str) -> Problem:
    """Groups with their costs, and the rows.

    Raises:
        UsageError: the table has no cost for a layer at a width.
    """
    groups = tuple(
        Group(layers=layers, widths=widths, costs=table.of(layers, widths, where=where))
        for layers, widths in zip(choices.groups, choices.widths)
    )
    return Problem(groups=groups, rows=tuple(rows))
