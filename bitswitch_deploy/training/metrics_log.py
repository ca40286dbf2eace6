"""The log of a run: one JSON object a line, first what ran where, then one for each epoch.

    {"event": "start", "recipe": ..., "seed": ..., "step": 0, "versions": {...}, "host": ..., "threads": ..., ...}
    {"event": "prepared", "layers": {"conv1": "pinned: first layer", ...}}
    {"event": "epoch", "stage": "joint", "step": 390, "total": 2340, "losses": {"w8": ...}, "top1": {"w8": ...},
     "seconds": ..., "images_per_s": ...}
    {"event": "end", "float_top1": ..., "top1": {...}, "master_sha256": ...}
    {"event": "failed", "reason": ...}                              in place of "end", where training diverged

A run that was interrupted and went on has another "start" with the step that it went on from. A "start" at a step above
0 has `parent`: the stage that the step counts in, and the `runs` that the state file comes from, each with what its own
"start" said ({}: one that an older version did not record). A run that begins anew adds to an old log, with a "start"
at step 0 and no `parent`: the lines from the last one of these are the last run. Its `started_from` names the state or
master whose weights it began with, and the runs behind that. A "start" that nothing follows is a
command that failed before its first mini-batch. Float weights are named where they were read. Top-1 is in percent of
the test split, `seconds` is time spent training since the line before (measuring and saving left out). Where a run was
killed while it measured, the line that it did not write follows the "start" that went on.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitswitch_deploy import __version__
from bitswitch_deploy.errors import OutputError

VERSIONS = {
    "bitswitch-deploy": __version__,
    "python": platform.python_version(),
    "torch": str(torch.__version__),  # a state file holds plain values, and this is a class of torch
    "numpy": np.__version__,
}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, in order; one that a killed run left unfinished is passed over."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "event" in line:
            lines.append(line)
    return lines


def lacks_epoch(path: Path, stage: str, step: int) -> bool:
    """Whether the last run of a log was killed before it wrote its line of this step.

    The line of the state of another run, which that one began with, is in the log of the other.
    """
    lines = read_log(path) if path.is_file() else []
    if not lines or lines[-1]["event"] in ("end", "failed"):
        return False
    begun = [place for place, line in enumerate(lines) if line["event"] == "start" and "parent" not in line]
    run = lines[begun[-1] if begun else 0 :]
    inherited = (run[0].get("parent", {}).get("stage"), run[0].get("step"))
    return (stage, step) not in (inherited, *((line.get("stage"), line.get("step")) for line in run))


class MetricsLog:
    """Writes the log of a run to a .jsonl file, and the figures of its epochs to what else is kept beside it.

    <name>.csv: one line for each width and epoch. <name>.events: for TensorBoard, where that is installed.
    Each line is on disk when the call returns; one that a killed run left unfinished is ended before it. None as the
    path keeps no log.

    Raises:
        OutputError: a file cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None and path.with_suffix(".csv").exists():
            _append(path.with_suffix(".csv"), "")  # refused now, not after the first epoch
        self._board = None if path is None else _tensorboard(path.with_suffix(".events"))

    def write(self, event: str, **values: Any) -> None:
        """Append one line.

        Raises:
            OutputError: the file cannot be written.
        """
        if self._path is None:
            return
        _append(self._path, json.dumps({"event": event, **values}) + "\n")

    def write_epoch(self, stage: str, step: int, losses: dict[str, float], top1: dict[str, float], **more: Any) -> None:
        """Append an "epoch" line; `losses` and `top1` have the same names.

        Raises:
            OutputError: a file cannot be written.
        """
        if self._path is None:
            return
        self.write("epoch", stage=stage, step=step, losses=losses, top1=top1, **more)
        table = self._path.with_suffix(".csv")
        if not table.exists():
            _append(table, "stage,step,network,loss,top1\n")
        _append(table, "".join(f"{stage},{step},{name},{losses[name]:.6g},{top1[name]:.6g}\n" for name in losses))
        if self._board is not None:
            for name in losses:
                self._board.add_scalar(f"{stage}/loss/{name}", losses[name], step)
                self._board.add_scalar(f"{stage}/top1/{name}", top1[name], step)
            self._board.flush()


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                text = text if file.read(1) == b"\n" else f"\n{text}"
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        raise OutputError(
            where=str(path), got=f"cannot be written: {exc.strerror}", allowed="a writable file", do="free it"
        ) from exc


def _tensorboard(folder: Path) -> Any:
    """A writer, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def host_text() -> str:
    """Architecture and processor, as far as the system tells."""
    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    return f"{platform.machine()}, {processor or 'processor unknown'}"
