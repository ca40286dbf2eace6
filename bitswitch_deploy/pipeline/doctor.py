"""`doctor`: what of the tool works on this machine, what is missing and how to get it, and a self-test to send in.

The self-test runs the commands that a user runs, each in a process of its own: a package that crashes when it is
imported, which happens on boards, is then a line of the report and not the end of it. The report holds versions,
verdicts and times. It holds no names of this machine or its user and no path.
"""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from bitswitch_deploy import __version__
from bitswitch_deploy.catalogue import load_target
from bitswitch_deploy.engines.device_facts import DeviceFacts, device_facts
from bitswitch_deploy.engines.trtexec import PLACES, parse_version
from bitswitch_deploy.errors import BitswitchError
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.report.doctor_report import DoctorReport, Finding, Trial

_REQUIRED = (
    *("numpy", "onnx", "onnx_graphsurgeon", "onnxruntime", "click", "rich", "safetensors", "yaml"),
    *("scipy", "joblib", "jinja2", "markupsafe", "pygal"),
)
_DISTRIBUTION = {"yaml": "PyYAML", "onnx_graphsurgeon": "onnx-graphsurgeon", "PIL": "pillow"}
# what is optional: module, what it is for, how to get it
_OPTIONAL = (
    ("tensorrt_rtx", "engines for RTX GPUs, built without one", "pip install 'bitswitch-deploy[rtx]' (x86-64 Linux)"),
    ("PIL", "folders of images as data", "pip install 'bitswitch-deploy[images]'"),
    ("torch", "training and capture", "pip install 'bitswitch-deploy[train]'"),
    ("onnxscript", "capture by torch's exporter", "pip install 'bitswitch-deploy[train]'"),
    ("pycocotools", "the metric map", "pip install 'bitswitch-deploy[coco]'"),
    ("ray", "checks and searches on several machines", "pip install 'bitswitch-deploy[ray]'"),
    ("distributed", "searches on several machines", "pip install 'bitswitch-deploy[dask]'"),
)
_IMPORT_SECONDS, _TRIAL_SECONDS, _BUILD_SECONDS = 300, 600, 3600
_FEW_TURNS = ("--turns", "6")
_TRTEXEC_ONE = ("--engine", "trtexec", "--widths", "8")
# Blanks belong to a path inside of quotes; outside of them where what follows is part of a path as well.
_QUOTED_PATH = re.compile(r"""(['"])(?:~|\.\.\.)?/[^'"\n]*\1""")
_PATH = re.compile(r"""(?<![\w.])(?:~|\.\.\.)?/[^\s'":,;]*(?: [^\s\d/'":,;][^\s/'":,;]*/[^\s'":,;]*)*""")
_OPEN_CUDA = """
from bitswitch_deploy.engines.cuda_memory import Cuda
from bitswitch_deploy.errors import UnavailableError
try:
    Cuda()
except UnavailableError as exc:
    raise SystemExit(f"{exc.got}\\n{exc.do}")
"""
_RUN = """
import json, sys, time
import numpy as np
from bitswitch_deploy.runtime import load
with load(sys.argv[1], provider="tensorrt", width=8) as switcher:
    x = np.zeros((1, 1, 8, 8), np.float32)
    times = []
    for _ in range(50):
        start = time.perf_counter()
        switcher.run(x)
        times.append(1000 * (time.perf_counter() - start))
    print(json.dumps({"median_ms": round(sorted(times)[25], 3)}))
"""


def doctor(*, self_test: bool, progress: Progress) -> DoctorReport:
    """Look at this machine; with `self_test`, also run what can be run here."""
    device = device_facts()
    findings = (*_packages(), *_tensorrt(device), *_board(device))
    trials: tuple[Trial, ...] = ()
    if self_test:
        with tempfile.TemporaryDirectory(prefix="bitswitch-doctor-") as folder:
            trials = tuple(_trials(Path(folder), device, progress))
    return DoctorReport(
        version=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        device=device,
        findings=findings,
        trials=trials,
    )


def _packages() -> list[Finding]:
    findings = [
        _package(name, "required", f"pip install --force-reinstall {_distribution(name)}") for name in _REQUIRED
    ]
    return findings + [_package(name, what, do) for name, what, do in _OPTIONAL]


def _package(name: str, what: str, do: str) -> Finding:
    if importlib.util.find_spec(name) is None:
        return Finding(name=name, what=what, state="missing", detail="not installed", do=do)
    failure = _import_failure(name)
    if failure is not None:
        return Finding(name=name, what=what, state="broken", detail=failure, do=do)
    return Finding(name=name, what=what, state="here", detail=_version(name))


def _import_failure(name: str) -> str | None:
    """Why a package cannot be imported: tried in another process, because some kill theirs."""
    result = _run((sys.executable, "-c", f"import {name}"), _IMPORT_SECONDS)
    if result.code == 0:
        return None
    return result.error.strip().splitlines()[-1] if result.error.strip() else f"import ends with code {result.code}"


