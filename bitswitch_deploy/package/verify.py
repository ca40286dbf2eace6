"""Read a package, and compare its files with its manifest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bitswitch_deploy.errors import PackageError
from bitswitch_deploy.package.files import all_files, hash_file, is_plain_file
from bitswitch_deploy.package.manifest import MANIFEST, SCHEMA, Manifest

# A manifest of ten thousand files has 3 MB.
_MAX_MANIFEST_BYTES = 16 << 20

State = Literal["ok", "missing", "changed", "unexpected"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileState:
    """One file of a package compared with the manifest. A link in the place of a file counts as `changed`."""

    path: str
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """Every file of the manifest in its order, then the unexpected ones."""

    manifest: Manifest
    files: tuple[FileState, ...]

    @property
    def is_ok(self) -> bool:
        """Whether every file is as it was exported, and no other is there."""
        return all(file.state == "ok" for file in self.files)


def read_manifest(package: Path) -> Manifest:
    """The manifest of a package folder.

    Raises:
        PackageError: the folder has no manifest, or one that cannot be read.
    """
    path = package / MANIFEST
    try:
        if not is_plain_file(package, MANIFEST):
            if not package.is_dir():
                raise _refusal(package, "is not a folder" if package.exists() else "the folder does not exist")
            raise _refusal(path, "not there, or not a plain file")
        with path.open("rb") as file:
            data = file.read(_MAX_MANIFEST_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise _refusal(path, f"not readable: {exc}") from exc
    if len(data) > _MAX_MANIFEST_BYTES:
        raise _refusal(path, f"larger than {_MAX_MANIFEST_BYTES >> 20} MB")
    return Manifest.from_json(text, where=str(path))


def verify_package(package: Path) -> VerifyResult:
    """Compare each file with the manifest; files that the board built (`built_on_device`) are left out.

    Raises:
        PackageError: the manifest or a file cannot be read.
    """
    manifest = read_manifest(package)
    listed = {entry.path for entry in manifest.files} | {MANIFEST}
    states = []
    for entry in manifest.files:
        path = package / entry.path
        try:
            if not os.path.lexists(path):
                state: State = "missing"
            elif is_plain_file(package, entry.path) and hash_file(path) == (entry.sha256, entry.size_bytes):
                state = "ok"
            else:
                state = "changed"
        except OSError as exc:
            raise _refusal(path, f"not readable: {exc.strerror}") from exc
        states.append(FileState(path=entry.path, state=state))
    try:
        unexpected = sorted(set(all_files(package, left_out=manifest.built_on_device)) - listed)
    except OSError as exc:
        raise _refusal(package, f"not readable: {exc}") from exc
    states.extend(FileState(path=path, state="unexpected") for path in unexpected)
    return VerifyResult(manifest=manifest, files=tuple(states))


def _refusal(path: Path, got: str) -> PackageError:
    allowed = f"a folder written by `bitswitch-deploy export`, with its {MANIFEST} ({SCHEMA})"
    return PackageError(where=str(path), got=got, allowed=allowed, do="name the package folder, or export it again")
