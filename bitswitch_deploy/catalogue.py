"""Finds what ships with the package and turns the word after `--target` into a Target.

A wheel carries `targets/` and `calibration/digits/` in `bitswitch_deploy/_data`; a clone or an editable install has
them beside the package.
"""

from __future__ import annotations

import difflib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from bitswitch_deploy.board import board_names, l4t_version
from bitswitch_deploy.errors import TargetFileError, UnavailableError, UsageError
from bitswitch_deploy.target import Target, version_matches
from bitswitch_deploy.yaml_file import read_yaml

ALIASES = ("cpu", "jetson")

_PACKAGE = Path(__file__).resolve().parent
# What `jetson` means away from a board: its limits fit every Orin module and the whole family has the same graphs.
_JETSON_ELSEWHERE = "jetson-orin-nano"
# how systems call an architecture, and how targets do
_ARCHITECTURES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedTarget:
    """A target and, where an alias had to be decided, the sentence that tells the user how."""

    target: Target
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSet:
    """The two files of a bundled data set."""

    train: Path
    test: Path


def bundled_file(relative: str) -> Path:
    """Path of a file that ships with the package; `relative` is its place in the repository.

    Raises:
        UnavailableError: this installation does not hold it.
    """
    path = _bundled_root() / relative
    if not path.is_file():
        raise UnavailableError(
            where=relative,
            got="this installation does not hold the file",
            allowed="the files that ship with bitswitch-deploy",
            do="reinstall: pip install --force-reinstall bitswitch-deploy",
        )
    return path


def bundled_master() -> Path:
    """Path of the small trained master that lets every command run without a file of one's own.

    Raises:
        UnavailableError: this installation does not hold it.
    """
    return bundled_file("calibration/digits/digits.safetensors")


def sample_set(name: str) -> SampleSet | None:
    """The bundled data set of this name, or None. `name` may come out of a master and is not trusted."""
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
        return None
    folder = _bundled_root() / "calibration" / name
    files = SampleSet(train=folder / "train.npz", test=folder / "test.npz")
    return files if files.train.is_file() and files.test.is_file() else None


def target_names() -> tuple[str, ...]:
    """Names of the bundled targets, sorted."""
    return tuple(sorted(path.stem for path in (_bundled_root() / "targets").glob("*.yaml")))


def load_target(text: str, *, root: Path = Path("/")) -> ResolvedTarget:
    """The target that `text` means: a name, an alias or the path of a YAML file, each with `@stack` or without.

    root: where /proc and /etc of the board are looked for.

    Raises:
        UsageError: no target or stack of this name.
        TargetFileError: the file is missing, not YAML, or contradicts itself.
        UnavailableError: `jetson` or `cpu` was asked for on a board or processor that no profile describes.
    """
    name, stack = split_stack(text)
    if is_target_file(name):
        resolved = ResolvedTarget(target=_read_target(Path(name), source=name))
    elif name == "cpu":
        resolved = _host_cpu()
    elif name == "jetson":
        return _jetson(root, stack)
    elif name in target_names():
        resolved = ResolvedTarget(target=_bundled_target(name))
    else:
        raise _unknown(name)
    if stack is None:
        return resolved
    return ResolvedTarget(target=resolved.target.with_stack(stack), note=resolved.note)


def is_target_file(name: str) -> bool:
    """Whether a target without its stack is the path of a file."""
    return name.endswith((".yaml", ".yml")) or os.sep in name or "/" in name


def split_stack(text: str) -> tuple[str, str | None]:
    """`name@stack` in two; an @ inside a path is part of the path."""
    name, at, stack = text.rpartition("@")
    return (name, stack) if at and "/" not in stack and not stack.endswith((".yaml", ".yml")) else (text, None)


def _unknown(name: str) -> UsageError:
    known = (*ALIASES, *target_names())
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return UsageError(
        where="target",
        got=f"{name!r} is not a target" + (f" (did you mean {close[0]!r}?)" if close else ""),
        allowed=", ".join(known) + ", or the path of a YAML file",
        do="name one of these, or describe the device in a file of its own: targets/README.md",
    )


