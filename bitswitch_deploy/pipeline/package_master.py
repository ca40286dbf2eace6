"""The master that a package was made from."""

from __future__ import annotations

from pathlib import Path

from bitswitch_deploy.catalogue import bundled_master
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.master import Master, read_master
from bitswitch_deploy.package.manifest import Manifest


def package_master(manifest: Manifest, master: Path | None) -> Master:
    """Read `master`, or the bundled one, and see that the package was made from it.

    Raises:
        MasterError: the file is damaged.
        UsageError: it is another one.
    """
    loaded = read_master(master if master is not None else bundled_master())
    if loaded.sha256 != manifest.master_sha256:
        raise UsageError(
            where="--master",
            got=f"a master with sha256 {loaded.sha256[:12]}",
            allowed=f"the one that the package was made from, sha256 {manifest.master_sha256[:12]}",
            do="name that file with --master",
        )
    return loaded
