"""What each layer costs at each width, and the file that holds such a table.

The file is JSON, schema `bitswitch-width-costs/1`, with the names of `CostTable` as keys. Costs may be in any
unit: only their order and ratios matter. `method` says how they came about:

    cross_entropy        mean loss with one layer at the width, minus the mean loss of the reference, labelled samples
    divergence           the same of KL(reference || changed), labels or not
    hessian_trace        trace of the layer's Hessian / weights * squared error of its weights (arXiv 1911.03852)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.errors import InputFileError, UsageError
from bitswitch_deploy.records import Reader
from bitswitch_deploy.search.score import Scores
from bitswitch_deploy.search.statistics import Z95, compare
from bitswitch_deploy.tensors import MAX_BITS, MIN_BITS, WidthAssignment

SCHEMA: Literal["bitswitch-width-costs/1"] = "bitswitch-width-costs/1"
Method = Literal["cross_entropy", "divergence", "hessian_trace"]

_NAMED = 8  # layers in one message
# of costs, so that their sums and squares stay finite
_LARGEST = 1e100
_READER = Reader(error=InputFileError, do="measure the costs again: leave out --costs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one group of layers at one width. standard_error: of `value`, which may be below 0 by chance.

    Raises:
        ValueError: a width that cannot be, a cost that is not finite or of no use, a negative standard error.
    """

    width: int
    value: float
    standard_error: float

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.width <= MAX_BITS:
            raise ValueError(f"a cost at {self.width} bits, and widths are from {MIN_BITS} to {MAX_BITS}")
        if not (abs(self.value) <= _LARGEST and 0 <= self.standard_error <= _LARGEST):
            raise ValueError(
                f"a cost of {self.value:g} with the standard error {self.standard_error:g} at {self.width} bits: "
                f"costs are finite, up to {_LARGEST:g}, standard errors not below 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCosts:
    """Costs of layers that take one width together.

    Raises:
        ValueError: no layer, or a layer or a width twice.
    """

    layers: tuple[str, ...]
    costs: tuple[Cost, ...]

    def __post_init__(self) -> None:
        widths = [cost.width for cost in self.costs]
        if not self.layers or len(set(self.layers)) != len(self.layers) or len(set(widths)) != len(widths):
            raise ValueError(f"each layer and each width once, and here are {self.layers} at {widths} bits")


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """Costs of all groups of one master. samples_sha256: what they were measured on. n: number of those samples.

    Raises:
        ValueError: no sample, or a group twice.
    """

    master_sha256: str
    method: Method
    samples_sha256: str
    n: int
    groups: tuple[GroupCosts, ...]
    schema: Literal["bitswitch-width-costs/1"] = SCHEMA

    def __post_init__(self) -> None:
        groups = [group.layers for group in self.groups]
        if self.n < 1 or len(set(groups)) != len(groups):
            raise ValueError(f"each group once, of one sample or more, and here are {len(groups)} of {self.n} samples")

    def write(self, path: Path) -> None:
        """Write the table in one step.

        Raises:
            OutputError: the file cannot be written.
        """
        replace_file(path, (json.dumps(asdict(self), indent=2, allow_nan=False) + "\n").encode())

    @property
    def doubtful(self) -> tuple[int, int]:
        """How many costs are within two standard errors of 0, and how many have a standard error."""
        measured = [cost for group in self.groups for cost in group.costs if cost.standard_error > 0]
        return sum(abs(cost.value) < 2 * cost.standard_error for cost in measured), len(measured)

    def of(self, layers: tuple[str, ...], widths: Sequence[int], *, where: str) -> tuple[float, ...]:
        """Costs of a group at these widths; those of single layers are added up for a group that is not in the table.

        Raises:
            UsageError: a layer or width is missing.
        """
        tables = {group.layers: {cost.width: cost.value for cost in group.costs} for group in self.groups}
        parts = [tables[layers]] if layers in tables else [tables.get((layer,), {}) for layer in layers]
        for width in widths:
            for layer, part in zip(layers, parts):
                if width not in part:
                    raise UsageError(
                        where=where,
                        got=f"no cost of {layer} at {width} bits",
                        allowed="every quantized layer at every width that is searched",
                        do="write the costs of these widths too (tools/hessian_costs.py --bits LIST), measure them by "
                        "leaving out --costs, or leave the width out of --bits",
                    )
        return tuple(math.fsum(part[width] for part in parts) for width in widths)


def read_costs(path: Path, *, master_sha256: str, layers: Collection[str]) -> CostTable:
    """The table in a file.

    master_sha256, layers: of the master that it must be for; `layers` are the quantized ones.

    Raises:
        InputFileError: it cannot be read, or is not what the schema says; NaN is neither JSON nor a cost.
        UsageError: it belongs to another master, or names layers that this one has not.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise _READER.refusal(str(path), f"cannot be read: {exc}", "a file of costs", is_text=True) from exc
    table = _READER.decode(CostTable, _READER.load_json(text, where=str(path)), where=str(path))
    if table.master_sha256 != master_sha256:
        raise UsageError(
            where=f"--costs {path}",
            got=f"costs of the master with sha256 {table.master_sha256[:12]}",
            allowed=f"this master, sha256 {master_sha256[:12]}",
            do="measure them again for this master",
        )
    strange = sorted({layer for group in table.groups for layer in group.layers}.difference(layers))
    if strange:
        raise UsageError(
            where=f"--costs {path}",
            got=f"costs of {', '.join(strange[:_NAMED])}",
            allowed="the quantized layers of the master; `bitswitch-deploy inspect` lists them",
            do="measure them again for this master",
        )
    return table


def one_changed(
    groups: Sequence[tuple[str, ...]], widths: Sequence[int], reference: Mapping[str, int]
) -> dict[tuple[int, int], dict[str, int]]:
    """(group, width) -> widths of all layers with that group changed; the reference's own width is left out."""
    return {
        (index, width): {**reference, **dict.fromkeys(layers, width)}
        for index, layers in enumerate(groups)
        for width in widths
        if any(reference[layer] != width for layer in layers)
    }


def measured_costs(
    groups: Sequence[tuple[str, ...]],
    widths: Sequence[int],
    reference: Mapping[str, int],
    measure: Callable[[Sequence[WidthAssignment]], Sequence[Scores]],
) -> tuple[GroupCosts, ...]:
    """Loss with one group changed minus that of the reference, in nats, with standard errors of the paired difference.

    Args:
        groups: layers that take one width together. widths: to measure. reference: width of each layer.
        measure: scores of assignments, all on the same samples.
    """
    changed = one_changed(groups, widths, reference)
    wanted = [assignment_of(reference), *map(assignment_of, changed.values())]
    base, *others = measure(wanted)
    costs = {}
    for place, scores in zip(changed, others):
        loss = compare(scores, base).loss
        costs[place] = (loss.value, (loss.high - loss.value) / Z95)
    return tuple(
        GroupCosts(
            layers=layers,
            costs=tuple(
                Cost(width=width, value=value, standard_error=error)
                for width in widths
                for value, error in [costs.get((index, width), (0.0, 0.0))]
            ),
        )
        for index, layers in enumerate(groups)
    )


def assignment_of(widths: Mapping[str, int]) -> WidthAssignment:
    """The assignment that gives each layer its width; the default is what most of them have, of equals the widest.

    Parameters that go with no layer take the default, so a mixed assignment leaves them where most layers are.
    """
    counts = sorted(widths.values(), key=lambda width: (list(widths.values()).count(width), width))
    return WidthAssignment(default=counts[-1], overrides=tuple(sorted(widths.items())))


def widths_text(assignment: WidthAssignment) -> str:
    """An assignment for messages: `w4`, or `w4 but for conv1 at 8 bits, ...` with the first few layers."""
    others = [f"{layer} at {bits} bits" for layer, bits in assignment.overrides if bits != assignment.default]
    text = f"w{assignment.default}" + (f" but for {', '.join(others[:_NAMED])}" if others else "")
    return text + (f" and {len(others) - _NAMED} more" if len(others) > _NAMED else "")
