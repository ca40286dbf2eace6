"""`bitswitch-deploy inspect`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bitswitch_deploy.catalogue import bundled_master
from bitswitch_deploy.cli.option_types import PATH
from bitswitch_deploy.cli.options import json_option
from bitswitch_deploy.master import describe_master, read_master
from bitswitch_deploy.report.json import to_json
from bitswitch_deploy.report.master_page import print_master
from bitswitch_deploy.report.page import Page


@click.command("inspect")
@click.argument("master", type=PATH, required=False, metavar="[MASTER]")
@json_option
def command(master: Path | None, as_json: bool) -> None:
    """Show what is in a master file: layers, widths, accuracies, provenance. Reads and checks all of it."""
    summary = describe_master(read_master(master if master is not None else bundled_master()))
    if as_json:
        print(to_json("bitswitch-master-summary/1", summary), end="")
    else:
        print_master(summary, Page(sys.stdout))
