"""`bitswitch-deploy verify`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bitswitch_deploy.cli.option_types import PATH
from bitswitch_deploy.cli.options import json_option
from bitswitch_deploy.package.verify import verify_package
from bitswitch_deploy.report.json import to_json
from bitswitch_deploy.report.page import Page


@click.command("verify")
@click.argument("package", type=PATH)
@json_option
def command(package: Path, as_json: bool) -> int:
    """Check every file of a package against its manifest. Exits with 1 when one is missing, changed or extra."""
    result = verify_package(package)
    if as_json:
        print(to_json("bitswitch-verify/1", result), end="")
    else:
        page = Page(sys.stdout)
        for state in result.files:
            page.line(f"{state.state:10} {state.path}")
        page.line(f"{package}: {'complete and unchanged' if result.is_ok else 'NOT as exported'}")
    return 0 if result.is_ok else 1
