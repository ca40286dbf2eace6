"""The target of a package, whether its profile ships with bitswitch-deploy or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitswitch_deploy.catalogue import bundled_file, load_target
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.package.manifest import Manifest
from bitswitch_deploy.pipeline.package_target import package_target, stack_facts


def manifest(target: str, *command: str, **stack: str) -> Manifest:
    return Manifest(
        master_sha256="0" * 64, target=target, stack=tuple(stack.items()), command=command, tools=(), files=()
    )


def changed_copy(folder: Path, old: str, new: str) -> Path:
    """The bundled profile x86-cpu with its name and other contents."""
    text = bundled_file("targets/x86-cpu.yaml").read_text()
    assert old in text
    path = folder / "mine.yaml"
    path.write_text(text.replace(old, new))
    return path


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
        # a word that means something else on each machine
        (manifest("cpu", name="linux"), "cpu@linux", "./cpu.yaml@linux"),
        (manifest("x86-cpu"), "x86-cpu", "./x86-cpu.yaml"),
        (
            manifest("my-board", "export", "--target", "/boards/b.yaml@2.0", name="2.0"),
            "my-board@2.0",
            "/boards/b.yaml@2.0",
        ),
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


@pytest.mark.parametrize(("old", "new"), [('accuracy_level: "1"', 'accuracy_level: "4"'), ("RewriteWeightOnly,", "")])
def test_a_changed_copy_of_a_bundled_profile_is_not_taken_for_it(tmp_path: Path, old: str, new: str) -> None:
    path = changed_copy(tmp_path, old, new)
    own = load_target(str(path)).target
    made_for = manifest("x86-cpu", "export", "--target", str(path), **dict(stack_facts(own)))
    path.unlink()
    message = f"the package is for x86-cpu@{own.stack.name}, with other contents than what ships with bitswitch-deploy"
    with pytest.raises(UsageError, match=message) as refused:
        package_target(made_for, None)
    assert refused.value.do.endswith("; --target x86-cpu takes the one that ships")
    assert package_target(made_for, "x86-cpu") == load_target("x86-cpu").target


def test_other_passes_of_another_release_are_no_obstacle(tmp_path: Path) -> None:
    """A bundled profile that has one pass more than when the package was exported is still the one."""
    before = load_target(str(changed_copy(tmp_path, "RewriteWeightOnly,", ""))).target
    made_for = manifest("x86-cpu", "export", "--target", "x86-cpu@ort-1.23", **dict(stack_facts(before)))
    assert package_target(made_for, None) == load_target("x86-cpu").target


def test_the_file_that_the_export_read_is_found_again_while_it_is_the_same(tmp_path: Path) -> None:
    path = changed_copy(tmp_path, "RewriteWeightOnly,", "")
    own = load_target(str(path)).target
    made_for = manifest("x86-cpu", "export", "--target", str(path), **dict(stack_facts(own)))
    assert package_target(made_for, None) == own
    for damage in (bundled_file("targets/x86-cpu.yaml").read_text(), "no: profile"):
        path.write_text(damage)
        with pytest.raises(UsageError, match="with other contents"):
            package_target(made_for, None)
