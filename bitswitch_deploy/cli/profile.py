"""`bitswitch-deploy profile`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.cli.option_types import OUTPUT_FILE, PATH, FiniteRange
from bitswitch_deploy.cli.options import (
    Outlet,
    chosen_device,
    command_line,
    device_option,
    outlet_options,
    package_master_option,
    package_target_option,
    progress_bar,
    ssh_config_option,
)
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.pipeline.package_results import package_results
from bitswitch_deploy.pipeline.profiling.profile import profile
from bitswitch_deploy.pipeline.profiling.remote import profile_there
from bitswitch_deploy.pipeline.profiling.request import ENGINES, ProfileRequest
from bitswitch_deploy.profiling.budget import parse_latency_budget
from bitswitch_deploy.profiling.result import SCHEMA
from bitswitch_deploy.profiling.statistics import MIN_TURNS
from bitswitch_deploy.report.html.profile import profile_html
from bitswitch_deploy.report.json import to_json
from bitswitch_deploy.report.page import Page
from bitswitch_deploy.report.profile_page import print_profile

_A_DAY_S = 86_400


@click.command("profile")
@click.argument("package", type=PATH)
@click.option("--engine", metavar="NAME", help=f"One of {', '.join(ENGINES)}.  [default: that of the package]")
@package_master_option
@package_target_option
@click.option("--widths", metavar="LIST", help="Widths to time, such as 8,4 or mixed.  [default: all]")
@click.option("--batch", default="1", show_default=True, metavar="LIST", help="Batch sizes, such as 1,8.")
@click.option("--threads", type=click.IntRange(1, 4096), help="Threads inside one operator.  [default: every core]")
@click.option(
    "--turns", type=click.IntRange(min=MIN_TURNS), help="Turns for each candidate: 50 ms or a run, 1 s with trtexec."
)
@click.option(
    "--duration",
    "duration_s",
    type=FiniteRange(min=0, min_open=True, max=_A_DAY_S),
    metavar="SECONDS",
    help="Time for each candidate, 6 turns at least.  [default: what the target's profile asks for, 20 or 30]",
)
@click.option("--budget", metavar="TIME", help="Exit with 1 when the p95 of a width is above it, such as 5ms.")
@click.option(
    "--trace", type=OUTPUT_FILE, metavar="FILE", help="Write a timeline for chrome://tracing or ui.perfetto.dev."
)
@click.option("--latency-table", type=OUTPUT_FILE, metavar="FILE", help="Write the time of each layer at each width.")
@click.option("--trust", is_flag=True, help="Time engines that bitswitch-deploy has no record of: they are code.")
@click.option("-o", "--output", type=OUTPUT_FILE, metavar="FILE", help="Write the result as JSON here as well.")
@device_option
@ssh_config_option
@outlet_options
def command(
    package: Path,
    widths: str | None,
    batch: str,
    budget: str | None,
    output: Path | None,
    outlet: Outlet,
    **options: Any,
) -> int:
    """Time every width of a package, here or over ssh, in turns, beside the float network it was made from.

    Without --duration each width and the float network take 20 s on a CPU and 30 s on a GPU, and a part of that as
    warm-up: two to four minutes for four widths, with trtexec, which starts anew for each turn, several times that.
    For a first look: --duration 2.

    Exits with 1 when a width misses --budget. On a board: in the power mode and with the clocks that you will use.
    """
    device = chosen_device(options.pop("device"), options.pop("ssh_config"))
    request = ProfileRequest(
        package=package,
        widths=_widths(widths),
        batches=_batches(batch),
        budget_ms=parse_latency_budget(budget) if budget is not None else None,
        **options,
    )
    with progress_bar() as progress:
        result = profile(request, progress) if device is None else profile_there(request, device, progress)
    if output is not None:
        replace_file(output, to_json(SCHEMA, result).encode())
    outlet.write(
        html=lambda: profile_html(result, package_results(package), command_line()),
        json=lambda: to_json(SCHEMA, result),
        text=lambda: print_profile(result, Page(sys.stdout)),
    )
    return int(not result.is_within_budget)


def _widths(text: str | None) -> tuple[str, ...] | None:
    """`8,w4,mixed` as labels."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    return tuple(f"w{word}" if word.isdecimal() else word for word in words)


def _batches(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    sizes = [int(word) for word in words if word.isdecimal() and len(word) < 7]
    if len(sizes) != len(words) or len(set(sizes)) != len(sizes) or min(sizes, default=0) < 1:
        allowed = "different numbers above 0, separated by commas"
        raise UsageError(where="--batch", got=repr(text), allowed=allowed, do="write for example --batch 1,8")
    return tuple(sizes)
