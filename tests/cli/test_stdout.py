"""What becomes of a result that stdout does not take: in a process of its own, for the way that Python ends counts."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

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


def test_a_closed_stderr_puts_no_message_into_the_result(tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m bitswitch_deploy"
    failed = subprocess.run(
        ["sh", "-c", f"{command} export --target nope --json 2>&-"], capture_output=True, text=True, check=False
    )
    assert (json.loads(failed.stdout)["exit_code"], failed.stderr) == (failed.returncode, "")
    output = shlex.quote(str(tmp_path / "p"))
    done = subprocess.run(
        ["sh", "-c", f"{command} export --target x86-cpu --bits 8 -o {output} --json 2>&-"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["widths"][0]["label"] == "w8"
