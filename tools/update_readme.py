"""Put into the README what commands printed and measured, so that no figure there is typed by hand.

python tools/update_readme.py            # runs the demo, and takes latencies from tools/bench/latency*.json
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from tools.bench.latency_chart import alt_text, chart, ranges, table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
_MARKS = ("demo output", "latency", "latency elsewhere")
DEMO, LATENCY, ELSEWHERE = (f"<!-- {what}: tools/update_readme.py -->" for what in _MARKS)
MEASURED, CHART = "tools/bench/latency.json", "tools/bench/latency.svg"
MEASURED_ELSEWHERE = "tools/bench/latency-xeon.json"
PACKAGES = ("onnxruntime", "onnx", "numpy")


def main() -> None:
    text = README.read_text(encoding="utf-8")
    text = replaced(text, DEMO, demo())
    latency, drawn = latencies(json.loads((ROOT / MEASURED).read_text(encoding="utf-8")))
    text = replaced(text, LATENCY, latency)
    text = replaced(text, ELSEWHERE, elsewhere(json.loads((ROOT / MEASURED_ELSEWHERE).read_text(encoding="utf-8"))))
    README.write_text(text, encoding="utf-8")
    (ROOT / CHART).write_text(drawn, encoding="utf-8")


def replaced(text: str, mark: str, block: str) -> str:
    """`text` with `block` between the mark and its end."""
    start = text.index(mark)
    return f"{text[:start]}{mark}\n\n{block}{text[text.index('<!-- end -->', start) :]}"


def demo() -> str:
    """What the demo prints, without what depends on the machine that ran it."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "bitswitch_deploy", "export", "--target", "jetson"]
        output = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout
    output = re.sub(r" in [\d.]+ s\n", "\n", output, count=1).replace(f"{folder}/", "")
    output = re.sub(r"(master +)\S*/calibration/", r"\1calibration/", output)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return "".join(f"    {line}".rstrip() + "\n" for line in output.splitlines()) + f"\n({versions})\n"


def latencies(measured: dict[str, Any]) -> tuple[str, str]:
    """The README's text, and the chart of the first batch and number of threads."""
    rows, first = measured["rows"], measured["rows"][0]
    shown = {"batch": first["batch"], "threads": first["threads"]}
    reasons = [f"ModelOpt, {each['network']}: {each['reason']}.\n" for each in measured["absent"]]
    note = f"{turns(rows)}; {spreads(rows)}: read smaller differences with care."
    block = [f"![{alt_text(rows, **shown)}]({CHART})\n", table(rows, measured["absent"]) + "\n", *reasons]
    return "\n".join([*block, f"{note} {versions_text(measured)}.\n"]), chart(rows, **shown)


def elsewhere(measured: dict[str, Any]) -> str:
    """The same of another machine, in fewer words."""
    rows = measured["rows"]
    return (
        f"{ranges(rows)}\n\nOver all batches and threads. {turns(rows)}; {spreads(rows)}. {versions_text(measured)}.\n"
    )


def versions_text(measured: dict[str, Any]) -> str:
    """What made the figures."""
    return ", ".join(f"{name} {version}" for name, version in measured["versions"].items())


def turns(rows: list[dict[str, Any]]) -> str:
    """How many turns the medians are of, network by network where they differ."""
    of_network = {row["network"]: row["turns"] for row in rows}
    groups = {count: [name for name, each in of_network.items() if each == count] for count in of_network.values()}
    if len(groups) == 1:
        return f"Medians of {next(iter(groups))} interleaved turns"
    each = [f"{count} ({', '.join(names)})" for count, names in sorted(groups.items(), reverse=True)]
    return f"Medians of interleaved turns: {', '.join(each)}"


def spreads(rows: list[dict[str, Any]]) -> str:
    """How far the quartiles of a row lie apart at most, for each number of threads: several are disturbed more."""
    each: list[str] = []
    for threads in sorted({row["threads"] for row in rows}):
        worst = max(row["spread"] for row in rows if row["threads"] == threads)
        of_what = "" if each else " of the median apart"
        each.append(f"{worst:.0%}{of_what} with {'one thread' if threads == 1 else f'{threads} threads'}")
    return f"their quartiles lie up to {', '.join(each)}"


if __name__ == "__main__":
    main()
