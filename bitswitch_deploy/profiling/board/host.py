"""The one seam to the machine: files below a root, and commands. Tests put a folder and a table in its place."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bitswitch_deploy.board import visible_gpu
from bitswitch_deploy.profiling.board.device_lock import alone_on_this_machine

_TIMEOUT_S = 10
_MAX_CHARS = 1 << 16
# A line of tegrastats has about 600 bytes: an hour at two in a second.
_MAX_RECORDED_BYTES = 1 << 23

RunCommand = Callable[[Sequence[str]], "str | None"]


class Recording(Protocol):
    """A command that goes on printing."""

    def stop(self) -> str:
        """End it; what it printed."""


StartCommand = Callable[[Sequence[str]], "Recording | None"]


def run_command(words: Sequence[str]) -> str | None:
    """Standard output of a command, None where it is missing, fails or hangs. Never through a shell."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


class RunningCommand:
    """A process of its own; its output goes to a file, so that nothing waits for a reader."""

    def __init__(self, words: Sequence[str]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        try:
            self._process = subprocess.Popen(words, stdout=self._file, stderr=subprocess.DEVNULL)
        except OSError:
            self._file.close()
            raise

    def stop(self) -> str:
        """End the process, and if it does not listen kill it; what it printed, its beginning where that is long."""
        self._process.terminate()
        try:
            self._process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with self._file as file:
            file.seek(0)
            return file.read(_MAX_RECORDED_BYTES).decode("utf-8", "replace")


def start_command(words: Sequence[str]) -> Recording | None:
    """Start a command that goes on printing; None where it is missing."""
    try:
        return RunningCommand(words)
    except OSError:
        return None


def is_current() -> None:
    """Nothing: the files of this machine are as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine. root: where its /sys, /proc, /etc and /var begin. run, start: how commands are run there.

    refresh: called before each look, for a root that is a copy. alone: keeps others from measuring there meanwhile.
    gpu: the discrete one that engines run on, for --id of nvidia-smi.
    """

    root: Path = Path("/")
    run: RunCommand = run_command
    start: StartCommand = start_command
    refresh: Callable[[], None] = is_current
    alone: Callable[[], AbstractContextManager[None]] = alone_on_this_machine
    gpu: str = field(default_factory=visible_gpu)

    def text(self, path: Path | str) -> str | None:
        """A small file without the white space around it; None where it cannot be read, as many of sysfs."""
        try:
            with (self.root / path).open(encoding="utf-8", errors="replace") as file:
                return file.read(_MAX_CHARS).strip("\0 \n\t")
        except OSError:
            return None

    def number(self, path: Path | str) -> int | None:
        """The whole number in a file; None where there is none."""
        text = self.text(path)
        try:
            return int(text) if text is not None else None
        except ValueError:
            return None

    def find(self, pattern: str) -> list[Path]:
        """Paths below the root that match, in the order of their names, 2 before 10."""
        return sorted(self.root.glob(pattern), key=lambda path: (len(str(path)), str(path)))
