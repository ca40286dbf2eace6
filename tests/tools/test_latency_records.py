"""What was measured and recorded is what the code makes today: the operators of every graph are as they were."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest

from bitswitch_deploy.catalogue import load_target
from bitswitch_deploy.engines.optimized_operators import optimized_operators
from tools.bench.latency import FORMS, ours
from tools.bench.untrained import NETWORKS, untrained_network
from tools.update_readme import MEASURED, MEASURED_ELSEWHERE, ROOT


@pytest.mark.parametrize("network", list(NETWORKS))
def test_latencies_are_of_graphs_that_the_code_makes(network: str, tmp_path: Path) -> None:
    made: dict[str, Mapping[str, int]] = {}
    for file in (MEASURED, MEASURED_ELSEWHERE):
        recorded = json.loads((ROOT / file).read_text(encoding="utf-8"))
        if recorded["versions"]["onnxruntime"] != metadata.version("onnxruntime"):
            continue  # another release makes other graphs of the same files
        made = made or _operators(network, tmp_path)
        rows = [row for row in recorded["rows"] if row["network"] == network and row["candidate"].startswith("w")]
        assert {row["candidate"] for row in rows} <= made.keys()
        stale = {row["candidate"] for row in rows if row["operators"] != made[row["candidate"]]}
        assert not stale, f"{file}: measure {network} again, or take out what is of other graphs"


def _operators(network: str, folder: Path) -> dict[str, Mapping[str, int]]:
    model, images = untrained_network(network)
    paths = ours(model, images, load_target("x86-cpu").target, folder, FORMS)
    return {name: dict(optimized_operators(path, session_options={})) for name, path in paths.items()}
