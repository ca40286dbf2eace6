"""Options that several commands share, and the progress bar that they draw on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.cli.option_types import OUTPUT_FILE, PATH, FiniteRange
from bitswitch_deploy.cli.output_files import check_output_files
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.master import read_master
from bitswitch_deploy.pipeline.inputs import parse_bits, read_mixed
from bitswitch_deploy.pipeline.progress import LINES_WANTED, Progress, ProgressLines
from bitswitch_deploy.remote.address import parse_address
from bitswitch_deploy.remote.device import Device
from bitswitch_deploy.tensors import WidthAssignment

master_option = click.option(
    "--master",
    type=PATH,
    metavar="FILE",
    help="The master, of several files their *.safetensors.index.json.  [default: the bundled digits network]",
)
package_master_option = click.option(
    "--master",
    type=PATH,
    metavar="FILE",
    help="The master.  [default: of a package the file that its export read; else the bundled digits network]",
)
package_target_option = click.option(
    "--target", metavar="NAME", help="The file of the package's target, where that is one of your own."
)
data_option = click.option(
    "--data",
    type=PATH,
    metavar="PATH",
    help="Data to validate on: a folder of images per class, or .npz with x and y.  [default: the bundled set]",
)
max_drop_option = click.option(
    "--max-drop",
    type=FiniteRange(min=0),
    default=1.0,
    show_default=True,
    metavar="POINTS",
    help="Points of top-1 that a width may lose against what the master recorded on these data; more exits with 1. On "
    "other data, against its canonical graph, which fails itself below half of what was recorded.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")
mixed_option = click.option(
    "--mixed", type=PATH, metavar="FILE", help="JSON of layer -> width: this mixed assignment, beside --bits if given."
)
_report_option = click.option(
    "--report", type=OUTPUT_FILE, metavar="FILE", help="Write the result as one HTML page as well."
)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlet:
    """Where a result goes: to stdout as text or JSON, and into a page where one was asked for."""

    report: Path | None
    as_json: bool

    def write(self, *, html: Callable[[], str], json: Callable[[], str], text: Callable[[], None]) -> None:
        """Render what is wanted: `html` for the page; then for stdout `json`, or else `text`, which prints itself.

        A command writes its other files before: a reader of stdout gets the result or an error, never both.

        Raises:
            OutputError: the page cannot be written.
        """
        if self.report is not None:
            replace_file(self.report, html().encode())
        if self.as_json:
            print(json(), end="")
        else:
            text()


def outlet_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--report` and `--json`, which the command gets as its argument `outlet`."""

    @_report_option
    @json_option
    @wraps(function)
    def with_outlet(*, report: Path | None, as_json: bool, **options: Any) -> Any:
        check_output_files(click.get_current_context())
        return function(outlet=Outlet(report=report, as_json=as_json), **options)

    return with_outlet


def chosen_widths(master: Path, bits: str | None, mixed: Path | None) -> tuple[WidthAssignment, ...]:
    """The widths of `--bits` and `--mixed`: the trained ones without both, the mixed one alone without `--bits`.

    Raises:
        UsageError: `bits` is no list of widths, or `mixed` names no layer or was searched for another master.
        InputFileError: `mixed` cannot be read, or is no object of widths.
        MasterError: the master is damaged, which says what is trained and highest.
    """
    if mixed is None and bits is not None:
        return parse_bits(bits)
    loaded = read_master(master)
    if mixed is None:
        return tuple(WidthAssignment(default=trained) for trained in loaded.spec.widths)
    assignment = read_mixed(mixed, highest=loaded.spec.bits, master_sha256=loaded.sha256)
    if not assignment.overrides:
        raise UsageError(
            where=f"--mixed {mixed}",
            got="no layer",
            allowed="at least one layer -> width",
            do="use --bits for uniform widths",
        )
    return (*(() if bits is None else parse_bits(bits)), assignment)


def command_line() -> tuple[str, ...]:
    """The words of this call, for the page that says how to make it again."""
    return ("bitswitch-deploy", *sys.argv[1:])


def chosen_device(address: str, ssh_config: Path | None) -> Device | None:
    """The machine of `--device`, None for this one; what happens there goes to stderr.

    Raises:
        UsageError: it is no such address, or `ssh_config` is given for this machine.
    """
    parsed = parse_address(address)
    if parsed is None and ssh_config is not None:
        raise UsageError(
            where="--ssh-config",
            got=f"{ssh_config}, and no other machine",
            allowed="beside --device ssh://HOST",
            do="leave it out, or name the machine with --device",
        )
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
