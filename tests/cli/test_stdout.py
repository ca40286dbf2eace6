"""What becomes of a result that stdout does not take: in a process of its own, for the way that Python ends counts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import Run

COMMANDS = (("targets", "list"), ("targets", "list", "--json"), ("inspect", "--json"), ("--help",))


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "bitswitch_deploy", *words]


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_exits_with_3_and_one_message(words: tuple[str, ...], unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(_command(*words), stdout=full, stderr=subprocess.PIPE, env=environment, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith(b"error: stdout: cannot be written: No space left on device\n  allowed:")
    assert len(done.stderr.splitlines()) == 3


@pytest.mark.parametrize("words", [*COMMANDS, ("verify", "there is no such package", "--json")])
def test_a_reader_that_has_gone_is_no_failure(words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(_command(*words), stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    failed = words[0] == "verify"
    assert done.returncode == (3 if failed else 141)
    assert len(done.stderr.splitlines()) == (3 if failed else 0)


def test_a_closed_stdout_is_refused_before_the_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    outcome = run("export", "--target", "jetson", "-o", "/nowhere/at/all")
    assert outcome.code == 3
    assert outcome.err.startswith("error: stdout: is closed\n")
