"""`bitswitch-deploy blame`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from bitswitch_deploy.catalogue import bundled_master, load_target
from bitswitch_deploy.cli.option_types import PATH
from bitswitch_deploy.cli.options import (
    Outlet,
    chosen_widths,
    command_line,
    data_option,
    mixed_option,
    outlet_options,
    package_master_option,
    progress_bar,
)
from bitswitch_deploy.diagnosis.blame_result import BlameResult
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.pipeline.blame import blame_master, blame_package
from bitswitch_deploy.report.blame_page import SHOWN_LAYERS, print_blame
from bitswitch_deploy.report.html.blame import blame_html
from bitswitch_deploy.report.json import to_json
from bitswitch_deploy.report.page import Page

_SAMPLES = 256


@click.command("blame")
@click.argument("package", type=PATH, required=False)
@package_master_option
@click.option(
    "--target",
    metavar="NAME",
    help="Without a package: what to lower the master for. With one made for a target of your own: its file.",
)
@click.option("--bits", metavar="LIST", help="Without a package: widths.  [default: the trained ones]")
@mixed_option
@data_option
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=_SAMPLES,
    show_default=True,
    metavar="N",
    help="Samples to run, evenly spaced over the data.",
)
@click.option("--all", "every", is_flag=True, help="Show every layer, not only those that lose most.")
@outlet_options
def command(
    package: Path | None, bits: str | None, mixed: Path | None, every: bool, outlet: Outlet, **options: Any
) -> int:
    """Say which layer loses accuracy, and why: in quantization, and on the way to the target.

    Takes a package, or with --target a master. Each layer is quantized alone and together with all before it; each part
    of the lowered graph is given what the canonical graph computes before it. Exits with 1 when a lowered graph
    computes something that the canonical graph does not.
    """
    if package is not None and (bits is not None or mixed is not None):
        raise _refusal("--bits or --mixed with a package", "leave them out: all graphs of a package are compared")
    with progress_bar() as progress:
        if package is not None:
            result = blame_package(package, **options, progress=progress)
        else:
            result = _blame_master(bits, mixed, **options, progress=progress)
    outlet.write(
        html=lambda: blame_html(result, command_line()),
        json=lambda: to_json("bitswitch-blame/1", result),
        text=lambda: print_blame(result, Page(sys.stdout), shown=sys.maxsize if every else SHOWN_LAYERS),
    )
    return int(result.has_fault)


def _blame_master(
    bits: str | None, mixed: Path | None, *, master: Path | None, target: str | None, **options: Any
) -> BlameResult:
    if target is None:
        raise _refusal("neither a package nor --target", "name one of them")
    path = master if master is not None else bundled_master()
    return blame_master(path, load_target(target), chosen_widths(path, bits, mixed), **options)


def _refusal(got: str, do: str) -> UsageError:
    return UsageError(where="blame", got=got, allowed="PACKAGE, or --target with --master, --bits and --mixed", do=do)
