"""The one seam to the machine: files below a root, and commands. Tests put a folder and a table in its place."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_S = 10
_MAX_CHARS = 1 << 16

RunCommand = Callable[[Sequence[str]], "str | None"]


def run_command(words: Sequence[str]) -> str | None:
    """Standard output of a command, None where it is missing, fails or hangs. Never through a shell."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine. root: where its /sys, /proc, /etc and /var begin. run: how a command is run there."""

    root: Path = Path("/")
    run: RunCommand = run_command

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
