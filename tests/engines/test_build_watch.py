"""Builds that do not come to their end, in processes of their own: what is tested ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitswitch_deploy.engines import tensorrt_engine
from bitswitch_deploy.engines.build_watch import BuildWatch
from bitswitch_deploy.engines.tensorrt_config import BuildSettings
from bitswitch_deploy.engines.tensorrt_engine import build_engine
from bitswitch_deploy.errors import UnavailableError
from tests.engines.tensorrt_builder import Record, install

# A build that is in C++ code for a minute: sleep of the C library, called without Python's lock as the vendor's code.
SCRIPT = """
import ctypes, signal, sys, pytest
from pathlib import Path
from tests.engines.tensorrt_builder import Record, install
from bitswitch_deploy.engines import tensorrt_engine
from bitswitch_deploy.engines.tensorrt_config import BuildSettings
signal.signal(signal.SIGINT, signal.default_int_handler)
release, limit_s, tensorrt_engine.GRACE_S = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
class Hanging(list):
    def append(self, call):
        if call[0] == "build":
            print("building", flush=True)
            for _ in range(60):
                ctypes.CDLL(None).sleep(1)
        super().append(call)
install(pytest.MonkeyPatch(), release, Record(calls=Hanging()))
tensorrt_engine.build_engine(b"onnx", module="tensorrt", settings=BuildSettings(label="w4", limit_s=limit_s))
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Start:
    def call(*words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, *map(str, words)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path.cwd())
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        return process

    return call


@pytest.mark.parametrize("release", ["8.6.2", "10.3.0"])
def test_a_build_that_hangs_is_ended(start: Start, release: str) -> None:
    _, said = start(release, 0.6, 0.3).communicate(timeout=30)
    assert said.startswith(f"error: w4: tensorrt {release}: no engine after 0.01 minutes\n  allowed: ")
    assert "hangs in TensorRT, or needs a longer --timeout" in said


def test_its_exit_code_is_that_of_what_is_not_here(start: Start) -> None:
    process = start("10.3.0", 0.2, 0.2)
    process.communicate(timeout=30)
    assert process.returncode == UnavailableError.exit_code


def test_the_second_interrupt_ends_a_build_that_hangs(start: Start) -> None:
    process = start("10.3.0", 3600, 3600)
    os.kill(process.pid, signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT
    assert said == "error: the build did not stop, so it was ended\n"


def test_one_interrupt_ends_it_later(start: Start) -> None:
    process = start("10.3.0", 3600, 0.5)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT


def test_a_build_that_listens_is_a_width_that_took_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked to stop at its next step and returns nothing; the process goes on."""
    record = Record(plan=None)

    class Slow(list):  # type: ignore[type-arg]
        def append(self, call: tuple[object, ...]) -> None:
            if call[0] == "build":
                watches[0]._ended.wait(1.0)
            super().append(call)

    watches: list[BuildWatch] = []

    def watch(*words: float, **settings: object) -> BuildWatch:
        watches.append(BuildWatch(*words, **settings))  # type: ignore[arg-type]
        return watches[0]

    record.calls = Slow()
    install(monkeypatch, "10.3.0", record)
    monkeypatch.setattr(tensorrt_engine, "BuildWatch", watch)
    with pytest.raises(UnavailableError, match=r"w4: tensorrt 10\.3\.0: no engine after 0\.005 minutes"):
        build_engine(b"onnx", module="tensorrt", settings=BuildSettings(label="w4", limit_s=0.3))
    assert ("step", False) in record.calls


def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    with BuildWatch(3600, where="w4", grace_s=3600) as watch:
        assert not watch.is_stop_wanted
    assert not watch._thread.is_alive()
    assert signal.set_wakeup_fd(-1) == -1
