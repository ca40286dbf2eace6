"""`bitswitch-deploy validate`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bitswitch_deploy.cli.option_types import PATH
from bitswitch_deploy.cli.options import (
    data_option,
    json_option,
    max_drop_option,
    package_master_option,
    package_target_option,
    progress_bar,
)
from bitswitch_deploy.pipeline.revalidate import revalidate
from bitswitch_deploy.report.json import to_json
from bitswitch_deploy.report.page import Page
from bitswitch_deploy.report.validation_page import print_validation


@click.command("validate")
@click.argument("package", type=PATH)
@package_master_option
@package_target_option
@data_option
@max_drop_option
@json_option
def command(
    package: Path, master: Path | None, target: str | None, data: Path | None, max_drop: float, as_json: bool
) -> int:
    """Measure the graphs of a package again, on this machine and on other data if you like.

    Exits with 1 when a width lost more top-1 than --max-drop.
    """
    with progress_bar() as progress:
        outcome = revalidate(package, master=master, target=target, data=data, max_drop=max_drop, progress=progress)
    if as_json:
        print(to_json("bitswitch-validation/1", outcome), end="")
    else:
        print_validation(outcome.result, outcome.verdicts, Page(sys.stdout))
    return int(any(verdict.verdict == "failed" for verdict in outcome.verdicts))
