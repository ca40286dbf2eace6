"""`bitswitch-deploy targets list|show`."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import click

from bitswitch_deploy.catalogue import ALIASES, load_target, target_names
from bitswitch_deploy.cli.options import json_option
from bitswitch_deploy.report.json import to_json
from bitswitch_deploy.report.page import Page
from bitswitch_deploy.report.target_page import print_target, print_targets
from bitswitch_deploy.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetList:
    """Every target that ships with the package, and the aliases."""

    targets: tuple[Target, ...]
    aliases: tuple[str, ...]


@click.group("targets")
def command() -> None:
    """List the targets that ship with the package, or show one."""


@command.command("list")
@json_option
def list_targets(as_json: bool) -> None:
    """List every target with its engine and stacks."""
    listed = TargetList(targets=tuple(load_target(name).target for name in target_names()), aliases=tuple(ALIASES))
    if as_json:
        print(to_json("bitswitch-targets/1", listed))
    else:
        print_targets(listed.targets, listed.aliases, Page(sys.stdout))


@command.command("show")
@click.argument("name")
@json_option
def show_target(name: str, as_json: bool) -> None:
    """Show one target: name, alias, NAME@STACK or path of a file of your own."""
    resolved = load_target(name)
    if as_json:
        print(to_json("bitswitch-target-shown/1", resolved))
    else:
        print_target(resolved.target, resolved.note, Page(sys.stdout))
