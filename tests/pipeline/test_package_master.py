from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.catalogue import bundled_master
from bitswitch_deploy.errors import MasterError, UsageError
from bitswitch_deploy.master import assemble_master, read_master, write_master
from bitswitch_deploy.package.manifest import Manifest
from bitswitch_deploy.pipeline.package_master import find_master, master_beside, package_master


def manifest_of(master: Path, *command: str) -> Manifest:
    words = ("bitswitch-deploy", "export", *command)
    sha256 = read_master(master).sha256
    return Manifest(master_sha256=sha256, target="rtx", stack=(), command=words, tools=(), files=())


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    master = read_master(bundled_master())
    tensors = {**master.tensors, "linear.bias": np.asarray(master.tensors["linear.bias"]) + np.float32(1)}
    write_master(
        assemble_master(spec=master.spec, tensors=tensors, skeleton=master.skeleton), tmp_path / "my.safetensors"
    )
    return tmp_path / "my.safetensors"


def test_the_master_that_the_export_read_is_found_where_it_lay(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine.parent)
    manifest = manifest_of(mine, "--target", "rtx", "--master", mine.name, "--strict")
    assert package_master(manifest, None).sha256 == read_master(mine).sha256
    assert package_master(manifest_of(bundled_master(), "--target", "rtx"), None).sha256 != read_master(mine).sha256


@pytest.mark.parametrize("name", ["x" * 300, "locked/my.safetensors", "\0"])
def test_a_name_that_cannot_be_looked_up(
    tmp_path: Path, mine: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package may come from somebody whose folders nobody else may enter."""
    (tmp_path / "locked").mkdir(mode=0)
    monkeypatch.chdir(tmp_path)
    assert find_master(manifest_of(mine, "--master", name), None) is None


def test_the_file_beside_is_that_of_the_export_and_not_the_bundled_one(mine: Path) -> None:
    assert master_beside(manifest_of(mine, "--master", str(mine))) == mine
    assert master_beside(manifest_of(bundled_master(), "--master", str(bundled_master()))) is None
    assert master_beside(manifest_of(mine, "--master", "gone")) is None


@pytest.mark.parametrize("there", ["nothing", "another", "no master", "a folder"])
def test_what_lies_there_now_is_another_thing(mine: Path, there: str) -> None:
    manifest = manifest_of(mine, "--master", str(mine))
    mine.unlink()
    if there == "another":
        mine.write_bytes(bundled_master().read_bytes())
    elif there == "no master":
        mine.write_text("shopping list")
    elif there == "a folder":
        mine.mkdir()
    assert find_master(manifest, None) is None
    with pytest.raises(UsageError, match=r"--master: none, and it is not (.|\n)*do: name that file") as caught:
        package_master(manifest, None)
    assert (str(mine) in str(caught.value)) == (there in ("another", "no master"))


def test_a_master_that_is_named_has_to_be_the_one(mine: Path, tmp_path: Path) -> None:
    manifest = manifest_of(mine)
    assert package_master(manifest, mine).sha256 == manifest.master_sha256
    for look in (find_master, package_master):
        with pytest.raises(UsageError, match="--master: a master with sha256"):
            look(replace(manifest, master_sha256="0" * 64), mine)
    (tmp_path / "list").write_text("shopping list")
    with pytest.raises(MasterError):
        find_master(manifest, tmp_path / "list")
