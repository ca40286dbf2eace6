"""`bitswitch-deploy blame`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.catalogue import bundled_master, load_target
from bitswitch_deploy.cli.options import (
    PATH,
    command_line,
    data_option,
    json_option,
    master_option,
    progress_bar,
    report_option,
)
from bitswitch_deploy.diagnosis.blame_result import BlameResult
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.pipeline.blame import blame_master, blame_package
from bitswitch_deploy.pipeline.inputs import parse_bits
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.report.blame_page import SHOWN_LAYERS, print_blame
from bitswitch_deploy.report.html.page import HtmlContent, render_html
from bitswitch_deploy.report.json import to_json

_SAMPLES = 256


@click.command("blame")
@click.argument("package", type=PATH, required=False)
@master_option
@click.option("--target", metavar="NAME", help="Without a package: what to lower the master for.")
@click.option("--bits", metavar="LIST", help="Without a package: widths.  [default: 8,6,4,2]")
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
@report_option
@json_option
def command(
    package: Path | None,
    master: Path | None,
    target: str | None,
    bits: str | None,
    data: Path | None,
    samples: int,
    every: bool,
    report: Path | None,
    as_json: bool,
) -> int:
    """Say which layer loses accuracy, and why: in quantization, and on the way to the target.

    Takes a package, or with --target a master. Each layer is quantized alone and together with all before it; each part
    of the lowered graph is given what the canonical graph computes before it. Exits with 1 when a lowered graph
    computes something that the canonical graph does not.
    """
    with progress_bar() as progress:
        if package is not None:
            if bits is not None:
                raise _refusal("--bits with a package", "leave out --bits: all graphs of a package are compared")
            result = blame_package(package, master=master, target=target, data=data, samples=samples, progress=progress)
        else:
            result = _blame_master(master, target, bits, data, samples, progress)
    if report is not None:
        replace_file(report, render_html(_content(result)).encode())
    if as_json:
        print(to_json("bitswitch-blame/1", result))
    else:
        print_blame(result, sys.stdout, shown=sys.maxsize if every else SHOWN_LAYERS)
    return int(result.has_fault)


def _blame_master(
    master: Path | None, target: str | None, bits: str | None, data: Path | None, samples: int, progress: Progress
) -> BlameResult:
    if target is None:
        raise _refusal("neither a package nor --target", "name one of them")
    path = master if master is not None else bundled_master()
    widths = parse_bits(bits or "8,6,4,2")
    return blame_master(path, load_target(target), widths, data=data, samples=samples, progress=progress)


def _content(result: BlameResult) -> HtmlContent:
    return HtmlContent(
        title=f"Layers of {Path(result.subject).name} for {result.target}",
        blame=result,
        codes=tuple((width.label, width.statistics) for width in result.widths),
        command=command_line(),
    )


def _refusal(got: str, do: str) -> UsageError:
    return UsageError(where="blame", got=got, allowed="PACKAGE, or --target with --master and --bits", do=do)
