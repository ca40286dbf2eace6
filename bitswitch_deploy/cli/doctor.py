"""`bitswitch-deploy doctor`."""

from __future__ import annotations

import sys

import click

from bitswitch_deploy.cli.options import json_option, progress_bar
from bitswitch_deploy.pipeline.doctor import doctor
from bitswitch_deploy.report.doctor_page import print_doctor
from bitswitch_deploy.report.json import to_json
from bitswitch_deploy.report.page import Page


@click.command("doctor")
@click.option("--self-test", is_flag=True, help="Run a self-test as well, to send in with a bug report.")
@json_option
def command(self_test: bool, as_json: bool) -> int:
    """Say what works on this machine, what is missing and how to get it.

    With --self-test it exports, builds and runs the bundled network, which takes minutes on a board, and prints
    versions, what works and what was measured, without any name or path of yours. Exits with 1 where something is
    broken.
    """
    with progress_bar() as progress:
        report = doctor(self_test=self_test, progress=progress)
    if as_json:
        print(to_json("bitswitch-doctor/1", report))
    else:
        print_doctor(report, Page(sys.stdout))
    return 0 if report.is_ok else 1
