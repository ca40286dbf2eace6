"""`bitswitch-deploy build`."""

from __future__ import annotations

from pathlib import Path

import click

from bitswitch_deploy.cli.options import PATH, json_option, progress_bar
from bitswitch_deploy.pipeline.build import build
from bitswitch_deploy.report.json import to_json


@click.command("build")
@click.argument("package", type=PATH)
@click.option("--target", metavar="NAME", help="Profile of the package, where it was made for one of your own.")
@click.option("--force", is_flag=True, help="Build engines again that exist.")
@json_option
def command(package: Path, target: str | None, force: bool, as_json: bool) -> None:
    """Build the engines of a package on this machine: on the Jetson for a Jetson, anywhere for TensorRT for RTX."""
    with progress_bar() as progress:
        result = build(package, target=target, force=force, progress=progress)
    if as_json:
        print(to_json("bitswitch-build/1", result))
    else:
        for engine in result.engines:
            click.echo(f"{engine.label:6} {engine.size_bytes:>12,} bytes  {engine.path}  ({engine.builder})")