def _tensorrt(device: DeviceFacts) -> list[Finding]:
    """TensorRT in Python, and trtexec, one of which builds engines on a Jetson."""
    do = (
        "sudo apt install tensorrt python3-libnvinfer; a virtual environment needs --system-site-packages"
        if device.is_tegra
        else "pip install tensorrt, for an NVIDIA GPU in this machine"
    )
    python = _package("tensorrt", "engines, built and run from Python", do)
    program = shutil.which("trtexec") or next((place for place in PLACES if os.access(place, os.X_OK)), None)
    what = "engines, built without Python: build_on_device.sh"
    if program is None:
        do = "sudo apt install tensorrt" if device.is_tegra else "nothing: it is for the board"
        return [python, Finding(name="trtexec", what=what, state="missing", detail="not found", do=do)]
    asked = _run((program, "--help"), _IMPORT_SECONDS)
    version = parse_version(asked.output)
    if version is None and asked.code != 0:
        said = asked.error.strip().splitlines()
        detail = said[-1] if said else f"ends with code {asked.code}"
        do = "install the TensorRT that it belongs to, or remove it from PATH"
        return [python, Finding(name="trtexec", what=what, state="broken", detail=detail, do=do)]
    return [python, Finding(name="trtexec", what=what, state="here", detail=version or "version unknown")]


def _board(device: DeviceFacts) -> list[Finding]:
    if not device.is_tegra:
        what = "running engines here"
        if device.module is not None:
            return [Finding(name="NVIDIA GPU", what=what, state="here", detail=device.module), _cuda(what)]
        do = "nothing, unless one is built in: then install its driver"
        return [Finding(name="NVIDIA GPU", what=what, state="missing", detail="none found", do=do)]
    try:
        target = load_target("jetson")
        found = Finding(name="board", what="target `jetson`", state="here", detail=target.note or target.target.name)
    except BitswitchError as exc:
        found = Finding(name="board", what="target `jetson`", state="broken", detail=exc.got, do=exc.do)
    tools = [
        Finding(name=name, what=what, state="here", detail="found")
        if shutil.which(name)
        else Finding(name=name, what=what, state="missing", detail="not found", do="sudo apt install nvidia-l4t-tools")
        for name, what in (("nvpmodel", "name of the power mode"), ("tegrastats", "temperature, clocks and power"))
    ]
    return [found, _cuda("running engines from Python"), *tools]


def _cuda(what: str) -> Finding:
    """Whether CUDA can be used, which nvidia-smi does not tell: tried in another process, as imports are."""
    tried = _run((sys.executable, "-c", _OPEN_CUDA), _IMPORT_SECONDS)
    if tried.code == 0:
        return Finding(name="CUDA", what=what, state="here", detail="found")
    detail, do = [*tried.error.strip().splitlines(), "", ""][:2]
    state: Literal["missing", "broken"] = "missing" if "libcudart" in detail else "broken"
    return Finding(name="CUDA", what=what, state=state, detail=detail or f"ends with code {tried.code}", do=do)


# --- self-test -----------------------------------------------------------------------------------------------------


def _trials(folder: Path, device: DeviceFacts, progress: Progress) -> list[Trial]:
    steps = _steps(folder, device)
    progress.start("self-test", len(steps))
    trials = []
    for name, command, seconds in steps:
        trials.append(_trial(name, command, seconds))
        progress.advance()
    return trials


def _steps(folder: Path, device: DeviceFacts) -> list[tuple[str, tuple[str, ...], int]]:
    """(name, command, seconds that it may take) of everything that can work on this machine."""
    tool = (sys.executable, "-m", "bitswitch_deploy")
    cpu, engines = str(folder / "cpu"), str(folder / "engines")
    timed = (*tool, "profile", engines, *_FEW_TURNS, "--json")
    table = ("--latency-table", str(folder / "table.json"))
    steps: list[tuple[str, tuple[str, ...], int]] = [
        ("export for this CPU", (*tool, "export", "--target", "cpu", "--output", cpu, "--json"), _TRIAL_SECONDS),
        ("verify the package", (*tool, "verify", cpu, "--json"), _TRIAL_SECONDS),
        ("measure it again", (*tool, "validate", cpu, "--json"), _TRIAL_SECONDS),
        ("time it", (*tool, "profile", cpu, *_FEW_TURNS, "--threads", "1", "--json"), _TRIAL_SECONDS),
    ]
    if device.is_tegra:
        board = (*tool, "export", "--target", "jetson", "--output", engines, "--json")
        build = (*tool, "build", engines, "--force", "--json")
        script = ("sh", f"{engines}/build_on_device.sh", "--force")
        run = (sys.executable, "-c", _RUN, engines)
        steps += [
            ("export for this board", board, _BUILD_SECONDS),
            ("build engines from Python", build, _BUILD_SECONDS),
            ("run an engine", run, _TRIAL_SECONDS),
            ("time the engines", timed, _TRIAL_SECONDS),
            ("time their layers", (*timed, "--widths", "8", *table), _TRIAL_SECONDS),
            ("build engines with trtexec", script, _BUILD_SECONDS),
            ("time them with trtexec", (*timed, *_TRTEXEC_ONE), _TRIAL_SECONDS),
            ("time their layers with trtexec", (*timed, *_TRTEXEC_ONE, *table), _TRIAL_SECONDS),
        ]
    elif importlib.util.find_spec("tensorrt_rtx") is not None:
        export = (*tool, "export", "--target", "rtx", "--bits", "8", "--output", engines, "--json")
        steps.append(("export for RTX, engines built", export, _TRIAL_SECONDS))
        if f"SM{(device.sm or '').replace('.', '')}" in load_target("rtx").target.engine.compute_capabilities:
            steps.append(("run an engine", (sys.executable, "-c", _RUN, engines), _TRIAL_SECONDS))
            steps.append(("time its layers", (*timed, *table), _TRIAL_SECONDS))
    return steps