def _bundled_root() -> Path:
    data = _PACKAGE / "_data"
    return data if data.is_dir() else _PACKAGE.parent


def _bundled_target(name: str) -> Target:
    relative = f"targets/{name}.yaml"
    return _read_target(bundled_file(relative), source=relative)


def _bundled_family(family: str) -> list[Target]:
    targets = [_bundled_target(name) for name in target_names()]
    return [target for target in targets if target.family == family]


# --- aliases -------------------------------------------------------------------------------------------------------


def host_architecture() -> str:
    """The architecture of this machine as targets name it; one that none of them has by its own name."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine.lower(), machine)


def _host_cpu() -> ResolvedTarget:
    arch = host_architecture()
    targets = _bundled_family("cpu")
    for target in targets:
        if target.arch == arch:
            return ResolvedTarget(target=target, note=f"cpu: this host is {arch}, using {target.name}")
    raise UnavailableError(
        where="target cpu",
        got=f"no CPU profile for {platform.machine()!r}",
        allowed=", ".join(f"{target.name} ({target.arch})" for target in targets),
        do="name one of these, or the path of a YAML file",
    )


def _jetson(root: Path, stack: str | None) -> ResolvedTarget:
    """The board under `root`; on any other host `_JETSON_ELSEWHERE`."""
    names = board_names(root)
    if not any(name.startswith("tegra") for name in names):
        target = _bundled_target(_JETSON_ELSEWHERE)
        target = target.with_stack(stack) if stack is not None else target
        why = "its graphs and limits fit every Orin module"
        note = f"jetson: this host is not a Jetson, using {target.name}@{target.stack.name}: {why}"
        return ResolvedTarget(target=target, note=note)
    target, how = _match_board(names)
    l4t = l4t_version(root)
    if stack is not None:
        target = target.with_stack(stack)
    elif l4t:
        target = target.with_stack(_stack_for(target, l4t))
    found = f"L4T {l4t}" if l4t else "L4T unknown (/etc/nv_tegra_release is missing or unreadable)"
    return ResolvedTarget(target=target, note=f"jetson: {how}, {found}, using {target.name}@{target.stack.name}")


def _match_board(names: list[str]) -> tuple[Target, str]:
    """The bundled target of a board, and how it was recognised."""
    board = ", ".join(dict.fromkeys(names))
    of_chip = [target for target in _bundled_family("jetson") if set(target.detect.compatible) & set(names)]
    for target in of_chip:
        if set(target.detect.part_numbers) & set(names):
            return target, f"found {target.title}"
    # Members of a family differ in limits, not in graphs.
    for target in of_chip:
        if len(of_chip) == 1 or target.name == _JETSON_ELSEWHERE:
            return target, f"module not known ({board}), taken for the nearest"
    raise UnavailableError(
        where="target jetson",
        got=f"no bundled target for this board ({board})",
        allowed=", ".join(target.name for target in of_chip or _bundled_family("jetson")),
        do="name the nearest of these, or describe the board in a YAML file: targets/README.md",
    )


def _stack_for(target: Target, l4t: str) -> str:
    for stack in target.stacks:
        if stack.l4t and version_matches(stack.l4t, l4t):
            return stack.name
    raise UnavailableError(
        where="target jetson",
        got=f"{target.name} has no stack for L4T {l4t}",
        allowed=", ".join(f"{target.name}@{stack.name} (L4T {stack.l4t})" for stack in target.stacks if stack.l4t),
        do="name the nearest of these",
    )


# --- files ---------------------------------------------------------------------------------------------------------


def _read_target(path: Path, *, source: str) -> Target:
    return Target.from_mapping(read_yaml(path, source=source, refuse=_bad_file), source=source)


def _bad_file(where: str, got: str, allowed: str) -> TargetFileError:
    return TargetFileError(where=where, got=got, allowed=allowed, do="correct the file; targets/README.md shows one")
