"""The target that a package was exported for."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise

from bitswitch_deploy.catalogue import is_target_file, load_target, split_stack, target_names
from bitswitch_deploy.errors import TargetFileError, UsageError
from bitswitch_deploy.package.manifest import Manifest
from bitswitch_deploy.target import Target

_PROFILE = "profile_sha256"


def stack_facts(target: Target) -> tuple[tuple[str, str], ...]:
    """What a manifest says of the target beside its name, as (name, value).

    profile_sha256: over everything that shapes the graphs; a profile that was copied and changed has another one.
    """
    shaping = {"lowering": target.lowering, "quantization": asdict(target.quantization)}
    shaping |= {"engine": asdict(target.engine), "stack": asdict(target.stack)}
    digest = hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()
    return (
        ("name", target.stack.name),
        ("engine", target.engine.name),
        ("engine_version", target.stack.engine_version),
        ("opset", str(target.stack.opset)),
        (_PROFILE, digest),
        # whoever runs the graphs needs them to get what was validated
        *target.engine.session,
    )


def package_target(manifest: Manifest, target: str | None) -> Target:
    """Load `target`, or the profile and stack of the manifest: the file that the export read, or the bundled one.

    Neither is taken where it says something else than the manifest.

    Raises:
        UsageError: the package was exported for a profile that is not at hand, and `target` does not name it; or
            `target` is unknown.
        TargetFileError: the file that `target` names is missing or damaged.
        UnavailableError: `target` is an alias, and no profile describes this machine.
    """
    if target:
        return load_target(target).target
    found = next((each for each in _at_hand(manifest) if _is_of(manifest, each)), None)
    if found is None:
        raise _refusal(manifest)
    return found


def own_target(manifest: Manifest, target: str | None) -> Target:
    """The same, where what is judged or timed for another target would be taken for the package's.

    Raises:
        BitswitchError: as `package_target`.
        UsageError: `target` is another one than the package was exported for.
    """
    found = package_target(manifest, target)
    if found.name != manifest.target:
        raise UsageError(
            where="--target",
            got=f"{found.name}, and the package is for {manifest.target}",
            allowed=f"{manifest.target}, the target that the package was exported for",
            do="leave it out, or export for the other target",
        )
    return found


def _at_hand(manifest: Manifest) -> Iterator[Target]:
    """Profiles that may be it, with the stack of the package."""
    name, stack = manifest.target, dict(manifest.stack).get("name")
    # the path is relative to where the export ran, and may be something else's by now
    named = _named_file(manifest)
    for source in (named, name if name in target_names() else None):
        try:
            profile = load_target(source).target if source else None
        except TargetFileError:
            continue
        if profile is not None and stack in [each.name for each in profile.stacks]:
            yield profile.with_stack(str(stack))


def _named_file(manifest: Manifest) -> str | None:
    """The file of the target that the command of the export names, if there is one now."""
    return next((word for word in _commanded(manifest) if is_target_file(word) and os.path.isfile(word)), None)


def _commanded(manifest: Manifest) -> list[str]:
    """The target that the command of the export names, without its stack; nothing or one."""
    return [split_stack(word)[0] for flag, word in pairwise(manifest.command) if flag == "--target"]


def _is_of(manifest: Manifest, profile: Target) -> bool:
    """Whether all that the manifest says of its target, which was less in older releases, is true of the profile.

    A release may change the passes of a profile that ships with it; only of a user's file that makes another one.
    """
    facts = set(manifest.stack)
    if not any(is_target_file(file) for file in _commanded(manifest)):
        facts = {fact for fact in facts if fact[0] != _PROFILE}
    return profile.name == manifest.target and facts <= set(stack_facts(profile))


def _refusal(manifest: Manifest) -> UsageError:
    name, stack = manifest.target, dict(manifest.stack).get("name")
    at_stack = "" if stack is None else f"@{stack}"
    file = next((word for word in _commanded(manifest) if is_target_file(word)), f"./{name}.yaml")
    is_changed = name in target_names() and stack is not None
    reason = "with other contents than what ships" if is_changed else "which does not ship"
    instead = f"; --target {name} takes the one that ships" if is_changed else ""
    return UsageError(
        where="--target",
        got=f"left out, and the package is for {name}{at_stack}, {reason} with bitswitch-deploy",
        allowed="the YAML file that the package was exported for",
        do=f"name that file: --target {file}{at_stack}{instead}",
    )
