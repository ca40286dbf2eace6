"""Write calibration/SEARCH.md from what `tools/search_results.py` measured, calibration/results/search-*.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

LOSS, DIVERGENCE = "loss", "divergence"  # what all assignments were measured by
RESULTS = Path(__file__).resolve().parent.parent / "calibration"
_HEAD = """# Results of the search

Written by `tools/search_page.py` from the files in `results/`; what they show is discussed in
[the search's own page](../bitswitch_deploy/search/README.md#what-was-measured)."""


def main() -> None:
    """Write the page anew."""
    parts = [_HEAD]
    for path in sorted((RESULTS / "results").glob("search-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        render = _PAGES[result["experiment"]]
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        made = f"`{result['command']}` ({versions}; master sha256 {result['master_sha256'][:12]})"
        parts.append("\n".join([f"## {path.stem.removeprefix('search-')}", "", made, "", *render(result)]))
    (RESULTS / "SEARCH.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _exhaustive_page(result: dict[str, Any]) -> list[str]:
    truths, sizes = list(result["range"]), result["n_samples"]
    lines = [
        f"All {result['n_assignments']:,} assignments measured. Rank correlation of what each method predicts from"
    ]
    lines += ["single layers, on the samples of the search, with:", ""]
    lines += _table(
        ["method", *(f"{name} ({sizes[name]:,} samples)" for name in truths)],
        [[name, *(f"{row[truth]:+.3f}" for truth in truths)] for name, row in result["correlations"].items()],
    )
    lines += ["", "Assignments with the same or a lower average width that are better than the optimum of a method, by"]
    lines += ["loss on the samples of the search (in brackets: by divergence there):", ""]
    rows = {**result["optima"], "loss, best of 8 candidates measured": result["measured"]}
    averages = [f"avg <= {each['average']:g} (of {each['feasible']:,})" for each in result["measured"]]
    cells = [[name, *(f"{e['better'][LOSS]} ({e['better'][DIVERGENCE]})" for e in row)] for name, row in rows.items()]
    return lines + _table(["method", *averages], cells)


def _uniform_page(result: dict[str, Any]) -> list[str]:
    rows = []
    for run in result["runs"]:
        top1 = [each["top1"] for each in run["random"]]
        below = sum(each["top1"] < run["searched"]["top1"] for each in run["random"])
        rows.append([f"{run['average']:g}", "searched", f"{run['searched']['top1']:.2f}", "", ""])
        for name, each in run["uniform"].items():
            value, low, high = each["searched_more"]
            rows.append(
                ["", name, f"{each['top1']:.2f}", f"{value:+.2f} ({low:+.2f} .. {high:+.2f})", f"{each['p']:.2g}"]
            )
        rows.append(["", f"{len(top1)} random, {below} of them lower", f"{min(top1):.2f} .. {max(top1):.2f}", "", ""])
    n = result["runs"][0]["n_test"]
    statistics = "fitted to each assignment" if result["reestimate"] else "those of the master"
    criterion = result.get("criterion", "cross_entropy").replace("_", " ")
    lines = [f"Top-1 in % on {n:,} test samples, BatchNorm statistics {statistics}; the search went by {criterion} on"]
    lines += [f"{result['samples']:,} other samples. Differences are paired, in points, with 95 % intervals and exact"]
    lines += ["McNemar p.", ""]
    return lines + _table([f"average of a {result['per']}", "assignment", "top-1", "searched has more", "p"], rows)


def _statistics_page(result: dict[str, Any]) -> list[str]:
    names = ("trained", "fitted")
    columns = {name: [row[name]["top1"] for row in result["mixtures"]] for name in names}
    gains = [row["gain"] for row in result["mixtures"]]
    sure = sum(low > 0 for _, low, _ in gains)
    lines = [f"Top-1 in % of {len(gains)} random mixtures on {result['n_test']:,} test samples; statistics fitted on"]
    lines += [
        f"{result['n_fitted_on']:,} others. The gain is paired; its 95 % interval lies above 0 in {sure} mixtures.",
        "",
    ]
    rows = [[name, f"{np.mean(each):.2f}", f"{min(each):.2f}", f"{max(each):.2f}"] for name, each in columns.items()]
    points = [value for value, _, _ in gains]
    rows.append(["gain in points", f"{np.mean(points):+.2f}", f"{min(points):+.2f}", f"{max(points):+.2f}"])
    return lines + _table(["BatchNorm statistics", "mean", "lowest", "highest"], rows)


_PAGES = {"exhaustive": _exhaustive_page, "against-uniform": _uniform_page, "statistics": _statistics_page}


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    main()
