"""YAML files as plain values, strictly: each key once, nothing that YAML 1.1 reads otherwise than it looks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 64 * 1024
# where, got, allowed -> the error of that kind of file
Refuse = Callable[[str, str, str], Exception]

_OCTAL = re.compile(r"[-+]?0[0-9_]+")
_EXPONENT = re.compile(r"[-+]?(\d+|\d+\.\d*|\.\d+)[eE][-+]?\d+")


def read_yaml(path: Path, *, source: str, refuse: Refuse) -> object:
    """The content of a small YAML file, with plain types only.

    source: what messages call the file. refuse: makes the error of place, what was found and what is allowed.

    Raises:
        Exception: what `refuse` makes: the file is missing, too large, not YAML, or not plain.
    """
    try:
        size = path.stat().st_size if path.is_file() else None
        if size is None or size > MAX_BYTES:
            missing = "is not a file" if path.exists() else "there is no such file"
            got = missing if size is None else f"{size} bytes"
            raise refuse(source, got, f"a YAML file of at most {MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        for line, got, allowed in _faults(yaml.compose(text, Loader=yaml.SafeLoader), set()):
            raise refuse(f"{source}:{line}", got, allowed)
        return _safe_load(text)
    except yaml.MarkedYAMLError as exc:
        where = f"{source}:{exc.problem_mark.line + 1}" if exc.problem_mark else source
        raise refuse(where, f"not YAML: {exc.problem}", "a YAML file of plain values") from exc
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        # ValueError: not UTF-8, a date that does not exist. RecursionError: thousands of nested brackets.
        raise refuse(source, f"not YAML: {exc}", "a YAML file of plain values, UTF-8") from exc
    except OSError as exc:
        raise refuse(source, f"cannot be read: {exc.strerror}", "a readable file") from exc


def _safe_load(text: str) -> object:
    """As that of PyYAML.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it cannot be read.
    """
    try:
        return yaml.safe_load(text)
    except (LookupError, AttributeError, TypeError) as exc:
        # out of PyYAML's constructors, for a tag that its value does not fit: `!!bool x`
        raise yaml.YAMLError(f"a value does not fit its tag: {exc!r}") from exc


def _faults(node: Any, seen: set[int]) -> Iterator[tuple[int, str, str]]:
    """(line, got, allowed) of what PyYAML would read without a word as something else than stands there."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        is_plain = node.style is None
        if is_plain and node.tag == "tag:yaml.org,2002:int" and _OCTAL.fullmatch(node.value):
            yield line, f"{node.value}, which is {int(node.value, 8)} in YAML", "numbers without a 0 in front"
        elif is_plain and node.tag == "tag:yaml.org,2002:str" and _EXPONENT.fullmatch(node.value):
            yield line, f"{node.value}, which is text in YAML", "numbers such as 1.0e-3: with a point, and a sign"
        return
    keys: set[str] = set()
    for entry in node.value:
        parts = entry if isinstance(node, yaml.MappingNode) else (entry,)
        if len(parts) == 2 and isinstance(parts[0], yaml.ScalarNode):
            if parts[0].value in keys:
                yield parts[0].start_mark.line + 1, f"key {parts[0].value!r} stands here a second time", "each key once"
            keys.add(parts[0].value)
        for part in parts:
            yield from _faults(part, seen)
