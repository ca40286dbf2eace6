"""The master that a package was made from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from bitswitch_deploy.catalogue import bundled_master
from bitswitch_deploy.errors import MasterError, UsageError
from bitswitch_deploy.master import Master, read_master
from bitswitch_deploy.package.manifest import Manifest


def package_master(manifest: Manifest, master: Path | None) -> Master:
    """Like `find_master`, but it has to be there.

    Raises:
        MasterError: the file is damaged.
        UsageError: it is another one, or none is at hand.
    """
    found = find_master(manifest, master)
    if found is None:
        tried = ", ".join(map(str, _at_hand(manifest)))
        raise _refusal(manifest, f"none, and it is not {tried}")
    return found


def find_master(manifest: Manifest, master: Path | None) -> Master | None:
    """Read `master` and see that the package was made from it.

    Where none is named: the file that the export read, if it lies where it lay, or the bundled one; None where the
    package was made from neither.

    Raises:
        MasterError: the file that is named is damaged.
        UsageError: it is another one.
    """
    if master is not None:
        loaded = read_master(master)
        if loaded.sha256 != manifest.master_sha256:
            raise _refusal(manifest, f"a master with sha256 {loaded.sha256[:12]}")
        return loaded
    return next((loaded for _, loaded in _found(manifest)), None)


def master_beside(manifest: Manifest) -> Path | None:
    """The file that the export read, if it lies where it lay; None where it does not, and for the bundled master."""
    return next((path for path, _ in _found(manifest) if path != bundled_master()), None)


def _found(manifest: Manifest) -> Iterator[tuple[Path, Master]]:
    for path in _at_hand(manifest):
        try:
            loaded = read_master(path)
        except MasterError:
            # the name may be something else's by now
            continue
        if loaded.sha256 == manifest.master_sha256:
            yield path, loaded


def _at_hand(manifest: Manifest) -> Iterator[Path]:
    """Files that may be it; paths are relative to where the export ran, and so may miss."""
    named = (Path(value) for flag, value in pairwise(manifest.command) if flag == "--master")
    # pathlib's raises where a folder may not be entered, or the name is too long to be one
    yield from (path for path in named if os.path.isfile(path))
    yield bundled_master()


def _refusal(manifest: Manifest, got: str) -> UsageError:
    return UsageError(
        where="--master",
        got=got,
        allowed=f"the one that the package was made from, sha256 {manifest.master_sha256[:12]}",
        do="name that file with --master",
    )
