"""A program that answers like trtexec: banner, log, and the JSON of --exportTimes, --exportProfile and
--exportLayerInfo.

An engine is a JSON text {"ms": latency, "layers": {name: ms}, "info": {name: nodes}}, the last one for engines that
were built with details. Forms: samples/common of TensorRT 10.3 (sampleReporting, sampleOptions); no board has confirmed
them.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

_PROGRAM = """#!{python} -IS
import json, sys, time
options = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
print("&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # trtexec")
with open({log!r}, "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if "help" in options:
    sys.exit(0)
if {number!r}.startswith("85") and "infStreams" in options:
    print("[E] Unknown option: --infStreams 1")
    sys.exit(1)
engine = json.load(open(options["loadEngine"]))
if "hang" in engine:
    time.sleep(60)
if "fail" in engine:
    print("[E] Error[1]: [stdArchiveReader.cpp] Serialization assertion failed: Version tag does not match")
    print("&&&& FAILED TensorRT.trtexec [TensorRT v{number}]")
    sys.exit(1)
unasked = {number!r}.startswith("11.") and "noCudaGraph" not in options
if ("useCudaGraph" in options or unasked) and "uncaptured" not in engine:
    print("[I] Successfully captured CUDA graph for the current execution context")
runs = max(10, int(options["iterations"]))
if "exportTimes" in options:
    keys = ("startEnqMs", "endEnqMs", "startComputeMs", "endComputeMs", "h2dMs", "d2hMs")
    times = [dict.fromkeys(keys, 0.0) | {{"computeMs": engine["ms"], "latencyMs": engine["ms"]}} for _ in range(runs)]
    open(options["exportTimes"], "w").write(engine.get("times") or json.dumps(times))
if "exportProfile" in options:
    total = sum(engine["layers"].values())
    layers = [
        {{"name": name, "timeMs": ms * runs, "averageMs": ms, "medianMs": ms, "percentage": 100 * ms / total}}
        for name, ms in engine["layers"].items()
    ]
    open(options["exportProfile"], "w").write(json.dumps([{{"count": runs}}, *layers]))
if "exportLayerInfo" in options:
    details = [
        {{"Name": name, "LayerType": "kgen", "Metadata": "".join(f"[ONNX Layer: {{node}}]" for node in nodes)}}
        for name, nodes in engine.get("info", {{}}).items()
    ]
    entries = details or list(engine["layers"])
    open(options["exportLayerInfo"], "w").write(json.dumps({{"Layers": entries, "Bindings": []}}))
print("&&&& PASSED TensorRT.trtexec [TensorRT v{number}]")
"""


def program_text(log: Path, number: str = "100300") -> str:
    """The program, of a release; it writes its arguments to `log`."""
    return _PROGRAM.format(python=sys.executable, number=number, log=str(log))


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *, number: str = "100300") -> Path:
    """Put the program first in PATH; return the file that it writes its arguments to."""
    folder.mkdir(exist_ok=True)
    log = folder / "calls.txt"
    program = folder / "trtexec"
    program.write_text(program_text(log, number))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return log
