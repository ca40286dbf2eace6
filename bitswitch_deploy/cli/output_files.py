"""Files that a command writes when its work is done: never over what it reads, nor over what no command has written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from bitswitch_deploy.cli.option_types import PATH, OutputFile
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.package.manifest import MANIFEST

# HTML and XML, JSON
_RESULTS_BEGIN_WITH = (b"<", b"{", b"[")


def check_output_files(context: click.Context) -> None:
    """Refuse two options that write one file, and a file that is an input, part of a package, or no result.

    A result of before is replaced.

    Raises:
        UsageError: naming the option and what it would destroy.
    """
    given = list(_paths(context))
    inputs = {path.resolve(): option for option, path, is_output in given if not is_output}
    written: dict[Path, str] = {}
    for option, path, is_output in given:
        if not is_output:
            continue
        place = path.resolve()
        other = written.setdefault(place, option)
        if other != option:
            raise _refusal(option, f"{path}, which is the file of {other}", "a file of its own for each")
        if place in inputs:
            raise _refusal(option, f"{path}, which is the file of {inputs[place]}", "a file that is not read")
        package = next((each for each in inputs if place.is_relative_to(each) and (each / MANIFEST).is_file()), None)
        if package is not None and place.exists():
            raise _refusal(option, f"{path}, a file of the package", "a new file, or one outside of the package")
        if path.is_file() and not _is_result(path):
            allowed = "a new file, or one that holds a result: HTML, XML or JSON"
            raise _refusal(option, f"{path}, which is there and holds something else", allowed)


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
    try:
        with path.open("rb") as file:
            begin = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError:
        # the command says what it cannot read or replace
        return True
    return not begin or begin.startswith(_RESULTS_BEGIN_WITH)


def _refusal(option: str, got: str, allowed: str) -> UsageError:
    return UsageError(where=option, got=got, allowed=allowed, do="name another file")
