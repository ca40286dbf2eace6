"""A timeline of one run of each candidate, as Chrome trace events: for chrome://tracing and ui.perfetto.dev.

Each candidate is a process of its own that begins at 0, so that their runs stand below each other. The run shown is
the one whose duration is the median of all profiled ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bitswitch_deploy.engines.onnxruntime_profile import NodeTime
from bitswitch_deploy.profiling.layers import ProfiledRuns


def chrome_trace(profiles: Mapping[str, ProfiledRuns], owners: Mapping[str, Mapping[str, str]]) -> str:
    """The trace as JSON text.

    Args:
        profiles: by label. owners: by label, the layer of the master by node.
    """
    events: list[dict[str, Any]] = []
    for process, (label, profile) in enumerate(profiles.items()):
        events.append({"name": "process_name", "ph": "M", "pid": process, "tid": 0, "args": {"name": label}})
        run = _median_run(profile.runs)
        begin = run[0].start_us if run else 0.0
        for node in run:
            layer = owners.get(label, {}).get(node.name)
            events.append(
                {
                    "name": layer or node.name,
                    "cat": node.operator,
                    "ph": "X",
                    "pid": process,
                    "tid": 0,
                    "ts": node.start_us - begin,
                    "dur": node.duration_us,
                    "args": {"node": node.name, "operator": node.operator, "layer": layer},
                }
            )
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, indent=1) + "\n"


def _median_run(runs: Sequence[Sequence[NodeTime]]) -> Sequence[NodeTime]:
    ordered = sorted(runs, key=lambda run: run[-1].start_us + run[-1].duration_us - run[0].start_us if run else 0.0)
    return ordered[len(ordered) // 2] if ordered else ()
