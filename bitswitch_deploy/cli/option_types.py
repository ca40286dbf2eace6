"""Types of the values that options take: a value that cannot be is refused before any work is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bitswitch_deploy.atomic_file import check_writable


class _OutputFile(click.Path):
    """A file to write when the work is done, which is too late to learn that it cannot be written."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path.

        Raises:
            OutputError: it is a folder, or its folder is missing or not writable.
        """
        path: Any = super().convert(value, param, ctx)
        check_writable(path)
        return path


PATH = click.Path(path_type=Path)
OUTPUT_FILE = _OutputFile(path_type=Path)
