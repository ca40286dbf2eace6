"""Files that a command writes when its work is done: never over what it reads, nor over masters, packages and data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click

from bitswitch_deploy.cli.option_types import PATH, OutputFile
from bitswitch_deploy.errors import BitswitchError, UsageError
from bitswitch_deploy.package.manifest import MANIFEST
from bitswitch_deploy.package.verify import read_manifest

# HTML and XML, JSON
_RESULTS_BEGIN_WITH = (b"<", b"{", b"[")
_INDEX_OF_A_MASTER = ".safetensors.index.json"


def check_output_files(context: click.Context) -> None:
    """Refuse two options that write one file, and a file that is an input, of a package, or neither HTML, XML nor JSON.

    Raises:
        UsageError: naming the option and what it would destroy.
    """
    given = [(option, path, _real(path), is_output) for option, path, is_output in _paths(context)]
    inputs = {place: option for option, _, place, is_output in given if not is_output}
    written: dict[Path, str] = {}
    for option, path, place, is_output in given:
        if not is_output:
            continue
        other = written.setdefault(place, option)
        if other != option:
            raise _refusal(option, f"{path}, which is the file of {other}", "a file of its own for each")
        if place in inputs:
            raise _refusal(option, f"{path}, which is the file of {inputs[place]}", "a file that is not read")
        if _is_of_a_package(place):
            raise _refusal(option, f"{path}, a file of a package", "a file that no manifest lists")
        if path.is_file() and not _is_result(path):
            allowed = "a new file, or one that holds a result: HTML, XML or JSON"
            raise _refusal(option, f"{path}, which is there and holds something else", allowed)


def _real(path: Path) -> Path:
    # unlike Path.resolve it takes a loop of links for a name
    return Path(os.path.realpath(path))


def _is_of_a_package(place: Path) -> bool:
    """Whether it is a manifest, or a manifest above it lists it."""
    for folder in place.parents if place.exists() else ():
        if (folder / MANIFEST).is_file():
            try:
                manifest = read_manifest(folder)
            except BitswitchError:
                continue
            if place.relative_to(folder).as_posix() in (MANIFEST, *(entry.path for entry in manifest.files)):
                return True
    return False


def _paths(context: click.Context) -> Iterator[tuple[str, Path, bool]]:
    """(option or argument, path, whether it is written) of each path that was given or is the default."""
    for parameter in context.command.params:
        is_output = isinstance(parameter.type, OutputFile)
        if not is_output and parameter.type is not PATH:
            continue
        is_option = isinstance(parameter, click.Option)
        name = max(parameter.opts, key=len) if is_option else str(parameter.human_readable_name)
        value = context.params.get(parameter.name or "")
        for path in value if isinstance(value, tuple) else (value,):
            if path is not None:
                yield name, Path(path), is_output


def _is_result(path: Path) -> bool:
    if path.is_relative_to("/dev"):
        # where the shell sends it
        return True
    if path.name.endswith(_INDEX_OF_A_MASTER):
        return False
    try:
        with path.open("rb") as file:
            begin = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError:
        # the command says what it cannot read or replace
        return True
    return not begin or begin.startswith(_RESULTS_BEGIN_WITH)


def _refusal(option: str, got: str, allowed: str) -> UsageError:
    return UsageError(where=option, got=got, allowed=allowed, do="name another file")
