"""Time TensorRT engines with trtexec, where TensorRT has no Python package.

Unproven on hardware: flags and JSON as in samples/common of TensorRT 8.2 to 11.1, run by the tests against a program
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
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bitswitch_deploy.engines.input_signature import InputSignature
from bitswitch_deploy.errors import GraphError, InputFileError, UnavailableError

PLACES = ("/usr/src/tensorrt/bin/trtexec",)
_BANNER = re.compile(r"\[TensorRT v(\d+(?:\.\d+)*)\]")
_CAPTURED = "captured CUDA graph"
# These are set for each turn; the percentiles are computed from the exported times.
_SET_HERE = ("--warmUp", "--duration", "--percentile", "--iterations")
_WARMUP_MS = 500
TIMEOUT_S = 600
_LOG_TAIL = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class TrtexecLayer:
    """One layer of an engine in a run with the profiler on. name: of TensorRT, often several ONNX names in one."""

    name: str
    median_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A call of trtexec that ended. exported: the text of the file that it was to write, None where there is none."""

    code: int
    log: str
    exported: str | None


class Trtexec(Protocol):
    """A trtexec on some machine. program: its path there, for messages."""

    program: str

    def place(self, engine: Path) -> str:
        """The path there of an engine file."""

    def run(self, words: Sequence[str], *, export: str | None = None) -> Ran:
        """Run it to its end; with `export`, a flag such as exportTimes that takes a file, it has that as well.

        Raises:
            UnavailableError: it hangs, or cannot be started.
        """


class LocalTrtexec:
    """The one on this machine, in PATH or where TensorRT installs it.

    Raises:
        UnavailableError: it is not here.
    """

    def __init__(self) -> None:
        found = [place for place in (which("trtexec"), *PLACES) if place is not None and Path(place).is_file()]
        if not found:
            raise no_trtexec("on this machine")
        self.program = found[0]

    def place(self, engine: Path) -> str:
        """The path of the file."""
        return str(engine)

    def run(self, words: Sequence[str], *, export: str | None = None) -> Ran:
        """Run it to its end.

        Raises:
            UnavailableError: it hangs, or cannot be started.
        """
        with tempfile.TemporaryDirectory(prefix="bitswitch-") as folder:
            file = Path(folder, "exported.json")
            command = (self.program, *words, *((f"--{export}={file}",) if export is not None else ()))
            try:
                done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
            except (OSError, subprocess.TimeoutExpired) as exc:
                hangs = isinstance(exc, subprocess.TimeoutExpired)
                raise not_running(self.program, None if hangs else str(exc), command) from exc
            text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None
            return Ran(code=done.returncode, log=done.stdout + done.stderr, exported=text)


def no_trtexec(place: str) -> UnavailableError:
    """It is not there; place: in words, `on this machine`."""
    return UnavailableError(
        where="--engine trtexec",
        got=f"no trtexec {place}",
        allowed=f"trtexec in PATH or at {PLACES[0]}",
        do="run it on the board; on JetPack: sudo apt install tensorrt",
    )


def not_running(program: str, reason: str | None, command: Sequence[str]) -> UnavailableError:
    """It cannot be started, for a reason; None: it hangs."""
    got = reason or f"did not end within {TIMEOUT_S} s"
    do = f"run it by hand: {' '.join(command)}"
    return UnavailableError(where=program, got=got, allowed="a trtexec that runs", do=do)


def parse_version(output: str) -> str | None:
    """The release in the banner, None where there is none.

    `[TensorRT v100300]` is 10.3.0, `[TensorRT v8502]` 8.5.2, `[TensorRT v11.1.0.106]` 11.1.0.
    """
    match = _BANNER.search(output)
    if match is None:
        return None
    if "." in match[1]:
        return ".".join(match[1].split(".")[:3])
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
            )
            for entry in entries
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise _refusal(where, f"a layer without its times: {exc!r}", "exportProfile") from exc


class TrtexecSession:
    """One engine file. Each call starts trtexec anew, which loads the engine and warms up.

    Args:
        trtexec: where it runs. engine: the file here. inputs: of the graph that it was built from.
        flags: see `timing_flags`. captures: whether it makes a CUDA graph without being told, as TensorRT 11 does.
    """

    def __init__(
        self,
        trtexec: Trtexec,
        engine: Path,
        inputs: tuple[InputSignature, ...],
        *,
        flags: Sequence[str],
        captures: bool = False,
    ) -> None:
        self.inputs = inputs
        self._trtexec, self._engine, self._flags = trtexec, engine, tuple(flags)
        self._captures = captures or "--useCudaGraph" in flags
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

    def layer_information(self, feeds: Mapping[str, np.ndarray]) -> str:
        """What the engine inspector says about its layers, as JSON; empty where this trtexec does not write it.

        Raises:
            UnavailableError: trtexec hangs or cannot be started.
        """
        words = ("--iterations=1", "--duration=0", "--warmUp=0")
        return self._run("exportLayerInfo", feeds, words).exported or ""

    def _export(self, what: str, feeds: Mapping[str, np.ndarray], words: Sequence[str]) -> str:
        ran = self._run(what, feeds, words)
        if ran.code != 0:
            raise GraphError(
                where=str(self._engine),
                got=f"trtexec ended with {ran.code}: ...{ran.log[-_LOG_TAIL:].strip()}",
                allowed="an engine of this GPU and release",
                do="build it there again: bitswitch-deploy build PACKAGE --force",
            )
        if self._captures:
            self.is_graph_captured = _CAPTURED in ran.log
        if ran.exported is None:
            raise _refusal(str(self._engine), "nothing", what)
        return ran.exported

    def _run(self, what: str, feeds: Mapping[str, np.ndarray], words: Sequence[str]) -> Ran:
        shapes = ",".join(f"{name}:{'x'.join(map(str, array.shape))}" for name, array in feeds.items())
        is_open = any(not isinstance(size, int) for value in self.inputs for size in value.shape)
        given = (f"--shapes={shapes}",) if is_open else ()
        engine = f"--loadEngine={self._trtexec.place(self._engine)}"
        return self._trtexec.run((engine, *given, *self._flags, *words), export=what)


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
