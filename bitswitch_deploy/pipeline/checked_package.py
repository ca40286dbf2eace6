"""The manifest of a package whose files are as they were exported; what else lies beside them is nobody's business."""

from __future__ import annotations

from pathlib import Path

from bitswitch_deploy.errors import CheckFailedError
from bitswitch_deploy.package.manifest import Manifest
from bitswitch_deploy.package.verify import verify_package


def checked_manifest(package: Path) -> Manifest:
    """Hash every file of a package and return its manifest. Files that it does not list are for `verify` to name.

    Raises:
        CheckFailedError: a file is missing or changed.
        PackageError: the manifest cannot be read.
    """
    verified = verify_package(package)
    broken = [f"{each.path} ({each.state})" for each in verified.files if each.state in ("missing", "changed")]
    if broken:
        raise CheckFailedError(
            where=str(package),
            got=", ".join(broken),
            allowed="a package as it was exported",
            do="export it again, or copy it again",
        )
    return verified.manifest
