"""The table of costs: its file, its additivity, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.errors import InputFileError, UsageError
from bitswitch_deploy.search.costs import (
    Cost,
    CostTable,
    GroupCosts,
    assignment_of,
    measured_costs,
    read_costs,
    widths_text,
)
from bitswitch_deploy.search.score import Scores
from bitswitch_deploy.tensors import WidthAssignment

SHA, LAYERS = "a" * 64, ("a", "b")


def costs(*values: float) -> tuple[Cost, ...]:
    return tuple(Cost(width=w, value=v, standard_error=0.0) for w, v in zip((8, 4), values))


TABLE = CostTable(
    master_sha256=SHA,
    method="cross_entropy",
    samples_sha256="b" * 64,
    n=10,
    groups=(GroupCosts(layers=("a",), costs=costs(0.0, 1.0)), GroupCosts(layers=("b",), costs=costs(0.0, 2.0))),
)


def test_written_and_read_again(tmp_path: Path) -> None:
    TABLE.write(tmp_path / "costs.json")
    assert read_costs(tmp_path / "costs.json", master_sha256=SHA, layers=LAYERS) == TABLE


def test_costs_that_do_not_stand_out_of_their_errors_are_counted() -> None:
    values = ((8, 0.0, 0.0), (6, 0.1, 0.06), (4, -0.1, 0.06), (2, 0.2, 0.06))
    costs = tuple(Cost(width=width, value=value, standard_error=error) for width, value, error in values)
    assert replace(TABLE, groups=(GroupCosts(layers=("a",), costs=costs),)).doubtful == (2, 3)
    assert TABLE.doubtful == (0, 0)


def test_groups_that_are_not_in_the_table_get_the_sum_of_their_layers() -> None:
    assert TABLE.of(("b",), (8, 4), where="") == (0, 2)
    assert TABLE.of(("a", "b"), (4,), where="") == (3,)


@pytest.mark.parametrize(("layers", "width"), [(("c",), 4), (("a", "c"), 4), (("a",), 2)])
def test_missing_layers_and_widths(layers: tuple[str, ...], width: int) -> None:
    with pytest.raises(UsageError, match=f"no cost of {layers[-1]} at {width} bits"):
        TABLE.of(layers, (width,), where="--costs costs.json")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1.0", "NaN", "NaN is not JSON"),
        ("1.0", "1e999", "finite"),
        ("1.0", '"1"', "a finite number"),
        ("1.0", "1e101", "a cost of 1e\\+101 .* costs are finite, up to 1e\\+100"),
        ('"standard_error": 0.0', '"standard_error": -1.0', "standard errors not below 0"),
        ('"width": 4', '"width": 99', "a cost at 99 bits, and widths are from 2 to 8"),
        ('"width": 4', '"width": 8', "each layer and each width once"),
        ('"b"\n', '"a"\n', "each group once, of one sample or more, and here are 2 of 10 samples"),
        ('"n": 10', '"n": 0', "here are 2 of 0 samples"),
        ('"cross_entropy"', '"guess"', "cross_entropy, divergence"),
        ("costs/1", "costs/2", "bitswitch-width-costs/1"),
        ("{", "[", "Expecting"),
    ],
)
def test_bad_files(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "costs.json"
    TABLE.write(path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputFileError, match=message):
        read_costs(path, master_sha256=SHA, layers=LAYERS)


def test_costs_of_another_master_and_no_file(tmp_path: Path) -> None:
    TABLE.write(tmp_path / "costs.json")
    with pytest.raises(UsageError, match="costs of the master with sha256 aaaaaaaaaaaa"):
        read_costs(tmp_path / "costs.json", master_sha256="c" * 64, layers=LAYERS)
    with pytest.raises(InputFileError, match="cannot be read"):
        read_costs(tmp_path / "none.json", master_sha256=SHA, layers=LAYERS)


def test_costs_of_layers_that_the_master_has_not(tmp_path: Path) -> None:
    TABLE.write(tmp_path / "costs.json")
    with pytest.raises(UsageError, match=r"costs.json: costs of b\n  allowed: the quantized layers of the master"):
        read_costs(tmp_path / "costs.json", master_sha256=SHA, layers=("a", "c"))


def test_where_losses_add_up_the_prediction_is_exact() -> None:
    """Oracle 4.7: layers that act on their own, a loss that is a sum."""
    random = np.random.default_rng(1)
    share = {(name, width): random.normal(1, 0.1, 64) * (8 - width) for name in "abc" for width in (8, 4, 2)}

    def measure(wanted: Sequence[WidthAssignment]) -> list[Scores]:
        losses = [sum(share[name, each.bits_of(name)] for name in "abc") + 5.0 for each in wanted]
        return [Scores(loss=np.asarray(loss), right=np.ones(64, bool)) for loss in losses]

    table = measured_costs([("a",), ("b", "c")], (8, 4, 2), dict.fromkeys("abc", 8), measure)
    assert table[0].costs[0].value == 0
    (base, mixed) = measure([assignment_of(dict.fromkeys("abc", 8)), assignment_of({"a": 2, "b": 4, "c": 4})])
    predicted = table[0].costs[2].value + table[1].costs[1].value
    assert predicted == pytest.approx(mixed.mean_loss - base.mean_loss, abs=1e-12)
    spread = (share["a", 2]).std(ddof=1) / 8
    assert table[0].costs[2].standard_error == pytest.approx(spread, rel=1e-6)


def test_costs_of_parts_of_the_samples_average_to_those_of_all() -> None:
    losses = {width: np.random.default_rng(width).normal(9 - width, 1, 90) for width in (8, 4, 2)}

    def of(part: slice) -> list[float]:
        def measure(wanted: Sequence[WidthAssignment]) -> list[Scores]:
            rows = [losses[each.bits_of("a")][part] for each in wanted]
            return [Scores(loss=row, right=np.ones(len(row), bool)) for row in rows]

        (group,) = measured_costs([("a",)], (8, 4, 2), {"a": 8}, measure)
        return [cost.value for cost in group.costs]

    parts = [of(slice(start, start + 30)) for start in (0, 30, 60)]
    assert np.mean(parts, axis=0) == pytest.approx(of(slice(0, 90)), abs=1e-12)
    assert [part[0] for part in parts] == [0, 0, 0]


def test_the_default_of_an_assignment_is_what_most_layers_have() -> None:
    assert assignment_of({"a": 4, "b": 4, "c": 8}) == WidthAssignment(
        default=4, overrides=(("a", 4), ("b", 4), ("c", 8))
    )
    assert assignment_of({"a": 4, "b": 8}).default == 8


def test_the_file_names_its_schema(tmp_path: Path) -> None:
    TABLE.write(tmp_path / "costs.json")
    assert json.loads((tmp_path / "costs.json").read_text())["schema"] == "bitswitch-width-costs/1"


def test_assignments_are_told_apart_in_messages() -> None:
    uniform = assignment_of({"a": 4, "b": 4})
    assert widths_text(uniform) == "w4"
    assert widths_text(assignment_of({"a": 4, "b": 2, "c": 4})) == "w4 but for b at 2 bits"
    many = widths_text(assignment_of({f"l{i}": 8 if i < 12 else 6 for i in range(22)}))
    assert many.startswith("w8 but for l12 at 6 bits, ")
    assert many.endswith(" and 2 more")
