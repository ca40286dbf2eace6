"""What the README shows of the latency benchmark is what its JSON holds."""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from tools.bench.latency_chart import alt_text, chart, ranges, table
from tools.update_readme import (
    CHART,
    ELSEWHERE,
    LATENCY,
    MEASURED,
    MEASURED_ELSEWHERE,
    README,
    ROOT,
    elsewhere,
    latencies,
    spreads,
    turns,
)

RATIOS = {"float32": 2.5, "quantize_static": 1.0, "modelopt": 6.25, "w8": 1.1, "w6": 1.2, "w4": 0.9, "w2": 0.95}
FAST = {f"w{bits} fast": 0.8 + bits / 100 for bits in (8, 6, 4, 2)}


def rows(network: str = "net", batch: int = 1, threads: int = 1, **changes: float) -> list[dict[str, Any]]:
    place = {"network": network, "batch": batch, "threads": threads, "spread": 0.02}
    ratios = {**RATIOS, **FAST, **changes}
    return [{**place, "candidate": name, "ratio_to_quantize_static": ratio} for name, ratio in ratios.items()]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")]


def bars(svg: str, kind: str) -> list[float]:
    found = [each for each in ElementTree.fromstring(svg).iter() if each.get("class") == kind]
    return [float(each.attrib["width"]) for each in found if each.tag.endswith("}rect")][
        1:
    ]  # the first is the legend's


def test_bars_are_as_long_as_the_ratios() -> None:
    drawn = chart(rows(), batch=1, threads=1)
    lengths = bars(drawn, "ours")
    assert [length / lengths[0] for length in lengths] == pytest.approx([1, 1.2 / 1.1, 0.9 / 1.1, 0.95 / 1.1], rel=1e-3)
    assert bars(drawn, "other")[0] / lengths[0] == pytest.approx(2.5 / 1.1, rel=1e-3)
    for text in ("1.10, 0.88", "1.20, 0.86", "0.90, 0.84", "0.95, 0.82", "2.50", "6.25 (cut off)"):
        assert text in texts(drawn)


def test_one_batch_and_number_of_threads_is_drawn() -> None:
    measured = [*rows(), *rows("other"), *rows(batch=32, w8=7.77), *rows(threads=2, w8=7.77)]
    drawn = texts(chart(measured, batch=1, threads=1))
    assert [text for text in drawn if text in ("net", "other")] == ["net", "other"]
    assert not [text for text in drawn if "7.77" in text]


def test_alternative_text() -> None:
    found = alt_text([*rows(), *rows("<other>", w2=3)], batch=1, threads=1)
    assert found.endswith("one thread: net 0.90 to 1.20 (float32 2.50), <other> 0.90 to 3.00 (float32 2.50)")
    root = ElementTree.fromstring(chart([*rows(), *rows("<other>", w2=3)], batch=1, threads=1))
    assert root.get("aria-label") == found


def test_table_without_modelopt() -> None:
    absent = [{"network": "net", "candidate": "modelopt", "reason": "not here"}]
    measured = [row for row in rows(threads=2) if row["candidate"] != "modelopt"]
    lines = table([*rows("other"), *measured], absent).splitlines()
    assert lines[2] == "| other | 1 | 1 | 1.10 | 1.20 | 0.90 | 0.95 | 0.82 to 0.88 | 2.50 | 6.25 |"
    assert lines[3] == "| net | 1 | 2 | 1.10 | 1.20 | 0.90 | 0.95 | 0.82 to 0.88 | 2.50 | - |"


def test_the_spread_is_told_for_each_number_of_threads() -> None:
    measured = [*rows(threads=2), *rows(), *rows("other"), *rows("other", threads=2)]
    assert spreads(rows()) == "their quartiles lie up to 2% of the median apart with one thread"
    measured[1]["spread"], measured[-1]["spread"], measured[len(rows())]["spread"] = 0.3, 0.5, 0.25
    assert spreads(measured) == "their quartiles lie up to 25% of the median apart with one thread, 50% with 2 threads"


def test_turns_are_told_for_each_network_where_they_differ() -> None:
    measured = [{"network": name, "turns": count} for name, count in (("a", 9), ("b", 41), ("c", 9))]
    assert turns(measured) == "Medians of interleaved turns: 41 (b), 9 (a, c)"
    assert turns(measured[::2]) == "Medians of 9 interleaved turns"


def test_another_machine_in_fewer_words() -> None:
    lines = ranges([*rows("other"), *rows(threads=2), *rows(w2=3)]).splitlines()
    assert lines[2:] == [
        "| other | 0.90 to 1.20 | 0.82 to 0.88 | 2.50 |",
        "| net | 0.90 to 3.00 | 0.82 to 0.88 | 2.50 |",
    ]
    measured = json.loads((ROOT / MEASURED_ELSEWHERE).read_text(encoding="utf-8"))
    assert f"{ELSEWHERE}\n\n{elsewhere(measured)}<!-- end -->" in README.read_text(encoding="utf-8")
    assert min(row["turns"] for row in measured["rows"]) >= 5


def test_the_readme_shows_what_was_measured() -> None:
    measured = json.loads((ROOT / MEASURED).read_text(encoding="utf-8"))
    text, drawn = latencies(measured)
    assert f"{LATENCY}\n\n{text}<!-- end -->" in README.read_text(encoding="utf-8")
    assert (ROOT / CHART).read_text(encoding="utf-8") == drawn
    assert min(row["turns"] for row in measured["rows"]) >= 5
    assert not re.search(r"/(home|work|tmp|root)/", text)
