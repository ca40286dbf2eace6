"""Killed and concurrent exports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.package import writer
from bitswitch_deploy.package.verify import read_manifest, verify_package
from bitswitch_deploy.package.writer import PackageWriter

# An export in a process of its own: writes, says so, waits for a line, commits.
CHILD = """
import sys
from pathlib import Path
from bitswitch_deploy.errors import BitswitchError
from bitswitch_deploy.package.manifest import Manifest
from bitswitch_deploy.package.writer import PackageWriter

text, force = sys.argv[2], sys.argv[3] == "force"
try:
    with PackageWriter(Path(sys.argv[1]), force=force) as writer:
        for index in range(20):
            writer.write(f"graphs/{index}.onnx", text.encode(), role="graph")
        print("written", flush=True)
        sys.stdin.readline()
        facts = {"master_sha256": "00" * 32, "target": text, "stack": (), "command": (), "tools": ()}
        writer.commit(Manifest(**facts, files=writer.files))
except BitswitchError as exc:
    print(exc, file=sys.stderr)
    sys.exit(exc.exit_code)
"""


def _start(destination: Path, text: str = "graph", force: str = "no") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(destination), text, force],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _written(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    return process


def _finish(process: subprocess.Popen[str]) -> str:
    _, stderr = process.communicate("go\n", timeout=60)
    return stderr


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_killed_run_is_cleaned_up_by_the_next(tmp_path: Path, export: Callable[..., Path]) -> None:
    process = _written(_start(tmp_path / "package"))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert _names(tmp_path) == [f".package.partial-{process.pid}"]
    export(tmp_path / "package")
    assert _names(tmp_path) == ["package"]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 128 + signal.SIGHUP), (signal.SIGINT, -signal.SIGINT)],
)
def test_a_stopped_run_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = _written(_start(tmp_path / "package"))
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert _names(tmp_path) == []


def test_signal_handling_is_put_back(tmp_path: Path, export: Callable[..., Path]) -> None:
    def mine(number: int, frame: object) -> None:
        raise AssertionError

    signal.signal(signal.SIGHUP, mine)
    try:
        with PackageWriter(tmp_path / "package"):
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            assert signal.getsignal(signal.SIGHUP) is mine
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is mine
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_a_signal_while_the_folder_is_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path) -> int:
        assert folder.is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "lock_folder", interrupted)
    with pytest.raises(KeyboardInterrupt), PackageWriter(tmp_path / "package"):
        raise AssertionError
    assert _names(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_thread_can_export(tmp_path: Path, export: Callable[..., Path]) -> None:
    thread = threading.Thread(target=export, args=(tmp_path / "package",))
    thread.start()
    thread.join()
    assert verify_package(tmp_path / "package").is_ok


def test_one_process_writes_a_destination_once(tmp_path: Path, export: Callable[..., Path]) -> None:
    with PackageWriter(tmp_path / "package") as writer:
        with pytest.raises(UsageError, match="this process is writing it already"):
            export(tmp_path / "package")
        assert writer.folder.exists()
        export(tmp_path / "other")


def test_a_leftover_of_an_earlier_process_with_the_same_number_is_removed(
    tmp_path: Path, export: Callable[..., Path]
) -> None:
    # containers: every run is process 1
    (tmp_path / f".package.partial-{os.getpid()}").mkdir()
    export(tmp_path / "package")
    assert _names(tmp_path) == ["package"]


def test_the_second_of_two_exports_is_refused_at_once(tmp_path: Path) -> None:
    first = _written(_start(tmp_path / "package", "first"))
    second = _start(tmp_path / "package", "second")
    assert f"process {first.pid} is writing it already" in _finish(second)
    assert _finish(first) == ""
    assert (first.returncode, second.returncode) == (0, 2)
    assert read_manifest(tmp_path / "package").target == "first"
    assert verify_package(tmp_path / "package").is_ok
    assert _names(tmp_path) == ["package"]


def test_concurrent_exports_with_force_leave_one_whole_package(tmp_path: Path, export: Callable[..., Path]) -> None:
    export(tmp_path / "package")
    processes = [_written(_start(tmp_path / "package", f"export{index}", "force")) for index in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    result = verify_package(tmp_path / "package")
    assert result.is_ok
    assert result.manifest.target.startswith("export")
    assert _names(tmp_path) == ["package"]
