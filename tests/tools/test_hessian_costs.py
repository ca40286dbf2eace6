"""What the tool writes is what `search --costs` reads, at every width that is searched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bitswitch_deploy.catalogue import bundled_master
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.master import read_master
from bitswitch_deploy.pipeline.progress import LINES_WANTED
from bitswitch_deploy.pipeline.searching.problem import widths_to_choose
from bitswitch_deploy.search.costs import read_costs
from tests.graph.masters import build, layer

pytest.importorskip("torch")

from bitswitch_deploy.training.hessian import Trace
from bitswitch_deploy.training.networks import build_network
from tools.hessian_costs import costs_of, main, network_of


def costs(output: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--samples", "130", "--vectors", "2", "-o", str(output), *words])


def test_costs_of_widths_that_were_not_trained(tmp_path: Path) -> None:
    every = (8, 7, 6, 5, 4, 3, 2)
    done = costs(tmp_path / "all.json", "--bits", "2,3,4,5,6,7,8")
    assert done.exit_code == 0, done.output
    assert costs(tmp_path / "trained.json").exit_code == 0
    master = read_master(bundled_master())
    names = [layer.name for layer in master.spec.layers if not layer.pinned]
    found, trained = (
        read_costs(tmp_path / f"{name}.json", master_sha256=master.sha256, layers=names) for name in ("all", "trained")
    )
    for name in names:
        values = found.of((name,), every, where="")
        assert values == tuple(sorted(values))
        assert trained.of((name,), master.spec.widths, where="") == found.of((name,), master.spec.widths, where="")
    assert [cost.width for cost in trained.groups[0].costs] == list(master.spec.widths)
    assert list(json.loads((tmp_path / "all.traces.json").read_text())) == names


def test_it_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LINES_WANTED, "1")
    lines = costs(tmp_path / "costs.json").stderr.splitlines()
    # two vectors on two batches
    assert lines[0] == "progress 0/4 Hessian times vector, at most"
    assert lines[-1] == "progress 4/4 Hessian times vector, at most"


@pytest.mark.parametrize(("bits", "message"), [("9", "different widths in 2..8"), ("8,8", "different widths")])
def test_widths_that_are_none(tmp_path: Path, bits: str, message: str) -> None:
    done = costs(tmp_path / "costs.json", "--bits", bits)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "costs.json").exists()


def test_no_width_is_above_that_of_the_master() -> None:
    text = 'net (float[n, 2] x, float[2, 3] "a.weight") => (float[n, 3] y) { y = MatMul (x, "a.weight") }'
    master = build(text, [layer("a", "MatMul")], bits=6, widths=(6, 4))
    assert widths_to_choose(master, None) == (6, 4)
    assert widths_to_choose(master, (2, 6)) == (6, 2)
    with pytest.raises(UsageError, match="8 bits from a master of 6 bits"):
        widths_to_choose(master, (8, 6))


@pytest.mark.parametrize("words", [("--vectors", "1"), ("--samples", "0"), ("--seed", "-1")])
def test_counts_that_say_nothing(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = costs(tmp_path / "costs.json", *words)
    assert done.exit_code == 2
    assert f"Invalid value for '{words[0]}'" in done.stderr


def test_a_recipe_of_another_network(tmp_path: Path) -> None:
    done = costs(tmp_path / "costs.json", "--recipe", "cifar10-resnet20")
    assert done.exit_code == 2
    assert "--recipe: conv1.weight: shape (16, 3, 3, 3)\n  allowed: (16, 1, 3, 3), as in the master" in done.stderr


def test_a_cost_is_the_trace_per_weight_times_the_squared_error() -> None:
    text = 'net (float[n, 2] x, float[2, 2] "a.weight") => (float[n, 2] y) { y = MatMul (x, "a.weight") }'
    master = build(text, [layer("a", "MatMul")], widths=(8, 2))
    codes = np.asarray(master.tensors["a.weight"]).astype(int)
    scale = np.asarray(master.tensors[master.spec.layers[0].weight_scale]).astype(float)
    lost = codes - 64 * np.clip(np.floor(codes / 64 + 0.5), -2, 1)
    trace = Trace(trace=8.0, standard_error=2.0, n_vectors=9, n_weights=4)
    found = costs_of(master, master.spec.layers[0], trace, (8, 2)).costs
    expected = ((lost * scale) ** 2).sum()
    assert expected > 0
    assert [cost.width for cost in found] == [8, 2]
    assert [cost.value for cost in found] == pytest.approx([0.0, 2.0 * expected], rel=1e-5)
    assert [cost.standard_error for cost in found] == pytest.approx([0.0, 0.5 * expected], rel=1e-5)


def test_the_network_has_the_batchnorm_of_the_highest_width() -> None:
    master = read_master(bundled_master())
    model = network_of(master, build_network("digits-resnet"))
    for name in master.spec.switchable:
        stored = master.tensors[name]
        assert not np.array_equal(stored[0], stored[-1])
        found = dict(model.named_parameters()) | dict(model.named_buffers())
        np.testing.assert_array_equal(found[name].detach().numpy(), stored[0])
