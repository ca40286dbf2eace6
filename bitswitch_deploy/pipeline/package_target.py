"""The target that a package was exported for."""

from __future__ import annotations

from bitswitch_deploy.catalogue import load_target, target_names
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.package.manifest import Manifest
from bitswitch_deploy.target import Target


def package_target(manifest: Manifest, target: str | None) -> Target:
    """Load `target`, or the bundled profile and stack of the manifest.

    Raises:
        UsageError: the package was exported for a profile that is not bundled, and `target` does not name it; or
            `target` is unknown.
        TargetFileError: the file that `target` names is missing or damaged.
        UnavailableError: `target` is an alias, and no profile describes this machine.
    """
    if target:
        return load_target(target).target
    name, stack = manifest.target, dict(manifest.stack).get("name")
    if name in target_names():
        bundled = load_target(name).target
        for each in bundled.stacks:
            if each.name == stack:
                return bundled.with_stack(each.name)
    at_stack = "" if stack is None else f"@{stack}"
    raise UsageError(
        where="--target",
        got=f"left out, and the package is for {name}{at_stack}, which does not ship with bitswitch-deploy",
        allowed="the YAML file that the package was exported for",
        do=f"name that file: --target ./{name}.yaml{at_stack}",
    )
