"""What was measured and recorded is what the code makes today: the operators of every graph are as they were."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from bitswitch_deploy.catalogue import load_target
from bitswitch_deploy.engines.optimized_operators import optimized_operators
from tools.bench.latency import FORMS, WIDTHS, ours
from tools.bench.untrained import NETWORKS, untrained_network
from tools.update_readme import MEASURED, MEASURED_ELSEWHERE, ROOT


def recorded(file: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / file).read_text(encoding="utf-8")))


def operators(file: str) -> dict[tuple[str, str], dict[str, int]]:
    return {(row["network"], row["candidate"]): row["operators"] for row in recorded(file)["rows"]}


def test_both_machines_ran_the_same_graphs() -> None:
    here, elsewhere = operators(MEASURED), operators(MEASURED_ELSEWHERE)
    assert elsewhere.keys() <= here.keys()
    assert {name for name in elsewhere if elsewhere[name] != here[name]} == set()


@pytest.mark.skipif(
    recorded(MEASURED)["versions"]["onnxruntime"] != metadata.version("onnxruntime"),
    reason="another release of onnxruntime makes other graphs",
)
@pytest.mark.parametrize("network", list(NETWORKS)[:4])
def test_latencies_are_of_graphs_that_the_code_makes(network: str, tmp_path: Path) -> None:
    """Every one of the smallest network, of the others where most was changed: the narrowest with all options."""
    is_small = network == "resnet20"
    widths, forms = (WIDTHS, FORMS) if is_small else (WIDTHS[-1:], {" fast": FORMS[" fast"]})
    model, images = untrained_network(network)
    made = ours(model, images, load_target("x86-cpu").target, tmp_path, forms, widths)
    assert len(made) == (8 if is_small else 1)
    known = operators(MEASURED)
    for name, path in made.items():
        assert dict(optimized_operators(path, session_options={})) == known[network, name], "measure it again"
