"""Write calibration/SEARCH.md from what `tools/search_results.py` measured, calibration/results/search-*.json.

Needs the extra `train`, for the recipes that masters were trained by.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from bitswitch_deploy.catalogue import bundled_master
from bitswitch_deploy.master import read_master
from tools.results_table import VARIANT_MARK, Run, ablation_command, read_run, train_command

LOSS, DIVERGENCE = "loss", "divergence"  # what all assignments were measured by
RESULTS = Path(__file__).resolve().parent.parent / "calibration"
_HEAD = """# Results of the search

Written by `tools/search_page.py` from the files in `results/`; what they show is discussed in
[the search's own page](../bitswitch_deploy/search/README.md#what-was-measured). What `DATA` holds says
[the README](../README.md#train-and-capture)."""


def main() -> None:
    """Write the page anew."""
    (RESULTS / "SEARCH.md").write_text(page(RESULTS / "results"), encoding="utf-8")


def page(folder: Path) -> str:
    """The Markdown page of the results in a folder, with the training logs there that tell where masters come from."""
    parts = [_HEAD]
    found = [read_run(path) for path in sorted(folder.glob("*.log.jsonl"))]
    runs = {run.master_sha256: run for run in found if run is not None}
    for path in sorted(folder.glob("search-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        render = _PAGES[result["experiment"]]
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        made = [f"`{result['command']}` ({versions})", "", _origin(result, runs)]
        parts.append("\n".join([f"## {path.stem.removeprefix('search-')}", "", *made, "", *render(result)]))
    return "\n\n".join(parts) + "\n"


def _origin(result: dict[str, Any], runs: dict[str | None, Run]) -> str:
    """Where the master of a result comes from: by its hash, as its file may have had any name."""
    sha256, words = result["master_sha256"], shlex.split(result["command"])
    name = f"`{words[words.index('--master') + 1]}`" if "--master" in words else "The master"
    named = f"{name} (sha256 {sha256[:12]})"
    if sha256 == read_master(bundled_master()).sha256:
        return f"{named} is the bundled one, `calibration/digits/digits.safetensors`."
    run = runs.get(sha256)
    if run is None:
        return f"{named} is in no log of `results/`, so the command that made it is not known."
    made = f"`{train_command(run)}` wrote"
    if run.variant:
        file = f"runs/{run.recipe}{VARIANT_MARK}{run.variant}-seed{run.start['seed']}.safetensors"
        made = f"`{ablation_command([run])}` wrote as `{file}`"
    if run.inherited:
        made += f", going on from [a state file of another run](RESULTS.md#{run.recipe})"
    return f"{named} is what {made} ([its log](results/{run.log}))."


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
    rows = {**result["optima"]}
    rows |= {f"{name}, best of the candidates measured": row for name, row in result["measured"].items()}
    averages = [f"avg <= {each['average']:g} (of {each['feasible']:,})" for each in result["measured"][LOSS]]
    for samples, suffix in (("the samples of the search", ""), ("held-out samples", ", held out")):
        lines += ["", "Assignments with the same or a lower average width that are better than what a method chooses,"]
        lines += [f"by loss on {samples} (in brackets: by divergence there):", ""]
        lines += _table(["method", *averages], [_standings(name, row, suffix) for name, row in rows.items()])
    return lines


def _standings(name: str, row: list[dict[str, Any]], suffix: str) -> list[str]:
    return [name, *(f"{each['better'][LOSS + suffix]} ({each['better'][DIVERGENCE + suffix]})" for each in row)]


def _uniform_page(result: dict[str, Any]) -> list[str]:
    rows = []
    for run in result["runs"]:
        own = run["searched"]
        rows.append([f"{run['average']:g}", "searched", f"{own['top1']:.2f}", "", "", f"{own['loss']:.4f}", ""])
        for name, each in run["uniform"].items():
            value, low, high = each["searched_more"]
            less = [-bound for bound in each["searched_loss"]]
            points, nats = (
                f"{value:+.2f} ({low:+.2f} .. {high:+.2f})",
                f"{less[0]:+.4f} ({less[2]:+.4f} .. {less[1]:+.4f})",
            )
            rows.append(["", name, f"{each['top1']:.2f}", points, f"{each['p']:.2g}", f"{each['loss']:.4f}", nats])
        if not run["random"]:
            continue
        cells: list[str] = []
        for key, form in (("top1", ".2f"), ("loss", ".4f")):
            values = [each[key] for each in run["random"]]
            worse = sum(value < own[key] if key == "top1" else value > own[key] for value in values)
            cells += [f"{min(values):{form}} .. {max(values):{form}}", f"{worse} of them worse", ""]
        rows.append(["", f"{len(run['random'])} random", *cells[:-1]])
    n = result["runs"][0]["n_test"]
    statistics = "fitted to each assignment" if result["reestimate"] else "those of the master"
    criterion = result.get("criterion", "cross_entropy").replace("_", " ")
    lines = [f"Top-1 in % and {criterion} in nats on {n:,} test samples, BatchNorm statistics {statistics}; the search"]
    lines += [
        f"went by {criterion} on {result['samples']:,} other samples. Differences are paired, with 95 % intervals,"
    ]
    lines += ["those of top-1 in points with exact McNemar p.", ""]
    head = [f"average of a {result['per']}", "assignment", "top-1", "searched has more", "p"]
    lines += _table([*head, criterion, "searched has less"], rows)
    return lines + _sums_of_costs(result["runs"])


def _sums_of_costs(runs: list[dict[str, Any]]) -> list[str]:
    """What costs of single layers add up to, in results that hold it; uniform widths are the same in each run."""
    if "on_search_samples" not in runs[0]:
        return []
    found = {name: each for name, each in runs[0]["on_search_samples"].items() if name != "mixed"}
    found |= {f"searched at {run['average']:g}": run["on_search_samples"]["mixed"] for run in runs}
    lines = [
        "",
        "On the samples of the search a layer alone costs something at each width; what these costs add up to:",
        "",
    ]
    rows = [[name, f"{each['sum_of_costs']:.4f}", f"{each['loss']:.4f}"] for name, each in found.items()]
    return lines + _table(["assignment", "sum of the costs", "measured"], rows)


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
