from __future__ import annotations

import json

import numpy as np

from bitswitch_deploy.engines.onnxruntime_profile import NodeTime
from bitswitch_deploy.profiling.layers import ProfiledRuns
from bitswitch_deploy.profiling.trace import chrome_trace


def run(start: float, *durations: float) -> tuple[NodeTime, ...]:
    nodes = []
    for index, duration in enumerate(durations):
        nodes.append(NodeTime(name=f"n{index}", operator="Conv", start_us=start, duration_us=duration))
        start += duration
    return tuple(nodes)


def test_each_candidate_is_a_process_with_its_median_run_from_zero_on() -> None:
    profiles = {
        "w8": ProfiledRuns(runs=(run(100, 5, 5), run(200, 1, 2), run(300, 50, 50)), plain_ms=np.ones(1)),
        "float32": ProfiledRuns(runs=(run(400, 7),), plain_ms=np.ones(1)),
    }
    document = json.loads(chrome_trace(profiles, {"w8": {"n1": "body.conv1"}}))
    names = {each["pid"]: each["args"]["name"] for each in document["traceEvents"] if each["ph"] == "M"}
    assert names == {0: "w8", 1: "float32"}
    slices = [each for each in document["traceEvents"] if each["ph"] == "X"]
    assert [(each["pid"], each["name"], each["ts"], each["dur"]) for each in slices] == [
        (0, "n0", 0.0, 5),
        (0, "body.conv1", 5.0, 5),
        (1, "n0", 0.0, 7),
    ]
    assert slices[1]["args"] == {"node": "n1", "operator": "Conv", "layer": "body.conv1"}


def test_nothing_profiled_is_an_empty_trace() -> None:
    profiles = {"w8": ProfiledRuns(runs=(), plain_ms=np.ones(1))}
    assert [each["ph"] for each in json.loads(chrome_trace(profiles, {}))["traceEvents"]] == ["M"]
