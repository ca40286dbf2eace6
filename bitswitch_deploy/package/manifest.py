"""`manifest.json` of a package, as frozen values that check themselves (schema bitswitch-package/1).

The JSON form has exactly these names; unknown or missing keys, wrong types and paths that leave the package are
refused. The same package gives the same bytes: no time, no host name, files and tools in sorted order.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import PurePosixPath
from typing import Literal

from bitswitch_deploy.errors import PackageError
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.records import Reader

SCHEMA: Literal["bitswitch-package/1"] = "bitswitch-package/1"
MANIFEST = "manifest.json"

# `reference`: the float network, and its data file; `record`: what an engine was built from
Role = Literal["graph", "reference", "weights", "index", "engine", "record", "bundle", "results", "report"]
_READER = Reader(error=PackageError, do="export the package again with this release", plain_text=False)
# Packages that were made before these keys lack them.
_ADDED = ("preprocessing", "strict")
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

    @property
    def name(self) -> str:
        """What it is called in messages and results: its label, or its path where it has none."""
        return self.label or self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedStep:
    """Something that was asked for and could not be done here, and why."""

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
    preprocessing: how raw pixels become the input; None where the master does not say.
    strict: nothing in it is approximated, nor shall an engine of it be.

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
    preprocessing: Preprocessing | None = None
    strict: bool = False
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
        labels = [entry.label for entry in self.graphs if entry.label is not None]
        if len(labels) != len(set(labels)):
            raise _refusal("files", "two graphs with one label", "one graph for each label")
        if self.results is not None and self.results not in paths:
            raise _refusal("results", repr(self.results), "one of the files, or null")
        if self.built_on_device is not None:
            _check_path("built_on_device", self.built_on_device)
        for field, got, allowed in self.preprocessing.faults() if self.preprocessing is not None else ():
            raise _refusal(f"preprocessing{field}", got, allowed)

    @property
    def graphs(self) -> tuple[FileEntry, ...]:
        """The graph of each width."""
        return tuple(entry for entry in self.files if entry.role == "graph")

    @property
    def references(self) -> tuple[FileEntry, ...]:
        """The graph of the float network, without its data file; none in packages for onnxruntime, and in old ones."""
        return tuple(entry for entry in self.files if entry.role == "reference" and entry.path.endswith(".onnx"))

    def to_json(self) -> str:
        """The text of `manifest.json`; keys and files in sorted order."""
        values = asdict(self) | {name: dict(getattr(self, name)) for name in ("stack", "tools")}
        if not self.strict:
            # releases before it came refuse the key
            del values["strict"]
        values["files"] = [asdict(entry) for entry in sorted(self.files, key=lambda entry: entry.path)]
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = MANIFEST) -> Manifest:
        """The manifest in `text`; where: its file, for messages.

        Raises:
            PackageError: it is not JSON, or not what the schema says.
        """
        document = _READER.load_json(text, where=where)
        missing = [field.name for field in fields(cls) if field.name not in (*document, *_ADDED)]
        if missing:
            # a manifest is written whole: an absent key is damage, also where the field has a default
            raise _READER.refusal(where, f"no key {', '.join(missing)}", "every key of the schema", is_text=True)
        try:
            return _READER.decode(cls, document, where=where)
        except PackageError as exc:
            # of a value that `cls` itself refuses, which does not know the folder
            place = f"{where}{exc.where.removeprefix(MANIFEST)}" if exc.where.startswith(f"{MANIFEST}: ") else exc.where
            raise PackageError(where=place, got=exc.got, allowed=exc.allowed, do=exc.do) from exc


def is_inside(path: str) -> bool:
    """Whether a path is relative and stays in the package: no `..`, `.`, drive, backslash or control character."""
    parts = PurePosixPath(path).parts
    plain = path.isprintable() and "\\" not in path and ":" not in path and path == "/".join(parts)
    return plain and bool(parts) and ".." not in parts and not path.startswith("/")


def _check_entry(where: str, entry: FileEntry) -> None:
    _check_path(f"{where}.path", entry.path)
    _check_sha256(f"{where}.sha256", entry.sha256)
    if entry.size_bytes < 0:
        raise _refusal(f"{where}.size_bytes", repr(entry.size_bytes), "a whole number, 0 or more")


def _check_path(where: str, path: str) -> None:
    if not is_inside(path):
        raise _refusal(where, repr(path), "a relative path that stays in the package, with / between folders")


def _check_sha256(where: str, value: str) -> None:
    if not _SHA256.fullmatch(value):
        raise _refusal(where, repr(value), "64 lower-case hexadecimal digits")


def _refusal(where: str, got: str, allowed: str) -> PackageError:
    return PackageError(where=f"{MANIFEST}: {where}", got=got, allowed=allowed, do=_READER.do)
