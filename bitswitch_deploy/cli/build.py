"""`bitswitch-deploy build`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from bitswitch_deploy.cli.option_types import PATH
from bitswitch_deploy.cli.options import (
    chosen_device,
    device_option,
    json_option,
    package_target_option,
    progress_bar,
    ssh_config_option,
)
from bitswitch_deploy.pipeline.building.build import BuildRequest, build
from bitswitch_deploy.pipeline.building.engine_recipe import MAX_TIMEOUT_MIN, EngineOptions
from bitswitch_deploy.pipeline.building.remote import build_there
from bitswitch_deploy.report.build_page import print_build
from bitswitch_deploy.report.json import to_json
from bitswitch_deploy.report.page import Page
from bitswitch_deploy.target import MAX_WORKSPACE_MB


@click.command("build")
@click.argument("package", type=PATH)
@package_target_option
@click.option("--force", is_flag=True, help="Build engines again that are up to date.")
@click.option(
    "--fp32", is_flag=True, help="Neither float16 nor TF32 in the quantized engines; the reference stays float16."
)
@click.option("--dla", is_flag=True, help="Run what it can on DLA core 0, batch 1, and the rest on the GPU.")
@click.option(
    "--workspace",
    "workspace_mb",
    type=click.IntRange(1, MAX_WORKSPACE_MB),
    metavar="MB",
    help="Memory for trying tactics.",
)
@click.option(
    "--timeout",
    "timeout_min",
    type=click.IntRange(1, MAX_TIMEOUT_MIN),
    default=120,
    show_default=True,
    metavar="MINUTES",
    help="Give up an engine that takes longer.",
)
@click.option("--timing-cache", type=PATH, metavar="FILE", help="Another one than that of this device.")
@device_option
@ssh_config_option
@json_option
def command(
    package: Path,
    target: str | None,
    force: bool,
    as_json: bool,
    timing_cache: Path | None,
    **options: Any,
) -> None:
    """Build the engines of a package: on the Jetson for a Jetson, here or over ssh, anywhere for TensorRT for RTX.

    An FP16 engine of the float network is built beside them, to compare with. Engines that are up to date stay.
    """
    device = chosen_device(options.pop("device"), options.pop("ssh_config"))
    wanted = EngineOptions(**options)
    request = BuildRequest(package=package, target=target, force=force, options=wanted, timing_cache=timing_cache)
    with progress_bar() as progress:
        report = build(request, progress) if device is None else build_there(request, device, progress)
    if as_json:
        print(to_json("bitswitch-build/2", report))
    else:
        print_build(report, Page(sys.stdout))
