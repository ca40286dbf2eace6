"""`doctor` on this machine and on others: packages and programs are put there or taken away."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import platform
import signal
import subprocess
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from bitswitch_deploy.engines.device_facts import DeviceFacts
from bitswitch_deploy.pipeline import doctor as module
from bitswitch_deploy.pipeline.doctor import anonymous, doctor
from bitswitch_deploy.pipeline.progress import Silent
from bitswitch_deploy.report.doctor_report import DoctorReport, Finding, Trial
from tests.conftest import Run

ORIN = DeviceFacts(arch="aarch64", module="p3767-0005", sm="8.7", l4t="36.4.3")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports are not tried: each would cost a process."""
    monkeypatch.setattr(module, "_import_failure", lambda name: None)


def finding(report: DoctorReport, name: str) -> Finding:
    return next(each for each in report.findings if each.name == name)


def examined(monkeypatch: pytest.MonkeyPatch, device: DeviceFacts) -> DoctorReport:
    monkeypatch.setattr(module, "device_facts", lambda: device)
    return doctor(self_test=False, progress=Silent())


def test_what_is_here_has_its_version(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    report = examined(monkeypatch, DeviceFacts(arch="x86_64"))
    found = finding(report, "onnx")
    assert (found.state, found.what, found.do) == ("here", "required", "")
    assert found.detail.startswith("1.")
    assert finding(report, "NVIDIA GPU").state == "missing"
    assert report.is_ok
    assert report.trials == ()


def test_what_is_missing_says_how_to_get_it(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("PIL", "onnx") else name)
    monkeypatch.setenv("PATH", os.devnull)
    report = examined(monkeypatch, ORIN)
    assert finding(report, "PIL").do == "pip install 'bitswitch-deploy[images]'"
    assert finding(report, "onnx").do == "pip install --force-reinstall onnx"
    assert finding(report, "trtexec").do == "sudo apt install tensorrt"
    assert finding(report, "tegrastats").state == "missing"
    assert not report.is_ok


def test_everything_that_an_installation_declares_is_looked_at() -> None:
    """TensorRT is looked at with the device; without an extra, or with one that users have."""
    declared = [Requirement(each) for each in metadata.requires("bitswitch-deploy") or ()]
    required = {each.name.lower() for each in declared if each.marker is None}
    assert {module._distribution(name).lower() for name in module._REQUIRED} == required
    for_users = {
        each.name.lower()
        for extra in ("train", "rtx", "images", "coco", "ray", "dask")
        for each in declared
        if each.marker is not None and each.marker.evaluate({"extra": extra})
    }
    assert {module._distribution(name).lower().replace("_", "-") for name, *_ in module._OPTIONAL} == for_users


def test_a_package_that_cannot_be_imported_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    failure = module._import_failure("tensorrt")
    assert failure == "ImportError: libnvinfer.so.10: cannot open shared object file"
    (tmp_path / "tensorrt.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert module._import_failure("tensorrt") == "import ends with code -4"
    assert module._import_failure("json") is None


def test_trtexec_tells_its_version(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trtexec").write_text('#!/bin/sh\necho "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b9]"\n')
    (tmp_path / "trtexec").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    assert finding(examined(monkeypatch, ORIN), "trtexec").detail == "10.3.0"


def test_a_trtexec_that_does_not_run_is_broken(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "libnvinfer.so.10: cannot open shared object file"
    (tmp_path / "trtexec").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 127\n")
    (tmp_path / "trtexec").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    found = finding(examined(monkeypatch, ORIN), "trtexec")
    assert (found.state, found.detail) == ("broken", said)


@pytest.mark.parametrize(
    ("got", "state"),
    [("no CUDA runtime library (libcudart)", "missing"), ("error 35: the driver is too old", "broken")],
)
def test_a_gpu_whose_cuda_cannot_be_used_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, got: str, state: str
) -> None:
    """In a process that finds this in the place of our own."""
    folder = tmp_path / "bitswitch_deploy" / "engines"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    (folder.parent / "errors.py").write_text("class UnavailableError(Exception): got, do = " + repr((got, "mend it")))
    (folder / "cuda_memory.py").write_text(
        "from bitswitch_deploy.errors import *\ndef Cuda(): raise UnavailableError\n"
    )
    monkeypatch.chdir(tmp_path)
    found = module._cuda("running engines here")
    assert (found.state, found.detail, found.do) == (state, got, "mend it")


@pytest.mark.parametrize(
    ("sm", "is_run"), [("8.9", True), ("12.0", True), ("9.0", False), ("7.5", False), (None, False)]
)
def test_engines_are_run_on_gpus_that_they_are_built_for(tmp_path: Path, sm: str | None, is_run: bool) -> None:
    pytest.importorskip("tensorrt_rtx")
    names = [name for name, _, _ in module._steps(tmp_path, DeviceFacts(arch="x86_64", module="a GPU", sm=sm))]
    assert "export for RTX, engines built" in names
    assert ("run an engine" in names) == is_run


def test_a_jetson_in_a_container_is_one(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not show the release of Jetson Linux."""
    monkeypatch.setenv("PATH", os.devnull)
    device = replace(ORIN, l4t=None)
    report = examined(monkeypatch, device)
    assert finding(report, "tensorrt").do.startswith("sudo apt install tensorrt")
    assert finding(report, "trtexec").do == "sudo apt install tensorrt"
    assert finding(report, "nvpmodel").state == "missing"
    assert module._steps(tmp_path, device) == module._steps(tmp_path, ORIN)


def test_a_user_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    assert anonymous("/data/net.onnx: 3/4") == ".../net.onnx: 3/4"


def test_names_and_paths_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "workstation7")
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    text = "error: /home/alice/secret project/net.onnx: on workstation7 by alice: 3/4 done, w4: ok"
    cleaned = anonymous(text)
    assert "alice" not in cleaned
    assert "workstation7" not in cleaned
    assert "/home" not in cleaned
    assert "3/4 done, w4: ok" in cleaned


PATHS = [
    ("error: /home/alice/secret project/net.onnx: on it", "error: .../net.onnx: on it"),
    ("at '/data/Acme Corp/secret/x y/net.onnx' failed", "at '.../net.onnx' failed"),
    ('File "/opt/a b/c d.py", line 3', 'File ".../c d.py", line 3'),
    ("~/work/y.z 3/4 done", ".../y.z 3/4 done"),
    ("in /home/Jane Doe/big/net.onnx: no", "in .../net.onnx: no"),
    ("TMPDIR=/home/Jane Doe is full", "TMPDIR=... is full"),
    ("on laptop7.acme.example and laptop7: and/or", "on ... and ...: and/or"),
    ("https://docs.example/page", "https:.../page"),
]


@pytest.mark.parametrize(("text", "cleaned"), PATHS)
def test_paths_with_blanks_and_long_names_of_machines(monkeypatch: pytest.MonkeyPatch, text: str, cleaned: str) -> None:
    monkeypatch.setenv("HOME", "/home/Jane Doe")
    monkeypatch.setattr(platform, "node", lambda: "laptop7.acme.example")
    assert anonymous(text) == cleaned


def test_steps_of_a_board_build_with_both_builders(tmp_path: Path) -> None:
    steps = module._steps(tmp_path, ORIN)
    assert [name for name, _, _ in steps][4:] == [
        "export for this board",
        "build engines from Python",
        "run an engine",
        "time the engines",
        "time their layers",
        "build engines with trtexec",
        "time them with trtexec",
        "time their layers with trtexec",
    ]
    tables = [command for name, command, _ in steps if "layers" in name]
    assert all(command[-2:] == ("--latency-table", str(tmp_path / "table.json")) for command in tables)


def test_a_trial_that_fails_or_hangs_is_a_line_of_the_report() -> None:
    failed = module._trial("it", ("sh", "-c", "echo error: no disk >&2; exit 3"), 60)
    assert (failed.works, failed.detail) == (False, "error: no disk")
    assert module._trial("it", ("sleep", "60"), 0).detail == "not done after 0 s"
    assert module._trial("it", ("/nowhere/program",), 60).detail.startswith("cannot be started: No such file")
    measured = module._trial("it", ("echo", json.dumps({"median_ms": 1.5})), 60)
    assert (measured.works, measured.detail) == (True, "median 1.5 ms")
    report = DoctorReport(version="", python="", system="", device=ORIN, findings=(), trials=(failed,))
    assert not report.is_ok


@pytest.mark.parametrize("error", [subprocess.TimeoutExpired("it", 1), KeyboardInterrupt()])
def test_what_a_trial_has_started_ends_with_it(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Such as trtexec, which the script waits for: all of a session is ended."""
    kill, ended = os.killpg, []

    def recorded(group: int, number: int) -> None:
        ended.append((os.getsid(group) == group, number))
        kill(group, number)

    def started(process: subprocess.Popen[str], timeout: int) -> tuple[str, str]:
        raise error

    monkeypatch.setattr(os, "killpg", recorded)
    monkeypatch.setattr(subprocess.Popen, "communicate", started)
    with contextlib.suppress(KeyboardInterrupt):
        assert module._run(("sleep", "60"), 1).code == -1
    assert ended == [(True, signal.SIGKILL)]


def test_what_commands_measured() -> None:
    hops = [{"n": 600, "top1_percent": 98.5}, {"n": 600, "top1_percent": 97.0}, {"n": 0, "top1_percent": None}]
    layers = {"int8": [1, 2], "fell_back": [], "in_float": [1]}
    counts = {"integer": 7, "total": 9, "fell_back": []}
    document = {"widths": [{"label": "w8", "hops": hops, "layers": counts}, {"label": "w4", "hops": []}]}
    assert module._measured(json.dumps(document)) == "w8: 97.00 %, w4: no data"
    document = {"engines": [{"label": "w8", "layers": layers, "state": "built"}, {"label": "w4", "state": "built"}]}
    assert module._measured(json.dumps(document)) == "w8: 2 int8, 0 fell back, 1 in float, w4: built"
    rows = [{"label": label, "statistics": {"p50_ms": ms}} for label, ms in (("w8", 0.25), ("fp16", 1.0))]
    assert module._measured(json.dumps({"candidates": rows, "unstable": []})) == "w8: 0.250 ms, fp16: 1.000 ms"
    assert module._measured(json.dumps({"candidates": rows, "unstable": ["hot"]})).endswith("ms, UNSTABLE")
    assert module._measured("done") == ""


def test_the_report_of_this_machine(run: Run, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Really run, with the shortest of the steps."""
    steps = module._steps

    def first(folder: Path, device: DeviceFacts) -> object:
        (name, command, seconds), *_ = steps(folder, device)
        return [(name, (*command[:-1], "--bits", "4", "--json"), seconds)]

    monkeypatch.setattr(module, "_steps", first)
    outcome = run("doctor", "--self-test", "--json")
    assert outcome.code == 0
    document = json.loads(outcome.out)
    assert document["schema"] == "bitswitch-doctor/1"
    (trial,) = document["trials"]
    assert trial["works"]
    assert trial["detail"].startswith("w4: 9")
    for name in (platform.node(), str(Path.home()), os.getcwd()):
        assert name not in outcome.out


def test_something_broken_ends_with_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_import_failure", lambda name: "ImportError: no" if name == "onnx" else None)
    outcome = run("doctor")
    assert outcome.code == 1
    assert "ImportError: no" in outcome.out


def test_the_page(run: Run, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [Trial(name="export", works=True, seconds=1.25, detail="w4: 98.00 %")]
    monkeypatch.setattr(module, "_trials", lambda *_: trials)
    outcome = run("doctor", "--self-test")
    assert "works, 1.2 s. w4: 98.00 %" in outcome.out
    assert "onnxruntime" in outcome.out
    assert "no paths: please read it" in outcome.out
