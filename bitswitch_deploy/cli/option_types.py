"""Types of the values that options take: a value that cannot be is refused before any work is done."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from bitswitch_deploy.atomic_file import check_writable


class FiniteRange(click.FloatRange):
    """A number in a range: nan and inf are in none, although no comparison says so of nan."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; click refuses what is none."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class _Path(click.Path):
    """A path. An empty one, as of a variable that is not set, would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; click refuses what is none."""
        if value == "":
            self.fail("it is empty.", param, ctx)
        return super().convert(value, param, ctx)


class OutputFile(_Path):
    """A file to write when the work is done, which is too late to learn that it cannot be written."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path.

        Raises:
            OutputError: it is a folder, or its folder is missing or not writable.
        """
        path: Any = super().convert(value, param, ctx)
        check_writable(path)
        return path


# whoever opens a file says better than click what is wrong with it
PATH = _Path(path_type=Path, readable=False)
OUTPUT_FILE = OutputFile(path_type=Path, readable=False)
