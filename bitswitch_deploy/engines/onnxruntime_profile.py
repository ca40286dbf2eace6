"""The time of every operator, as onnxruntime's own profiler writes it. No vendor import: this reads its file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitswitch_deploy.errors import InputFileError

_KERNEL = "_kernel_time"
_RUN = "model_run"
# Their time includes that of the nodes inside, which have events of their own.
_CONTROL_FLOW = ("If", "Loop", "Scan")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTime:
    """One node of the optimised graph in one run. start_us: since the profile began."""

    name: str
    operator: str
    start_us: float
    duration_us: float


def read_profile(path: Path) -> tuple[tuple[NodeTime, ...], ...]:
    """For each run in the file its nodes in the order in which they ran.

    Nodes inside of If, Loop and Scan are left out: the time of the node around them includes theirs.

    Raises:
        InputFileError: it is not what the profiler of onnxruntime writes.
    """
    try:
        events = json.loads(path.read_text(encoding="utf-8"))
        return tuple(_runs(events))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise InputFileError(
            where=str(path),
            got=f"not readable as a profile: {exc!r}",
            allowed="the JSON that onnxruntime's profiler writes",
            do="measure again; if it stays, report it with the release of onnxruntime",
        ) from exc


def _runs(events: list[dict[str, Any]]) -> list[tuple[NodeTime, ...]]:
    runs, nodes = [], []
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            nodes.append(
                NodeTime(
                    name=event["name"].removesuffix(_KERNEL),
                    operator=event["args"]["op_name"],
                    start_us=float(event["ts"]),
                    duration_us=float(event["dur"]),
                )
            )
        elif event.get("cat") == "Session" and event["name"] == _RUN:
            runs.append(_outer(nodes))  # the event of a run stands behind those of its nodes
            nodes = []
    return runs


def _outer(nodes: list[NodeTime]) -> tuple[NodeTime, ...]:
    ends = [node.start_us + node.duration_us for node in nodes]
    around = [index for index, node in enumerate(nodes) if node.operator in _CONTROL_FLOW]

    def is_inside(index: int, other: int) -> bool:
        # an inner node is written before the node around it
        return index < other and nodes[other].start_us <= nodes[index].start_us and ends[index] <= ends[other]

    kept = [node for index, node in enumerate(nodes) if not any(is_inside(index, other) for other in around)]
    return tuple(sorted(kept, key=lambda node: node.start_us))
