"""`manifest.json` of a package, as frozen values that check themselves (schema bitswitch-package/1).

The JSON form has exactly these names; unknown or missing keys, wrong types and paths that leave the package are
refused. The same package gives the same bytes: no time, no host name, files and tools in sorted order.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

from bitswitch_deploy.errors import PackageError

SCHEMA: Literal["bitswitch-package/1"] = "bitswitch-package/1"
MANIFEST = "manifest.json"

Role = Literal["graph", "canonical", "weights", "engine", "bundle", "results", "report"]
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file: path relative to the package with `/`, and what it is for.

    label: the width assignment that it belongs to, `w4`; None when it belongs to all.
    """

    path: str
    sha256: str
    size_bytes: int
    role: Role
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedStep:
    """Something that was asked for and could not be done here, and why (DESIGN section 4, contract 4)."""

    step: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a package holds and how to make it again.

    stack: facts of the target's software that the graphs were made for, as (name, value).
    command: the arguments that make the same package again.
    tools: (name, version) of everything whose release can change a byte.
    results: path of the validation results, which is one of `files`; None when nothing was validated.
    built_on_device: folder that the bundle fills on the board; its files are not listed and not checked.

    Raises:
        PackageError: a value is not what the schema says.
    """

    master_sha256: str
    target: str
    stack: tuple[tuple[str, str], ...]
    command: tuple[str, ...]
    tools: tuple[tuple[str, str], ...]
    files: tuple[FileEntry, ...]
    results: str | None = None
    built_on_device: str | None = None
    skipped: tuple[SkippedStep, ...] = ()
    schema: Literal["bitswitch-package/1"] = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise _refusal("schema", repr(self.schema), SCHEMA)
        _check_sha256("master_sha256", self.master_sha256)
        for index, entry in enumerate(self.files):
            _check_entry(f"files[{index}]", entry)
        paths = [entry.path for entry in self.files]
        if len(paths) != len(set(paths)) or MANIFEST in paths:
            raise _refusal("files", "a path twice, or the manifest itself", "each file of the package once")
        if self.results is not None and self.results not in paths:
            raise _refusal("results", repr(self.results), "one of the files, or null")
        if self.built_on_device is not None:
            _check_path("built_on_device", self.built_on_device)

    def to_json(self) -> str:
        """The text of `manifest.json`; keys and files in sorted order."""
        values = asdict(self) | {name: dict(getattr(self, name)) for name in ("stack", "tools")}
        values["files"] = [asdict(entry) for entry in sorted(self.files, key=lambda entry: entry.path)]
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The manifest in `text`.

        Raises:
            PackageError: it is not JSON, or not what the schema says.
        """
        try:
            values = json.loads(text, object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError) as exc:
            raise _refusal("text", f"not JSON: {exc}", "the manifest as it was exported") from exc
        _check_keys("top level", values, cls)
        return cls(
            schema=values["schema"],
            master_sha256=_text("master_sha256", values["master_sha256"]),
            target=_text("target", values["target"]),
            stack=_pairs("stack", values["stack"]),
            command=tuple(_text("command", word) for word in _items("command", values["command"])),
            tools=_pairs("tools", values["tools"]),
            files=tuple(_record("files", value, FileEntry) for value in _items("files", values["files"])),
            results=_optional_text("results", values["results"]),
            built_on_device=_optional_text("built_on_device", values["built_on_device"]),
            skipped=tuple(_record("skipped", value, SkippedStep) for value in _items("skipped", values["skipped"])),
        )


def is_inside(path: str) -> bool:
    """Whether a path is relative and stays in the package: no `..`, `.`, drive, backslash or control character."""
    parts = PurePosixPath(path).parts
    plain = path.isprintable() and "\\" not in path and ":" not in path and path == "/".join(parts)
    return plain and bool(parts) and ".." not in parts and not path.startswith("/")


def _check_entry(where: str, entry: FileEntry) -> None:
    _check_path(f"{where}.path", entry.path)
    _check_sha256(f"{where}.sha256", entry.sha256)
    if type(entry.size_bytes) is not int or entry.size_bytes < 0:
        raise _refusal(f"{where}.size_bytes", repr(entry.size_bytes), "a whole number, 0 or more")
    if entry.role not in get_args(Role):
        raise _refusal(f"{where}.role", repr(entry.role), ", ".join(get_args(Role)))
    _optional_text(f"{where}.label", entry.label)


def _check_path(where: str, path: object) -> None:
    if not is_inside(_text(where, path)):
        raise _refusal(where, repr(path), "a relative path that stays in the package, with / between folders")


def _check_sha256(where: str, value: object) -> None:
    if not _SHA256.fullmatch(_text(where, value)):
        raise _refusal(where, repr(value), "64 lower-case hexadecimal digits")


def _check_keys(where: str, value: object, kind: type[Any]) -> None:
    names = {field.name for field in fields(kind)}
    if not isinstance(value, dict):
        raise _refusal(where, repr(value), f"an object with {', '.join(sorted(names))}")
    if value.keys() != names:
        wrong = sorted(value.keys() ^ names)
        raise _refusal(where, f"unknown or missing keys: {', '.join(wrong)}", ", ".join(sorted(names)))


def _record(where: str, value: object, kind: type[Any]) -> Any:
    _check_keys(where, value, kind)
    record = kind(**value) if isinstance(value, dict) else None
    if isinstance(record, SkippedStep):
        _text(f"{where}.step", record.step)
        _text(f"{where}.reason", record.reason)
    return record


def _items(where: str, value: object) -> list[object]:
    if not isinstance(value, list):
        raise _refusal(where, repr(value), "a list")
    return value


def _pairs(where: str, value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise _refusal(where, repr(value), "an object of texts")
    return tuple((key, _text(f"{where}.{key}", value[key])) for key in sorted(value))


def _text(where: str, value: object) -> str:
    if not isinstance(value, str):
        raise _refusal(where, repr(value), "text")
    return value


def _optional_text(where: str, value: object) -> str | None:
    return None if value is None else _text(where, value)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is there twice")
    return result


def _refusal(where: str, got: str, allowed: str) -> PackageError:
    do = "export the package again with this release"
    return PackageError(where=f"{MANIFEST}: {where}", got=got, allowed=allowed, do=do)
