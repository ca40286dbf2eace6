"""The target of a package, whether its profile ships with bitswitch-deploy or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitswitch_deploy.catalogue import bundled_file
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.package.manifest import Manifest
from bitswitch_deploy.pipeline.package_target import package_target


def manifest(target: str, **stack: str) -> Manifest:
    return Manifest(master_sha256="0" * 64, target=target, stack=tuple(stack.items()), command=(), tools=(), files=())


def test_a_bundled_target_has_the_stack_of_the_package() -> None:
    for stack in ("6.0", "5.1"):
        target = package_target(manifest("jetson-agx-orin", name=stack), None)
        assert (target.name, target.stack.name) == ("jetson-agx-orin", stack)


def test_the_name_that_is_given_stands_for_that_of_the_package() -> None:
    assert package_target(manifest("jetson-agx-orin", name="6.0"), "rtx").name == "rtx"


@pytest.mark.parametrize(
    ("made_for", "wanted", "do"),
    [
        (manifest("my-board", name="2.0"), "my-board@2.0", "./my-board.yaml@2.0"),
        # a copy of a bundled profile with a stack of its own
        (manifest("jetson-agx-orin", name="my"), "jetson-agx-orin@my", "./jetson-agx-orin.yaml@my"),
        # a word that means something else on each machine
        (manifest("cpu", name="linux"), "cpu@linux", "./cpu.yaml@linux"),
        (manifest("x86-cpu"), "x86-cpu", "./x86-cpu.yaml"),
    ],
)
def test_a_profile_of_the_users_own_must_be_named(made_for: Manifest, wanted: str, do: str) -> None:
    message = f"--target: left out, and the package is for {wanted}, which does not ship with bitswitch-deploy\n"
    with pytest.raises(UsageError, match=message) as refused:
        package_target(made_for, None)
    assert refused.value.do == f"name that file: --target {do}"


def test_it_is_taken_once_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "my-board.yaml"
    text = bundled_file("targets/jetson-agx-orin.yaml").read_text()
    path.write_text(text.replace("name: jetson-agx-orin", "name: my-board"))
    target = package_target(manifest("my-board", name="5.1"), f"{path}@5.1")
    assert (target.name, target.stack.name) == ("my-board", "5.1")
