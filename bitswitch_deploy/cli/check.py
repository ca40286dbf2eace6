"""`bitswitch-deploy check`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.cli.option_types import OUTPUT_FILE, PATH, FiniteRange
from bitswitch_deploy.cli.options import Outlet, command_line, outlet_options, progress_bar
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.gate.config import DEFAULT_NAME, CheckConfig, read_config
from bitswitch_deploy.gate.executors import local_executor, ray_executor
from bitswitch_deploy.gate.result import CheckResult
from bitswitch_deploy.pipeline.checking.check import check
from bitswitch_deploy.pipeline.checking.jobs import CheckRequest
from bitswitch_deploy.report.check_page import print_check
from bitswitch_deploy.report.github import annotation_lines, step_summary
from bitswitch_deploy.report.html.check import check_html
from bitswitch_deploy.report.json import to_json
from bitswitch_deploy.report.junit import check_to_junit
from bitswitch_deploy.report.page import Page

_CACHE = ".bitswitch-cache"


@click.command("check")
@click.argument("config", type=PATH, default=Path(DEFAULT_NAME))
@click.option("--update-baseline", is_flag=True, help="Record what comes out as the baseline, and judge nothing.")
@click.option(
    "--max-drop",
    type=FiniteRange(min=0),
    metavar="POINTS",
    help="What a case may lose.  [default: the configuration's]",
)
@click.option(
    "--effect",
    type=FiniteRange(min=0, min_open=True),
    metavar="POINTS",
    help="What must not be missed beyond that.  [default: likewise]",
)
@click.option("--require-proof", is_flag=True, help="Exit with 1 as well where there are too few samples to tell.")
@click.option("--junit", type=OUTPUT_FILE, metavar="FILE", help="Write the cases as JUnit XML as well.")
@click.option("--cache", type=PATH, metavar="DIR", help=f"Outcomes by content.  [default: {_CACHE} beside CONFIG]")
@click.option("--ray-address", metavar="ADDRESS", help="Evaluate on a Ray cluster: auto, HOST:PORT, or local.")
@outlet_options
def command(
    config: Path,
    max_drop: float | None,
    effect: float | None,
    junit: Path | None,
    ray_address: str | None,
    outlet: Outlet,
    **options: Any,
) -> int:
    """Say whether accuracy has regressed since the baseline, with statistics instead of thresholds.

    CONFIG names masters, targets, widths, data, metric, limits and the baseline file. Masters are lowered here; graphs
    for TensorRT are judged without their device. Exits with 1 when a case regressed; with 0 when none is shown to, and
    when there are too few samples to tell, unless --require-proof.
    """
    checked = read_config(config)
    _keep(config.parent / checked.baseline, outputs={"--junit": junit, "--report": outlet.report})
    request = CheckRequest(
        config=_with_limits(checked, max_drop, effect),
        folder=config.parent,
        cache=options.pop("cache") or config.parent / _CACHE,
        **options,
    )
    workers = local_executor() if ray_address is None else ray_executor(ray_address)
    with progress_bar() as progress, workers as executor:
        result = check(request, executor, progress)
    if junit is not None:
        replace_file(junit, check_to_junit(result))
    _write_step_summary(result)
    outlet.write(
        html=lambda: check_html(result, command_line()),
        json=lambda: to_json("bitswitch-check/1", result),
        text=lambda: print_check(result, Page(sys.stdout)),
    )
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in annotation_lines(result):
            click.echo(line, err=outlet.as_json)
    return int(bool(result.failed))


def _write_step_summary(result: CheckResult) -> None:
    """Append the page of a run, where GitHub Actions wants one; without it the verdict still counts."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if not summary:
        return
    try:
        with open(summary, "a", encoding="utf-8") as file:
            file.write(step_summary(result))
    except OSError as exc:
        click.echo(f"warning: GITHUB_STEP_SUMMARY: {summary}: cannot be appended to: {exc.strerror}", err=True)


def _keep(baseline: Path, *, outputs: Mapping[str, Path | None]) -> None:
    """Refuse to write a page over the baseline, which no option names."""
    for option, path in outputs.items():
        if path is not None and os.path.realpath(path) == os.path.realpath(baseline):
            raise UsageError(
                where=f"{option} {path}",
                got="the baseline, which would be overwritten",
                allowed="a file of its own",
                do="choose another name",
            )


def _with_limits(config: CheckConfig, max_drop: float | None, effect: float | None) -> CheckConfig:
    changes = {name: value for name, value in (("max_drop", max_drop), ("effect", effect)) if value is not None}
    try:
        return replace(config, limits=replace(config.limits, **changes))
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
