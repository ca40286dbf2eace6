"""`bitswitch-deploy lint`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bitswitch_deploy.cli.option_types import PATH
from bitswitch_deploy.cli.options import json_option
from bitswitch_deploy.graph.lint.finding import ENGINES
from bitswitch_deploy.graph.lint.lint import lint
from bitswitch_deploy.graph.lint.reading import read_graph
from bitswitch_deploy.report.json import to_json
from bitswitch_deploy.report.lint_page import print_lint
from bitswitch_deploy.report.page import Page


@click.command("lint")
@click.argument("graph", type=PATH)
@click.option(
    "--engine",
    type=click.Choice([*ENGINES, "all"]),
    default="all",
    show_default=True,
    help="Whose rules to apply.",
)
@json_option
def command(graph: Path, engine: str, as_json: bool) -> int:
    """Say what in a Q/DQ graph an engine refuses, misreads or leaves in float, and how to mend it.

    GRAPH is any ONNX file, whoever wrote it, or a compressed one (.onnx.gz). Exits with 1 when there is an error among
    the findings; warnings exit with 0: the graph is right and slow, or fragile.
    """
    engines = tuple(name for name in ENGINES if engine in (name, "all"))
    result = lint(read_graph(graph), engines=engines)
    if as_json:
        print(to_json("bitswitch-lint/1", result))
    else:
        print_lint(result, Page(sys.stdout))
    return int(bool(result.errors))
