"""`bitswitch-deploy export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import click

from bitswitch_deploy.catalogue import ResolvedTarget, bundled_master, is_target_file, load_target, split_stack
from bitswitch_deploy.cli.option_types import PATH, FiniteRange
from bitswitch_deploy.cli.options import (
    chosen_widths,
    data_option,
    json_option,
    master_option,
    max_drop_option,
    mixed_option,
    progress_bar,
)
from bitswitch_deploy.lowering.approximation import EXPORTED, Approximation
from bitswitch_deploy.pipeline.exporting.export import ExportRequest, export
from bitswitch_deploy.report.export_page import print_report
from bitswitch_deploy.report.export_report import ExportReport
from bitswitch_deploy.report.json import report_to_json
from bitswitch_deploy.report.page import Page


@click.command("export")
@master_option
@click.option(
    "--target", required=True, metavar="NAME", help="Name, alias (`jetson`), NAME@STACK, or path of a file of your own."
)
@click.option("-o", "--output", type=PATH, metavar="DIR", help="Folder to make.  [default: deploy-TARGET]")
@click.option("--bits", metavar="LIST", help="Widths to export, each in 2..8.  [default: the trained ones]")
@mixed_option
@data_option
@click.option(
    "--calibration",
    type=PATH,
    metavar="PATH",
    help="Samples to calibrate ranges on, like --data.  [default: the bundled ones, or 512 of --data]",
)
@max_drop_option
@click.option(
    "--approximate",
    "approximations",
    multiple=True,
    type=click.Choice([each.value for each in Approximation if each not in EXPORTED]),
    help="Trade exactness for speed where it agrees with the trained network; can be given more than once.",
)
@click.option(
    "--min-agreement",
    type=FiniteRange(min=0, max=100),
    metavar="PERCENT",
    help="Samples with the trained network's prediction that an approximation must leave, whatever labels say.  "
    "[default: the target's, or less where labels exclude that top-1 falls by the rest to 100]",
)
@click.option("--strict", is_flag=True, help="Approximate nothing, and refuse any lowering that is not exact.")
@click.option(
    "--shared-weights",
    is_flag=True,
    help="Store the int8 weights once; each graph derives its own, and is compressed (.onnx.gz).",
)
@click.option("--force", is_flag=True, help="Replace a package that exists.")
@json_option
def command(
    master: Path | None,
    target: str,
    output: Path | None,
    bits: str | None,
    mixed: Path | None,
    as_json: bool,
    approximations: tuple[str, ...],
    **options: object,
) -> int:
    """Turn a master into a validated package for one target.

    Writes one ONNX graph for each width, the engines or the script that builds them on the device, the validation
    results and a manifest. The default master is a network for 8x8 digits that ships with the package.
    """
    resolved = load_target(target)
    path = master if master is not None else bundled_master()
    request = ExportRequest(
        master=path,
        target=resolved,
        output=output if output is not None else Path(f"deploy-{resolved.target.name}"),
        widths=chosen_widths(path, bits, mixed),
        approximations=frozenset(map(Approximation, approximations)),
        command=_command(
            master, _target_words(target, resolved), bits, mixed, {**options, "approximations": approximations}
        ),
        **options,  # type: ignore[arg-type]
    )
    with progress_bar() as progress:
        report = export(request, progress)
    if as_json:
        print(report_to_json(report), end="")
    else:
        print_report(report, Page(sys.stdout))
    return exit_code(report)


def exit_code(report: ExportReport) -> int:
    """1 when a width lost more accuracy than allowed, else 0."""
    return int(any(verdict.verdict == "failed" for row in report.widths for verdict in row.verdicts))


def _target_words(named: str, resolved: ResolvedTarget) -> str:
    """The target with its stack, which an alias or a name alone does not say on every machine and in every release."""
    file = split_stack(named)[0]
    target = resolved.target
    return f"{file if is_target_file(file) else target.name}@{target.stack.name}"


def _command(
    master: Path | None, target: str, bits: str | None, mixed: Path | None, options: dict[str, object]
) -> tuple[str, ...]:
    """The command line that makes the same package again; --output and --force are the caller's."""
    named: dict[str, object] = {"--master": master, "--target": target, "--bits": bits, "--mixed": mixed}
    named |= {"--data": options["data"], "--calibration": options["calibration"], "--max-drop": options["max_drop"]}
    named |= {"--min-agreement": options["min_agreement"]}
    words = [word for flag, value in named.items() if value is not None for word in (flag, str(value))]
    words += [word for name in cast("tuple[str, ...]", options["approximations"]) for word in ("--approximate", name)]
    switches = (("strict", "--strict"), ("shared_weights", "--shared-weights"))
    return ("bitswitch-deploy", "export", *words, *(flag for name, flag in switches if options[name]))
