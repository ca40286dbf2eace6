"""The page of what the search reached says where each master comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bitswitch_deploy.catalogue import bundled_master
from bitswitch_deploy.master import read_master
from tests.tools.test_results_table import end, log
from tools.search_page import RESULTS, page


def result(folder: Path, sha256: str, master: str = "--master some.safetensors ") -> None:
    row = {name: {"top1": 90.0} for name in ("trained", "fitted")}
    content: dict[str, Any] = {"experiment": "statistics", "master_sha256": sha256, "n_test": 9, "n_fitted_on": 3}
    content |= {"mixtures": [{**row, "gain": [0.0, -1.0, 1.0]}], "versions": {"numpy": "2.4.6"}}
    content |= {"command": f"python tools/search_results.py statistics {master}-o x.json"}
    (folder / "search-x.json").write_text(json.dumps(content), encoding="utf-8")


def origin(folder: Path) -> str:
    (line,) = (line for line in page(folder).splitlines() if "sha256" in line)
    return line


def test_a_master_of_a_plain_run(tmp_path: Path) -> None:
    result(tmp_path, "ab" * 32)
    assert origin(tmp_path) == (
        "`some.safetensors` (sha256 abababababab) is in no log of `results/`, so the command that made it is not known."
    )
    log(tmp_path, "other", {**end(98.0, 98.0, 97.0), "master_sha256": "cd" * 32})
    log(tmp_path, "plain", {**end(98.0, 98.0, 97.0), "master_sha256": "ab" * 32}, seed=3)
    assert origin(tmp_path) == (
        "`some.safetensors` (sha256 abababababab) is what `python tools/train_master.py --recipe digits --seed 3"
        " --threads 2 --fast -o digits-seed3.safetensors` wrote ([its log](results/plain.log.jsonl))."
    )


def test_a_master_of_an_ablation(tmp_path: Path) -> None:
    result(tmp_path, "ab" * 32)
    for variant, sha256 in (("a", "ab"), ("b", "cd")):
        line = {**end(98.0, 98.0, 97.0), "master_sha256": sha256 * 32}
        log(tmp_path, variant, line, recipe=f"digits+{variant}", step=1200)
    assert origin(tmp_path) == (
        "`some.safetensors` (sha256 abababababab) is what `python tools/ablation.py --recipe digits --variants a"
        " --seeds 1 --threads 2 --fast -o runs` wrote as `runs/digits+a-seed1.safetensors`, going on from"
        " [a state file of another run](RESULTS.md#digits) ([its log](results/a.log.jsonl))."
    )


def test_the_bundled_master(tmp_path: Path) -> None:
    sha256 = read_master(bundled_master()).sha256
    result(tmp_path, sha256, master="")
    bundled = f"(sha256 {sha256[:12]}) is the bundled one, `calibration/digits/digits.safetensors`."
    assert origin(tmp_path) == f"The master {bundled}"


def test_the_page_is_that_of_the_files() -> None:
    assert (RESULTS / "SEARCH.md").read_text(encoding="utf-8") == page(RESULTS / "results")