def _trial(name: str, command: Sequence[str], seconds: int) -> Trial:
    started = time.monotonic()
    result = _run(command, seconds)
    taken = round(time.monotonic() - started, 2)
    if result.code != 0:
        lines = [line for line in result.error.splitlines() if line.strip()]
        detail = " | ".join(lines[-3:]) or f"ends with code {result.code}"
        return Trial(name=name, works=False, seconds=taken, detail=detail)
    return Trial(name=name, works=True, seconds=taken, detail=_measured(result.output))


def _measured(output: str) -> str:
    """What a command measured, out of its JSON."""
    try:
        document = json.loads(output)
    except ValueError:
        return ""
    if "median_ms" in document:
        return f"median {document['median_ms']} ms"
    if "candidates" in document:
        times = ", ".join(f"{row['label']}: {row['statistics']['p50_ms']:.3f} ms" for row in document["candidates"])
        return times + (", UNSTABLE" if document["unstable"] else "")
    rows: list[Any] = document.get("widths") or document.get("engines") or []
    return ", ".join(f"{row['label']}: {_summary(row)}" for row in rows)


def _summary(row: dict[str, Any]) -> str:
    """Of a width its accuracy, of an engine what became of its layers."""
    if "hops" in row:
        shares = [hop["top1_percent"] for hop in row["hops"] if hop["n"] and hop["top1_percent"] is not None]
        return f"{shares[-1]:.2f} %" if shares else "no data"
    if layers := row.get("layers"):
        return f"{len(layers['int8'])} int8, {len(layers['fell_back'])} fell back, {len(layers['in_float'])} in float"
    return str(row["state"])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """How a process ended, and what it wrote; nothing of it names this machine or its user."""

    code: int
    output: str
    error: str


def _run(command: Sequence[str], seconds: int) -> _Result:
    """Run a command; one that takes too long, or that Ctrl-C ends, is ended with all that it has started."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True
        )
    except OSError as exc:
        return _Result(code=-1, output="", error=f"cannot be started: {exc.strerror}")
    with process:
        try:
            output, error = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return _Result(code=-1, output="", error=f"not done after {seconds} s")
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return _Result(code=process.returncode, output=output, error=anonymous(error))


def anonymous(text: str) -> str:
    """`text` without the names of this machine and its user, and without paths."""
    # the folders that are known first, as a whole: they may hold blanks
    for folder in sorted({str(each) for each in _folders()}, key=len, reverse=True):
        text = text.replace(folder, "...")
    text = _QUOTED_PATH.sub(lambda found: f"{found[1]}.../{found[0].rpartition('/')[2]}", text)
    text = _PATH.sub(lambda found: f".../{found[0].rpartition('/')[2]}", text)
    node = platform.node()
    for name in (node, node.partition(".")[0], _user(), *(home.name for home in _homes())):
        if len(name) > 1:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "...", text)
    return text


def _folders() -> list[Path]:
    """Folders that messages name; `/` and the like would tell nothing and match everywhere."""
    named = (*_homes(), Path.cwd(), Path(tempfile.gettempdir()), Path(sys.prefix), Path(__file__).parents[2])
    both = [each for folder in named for each in (folder, folder.resolve())]
    return [each for each in both if len(each.parts) > 2]


def _homes() -> tuple[Path, ...]:
    """The user's home folder, where there is one."""
    try:
        return (Path.home(),)
    except RuntimeError:
        return ()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def _distribution(name: str) -> str:
    return _DISTRIBUTION.get(name, name)


def _version(name: str) -> str:
    try:
        return metadata.version(_distribution(name))
    except metadata.PackageNotFoundError:
        return "version unknown"
