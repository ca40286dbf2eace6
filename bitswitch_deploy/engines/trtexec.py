"""Time TensorRT engines with trtexec, where TensorRT has no Python package.

Unproven on hardware: flags and JSON as in samples/common of TensorRT 8.5 to 11.1, run by the tests against a program
that answers like it. TensorRT 11 turned the defaults of spin wait, CUDA graph and data transfers around, so whoever
compares numbers names the flags: they come from the target's profile (`measure.trtexec`).
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitswitch_deploy.engines.input_signature import InputSignature
from bitswitch_deploy.errors import GraphError, InputFileError, UnavailableError

_PLACES = ("/usr/src/tensorrt/bin/trtexec",)
_BANNER = re.compile(r"\[TensorRT v(\d+)\]")
_CAPTURED = "captured CUDA graph"
# These are set for each turn; the percentiles are computed from the exported times.
_SET_HERE = ("--warmUp", "--duration", "--percentile", "--iterations")
_WARMUP_MS = 500
_TIMEOUT_S = 600
_LOG_TAIL = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class TrtexecLayer:
    """One layer of an engine in a run with the profiler on. name: of TensorRT, often several ONNX names in one."""

    name: str
    median_ms: float
    average_ms: float


def find_trtexec() -> str:
    """Where trtexec is.

    Raises:
        UnavailableError: it is not here.
    """
    for place in (which("trtexec"), *_PLACES):
        if place is not None and Path(place).is_file():
            return place
    raise UnavailableError(
        where="--engine trtexec",
        got="no trtexec on this machine",
        allowed=f"trtexec in PATH or at {_PLACES[0]}",
        do="run it on the board; on JetPack: sudo apt install tensorrt",
    )


def parse_version(output: str) -> str | None:
    """`[TensorRT v100300]` in the banner is 10.3.0, `[TensorRT v8502]` 8.5.2; None where there is no banner."""
    match = _BANNER.search(output)
    if match is None:
        return None
    number = int(match[1])
    unit = 1000 if number < 10_000 else 10_000  # the minor release took one digit before TensorRT 10
    return f"{number // unit}.{number % unit // 100}.{number % 100}"


def timing_flags(flags: Sequence[str]) -> tuple[str, ...]:
    """The flags of a target's profile without those that are set for each turn."""
    return tuple(flag for flag in flags if flag.partition("=")[0] not in _SET_HERE)


def parse_times(text: str, *, where: str) -> NDArray[np.float64]:
    """`latencyMs` of every inference in what `--exportTimes` wrote, [n]; warm-up is not in there.

    Raises:
        InputFileError: it is something else, or holds no inference.
    """
    entries = _list(text, where=where, what="exportTimes")
    try:
        times = np.asarray([float(entry["latencyMs"]) for entry in entries])
    except (KeyError, TypeError, ValueError) as exc:
        raise _refusal(where, f"an entry without latencyMs: {exc!r}", "exportTimes") from exc
    if not len(times) or not np.isfinite(times).all():
        raise _refusal(where, "no inference, or a time that is not finite", "exportTimes")
    return times


def parse_layers(text: str, *, where: str) -> tuple[TrtexecLayer, ...]:
    """Every layer in what `--exportProfile` wrote; its first entry is the number of runs.

    Raises:
        InputFileError: it is something else.
    """
    entries = [entry for entry in _list(text, where=where, what="exportProfile") if "name" in entry]
    try:
        return tuple(
            TrtexecLayer(
                name=str(entry["name"]),
                # written since TensorRT 8.2
                median_ms=float(entry.get("medianMs", entry["averageMs"])),
                average_ms=float(entry["averageMs"]),
            )
            for entry in entries
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise _refusal(where, f"a layer without its times: {exc!r}", "exportProfile") from exc


class TrtexecSession:
    """One engine file. Each call starts trtexec anew, which loads the engine and warms up.

    Args:
        program: see `find_trtexec`. engine: the file. inputs: of the graph that it was built from.
        flags: see `timing_flags`.
    """

    def __init__(self, program: str, engine: Path, inputs: tuple[InputSignature, ...], *, flags: Sequence[str]) -> None:
        self.inputs = inputs
        self._program, self._engine, self._flags = program, engine, tuple(flags)
        self.is_graph_captured: bool | None = None

    def time_runs(self, feeds: Mapping[str, np.ndarray], runs: int) -> NDArray[np.float64]:
        """Latency in ms of `runs` inferences or more, trtexec runs at least ten; only shapes of the feeds count.

        Raises:
            UnavailableError: trtexec hangs or cannot be started.
            GraphError: it fails, with the end of its log.
            InputFileError: its JSON is not what is documented.
        """
        words = (f"--iterations={runs}", "--duration=0", f"--warmUp={_WARMUP_MS}")
        return parse_times(self._export("exportTimes", feeds, words), where=str(self._engine))

    def layer_times(self, feeds: Mapping[str, np.ndarray], runs: int) -> tuple[TrtexecLayer, ...]:
        """The time of each layer, in a run of its own because the profiler slows it down.

        Raises:
            BitswitchError: as `time_runs`.
        """
        words = (f"--iterations={runs}", "--duration=0", f"--warmUp={_WARMUP_MS}", "--dumpProfile")
        return parse_layers(self._export("exportProfile", feeds, words), where=str(self._engine))

    def _export(self, what: str, feeds: Mapping[str, np.ndarray], words: Sequence[str]) -> str:
        with tempfile.TemporaryDirectory(prefix="bitswitch-") as folder:
            file = Path(folder, f"{what}.json")
            shapes = ",".join(f"{name}:{'x'.join(map(str, array.shape))}" for name, array in feeds.items())
            is_open = any(not isinstance(size, int) for value in self.inputs for size in value.shape)
            given = (f"--shapes={shapes}",) if is_open else ()
            command = (self._program, f"--loadEngine={self._engine}", *given, *self._flags, *words)
            log = self._run((*command, f"--{what}={file}"))
            if "--useCudaGraph" in self._flags:
                self.is_graph_captured = _CAPTURED in log
            try:
                return file.read_text(encoding="utf-8")
            except (OSError, ValueError) as exc:
                raise _refusal(str(self._engine), f"nothing readable: {exc}", what) from exc

    def _run(self, command: Sequence[str]) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as exc:
            got = f"did not end within {_TIMEOUT_S} s" if isinstance(exc, subprocess.TimeoutExpired) else str(exc)
            do = f"run it by hand: {' '.join(command)}"
            raise UnavailableError(where=self._program, got=got, allowed="a trtexec that runs", do=do) from exc
        log = done.stdout + done.stderr
        if done.returncode != 0:
            raise GraphError(
                where=str(self._engine),
                got=f"trtexec ended with {done.returncode}: ...{log[-_LOG_TAIL:].strip()}",
                allowed="an engine of this GPU and release",
                do="build it on this machine: bitswitch-deploy build PACKAGE --force",
            )
        return log


def _list(text: str, *, where: str, what: str) -> list[dict[str, Any]]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise _refusal(where, f"not JSON: {exc}", what) from exc
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _refusal(where, "not a list of objects", what)
    return entries


def _refusal(where: str, got: str, what: str) -> InputFileError:
    allowed = f"the JSON that trtexec --{what} writes"
    return InputFileError(where=where, got=got, allowed=allowed, do="report it with the version of TensorRT")
