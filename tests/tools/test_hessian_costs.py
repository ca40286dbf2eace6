"""What the tool writes is what `search --costs` reads, at every width that is searched."""

from __future__ import annotations

import json
from pathlib import Path

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

from tools.hessian_costs import main


def costs(output: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--samples", "130", "--vectors", "2", "-o", str(output), *words])


def test_costs_of_widths_that_were_not_trained(tmp_path: Path) -> None:
    every = (8, 7, 6, 5, 4, 3, 2)
    done = costs(tmp_path / "all.json", "--bits", "2,3,4,5,6,7,8")
    assert done.exit_code == 0, done.output
    assert costs(tmp_path / "trained.json").exit_code == 0
    master = read_master(bundled_master())
    names = [layer.name for layer in master.spec.layers if not layer.pinned]
    found, trained = (read_costs(tmp_path / f"{name}.json", master_sha256=master.sha256) for name in ("all", "trained"))
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
