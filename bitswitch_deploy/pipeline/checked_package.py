"""The manifest of a package whose files are as they were exported."""

from __future__ import annotations

from pathlib import Path

from bitswitch_deploy.errors import CheckFailedError
from bitswitch_deploy.package.manifest import Manifest
from bitswitch_deploy.package.verify import verify_package


def checked_manifest(package: Path) -> Manifest:
    """Hash every file of a package and return its manifest.

    Raises:
        CheckFailedError: a file is missing, changed or not listed.
        PackageError: the manifest cannot be read.
    """
    verified = verify_package(package)
    if not verified.is_ok:
        broken = ", ".join(f"{state.path} ({state.state})" for state in verified.files if state.state != "ok")
        raise CheckFailedError(
            where=str(package),
            got=broken,
            allowed="a package as it was exported",
            do="export it again, or copy it again",
        )
    return verified.manifest
