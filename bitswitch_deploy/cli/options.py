"""Options that several commands share, and the progress bar that they draw on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from bitswitch_deploy.pipeline.progress import LINES_WANTED, Progress, ProgressLines
from bitswitch_deploy.remote.address import parse_address
from bitswitch_deploy.remote.device import Device

PATH = click.Path(path_type=Path)

master_option = click.option(
    "--master",
    type=PATH,
    metavar="FILE",
    help="The master, of several files their *.safetensors.index.json.  [default: the bundled digits network]",
)
data_option = click.option(
    "--data",
    type=PATH,
    metavar="PATH",
    help="Data to validate on: a folder of images per class, or .npz with x and y.  [default: the bundled set]",
)
max_drop_option = click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="POINTS",
    help="Points of top-1 that a width may lose against what the master recorded; more exits with 1.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")
report_option = click.option("--report", type=PATH, metavar="FILE", help="Write the result as one HTML page as well.")
device_option = click.option(
    "--device",
    default="local",
    show_default=True,
    metavar="ADDRESS",
    help="Do it on another machine: ssh://user@host:port, as your ssh configuration knows it.",
)
ssh_config_option = click.option(
    "--ssh-config", type=PATH, metavar="FILE", help="Configuration for ssh, in place of ~/.ssh/config."
)


def command_line() -> tuple[str, ...]:
    """The words of this call, for the page that says how to make it again."""
    return ("bitswitch-deploy", *sys.argv[1:])


def chosen_device(address: str, ssh_config: Path | None) -> Device | None:
    """The machine of `--device`, None for this one; what happens there goes to stderr.

    Raises:
        UsageError: it is no such address.
    """
    parsed = parse_address(address)
    return Device(address=parsed, ssh_config=ssh_config, say=partial(click.echo, err=True)) if parsed else None


class _Bar:
    """Draws a step as one line of a rich progress bar."""

    def __init__(self, bar: RichProgress) -> None:
        self._bar = bar
        self._task: int | None = None

    def start(self, description: str, total: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)  # type: ignore[arg-type]
        self._task = self._bar.add_task(description, total=total)

    def advance(self, n: int = 1) -> None:
        if self._task is not None:
            self._bar.advance(self._task, n)  # type: ignore[arg-type]


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar with an ETA on stderr when somebody watches, silence otherwise; it leaves nothing behind.

    Lines instead where the other end of a connection asks for them.
    """
    if os.environ.get(LINES_WANTED):
        yield ProgressLines(partial(click.echo, err=True))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with RichProgress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        yield _Bar(bar)
