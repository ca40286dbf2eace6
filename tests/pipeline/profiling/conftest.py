"""Profiles of a package in onnxruntime, and a package for a board with engines that were built there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest

from bitswitch_deploy.package.manifest import Manifest
from bitswitch_deploy.pipeline.profiling.profile import profile
from bitswitch_deploy.pipeline.profiling.request import ProfileRequest
from bitswitch_deploy.pipeline.profiling.trtexec_bench import Board
from bitswitch_deploy.pipeline.progress import Silent
from bitswitch_deploy.profiling.board.host import Host
from bitswitch_deploy.profiling.result import ProfileResult
from tests.runtime.conftest import Packages, packages

__all__ = ["packages"]  # a fixture

MASTER = "digits.safetensors"


def run(package: Path, host: Host | None = None, **changes: object) -> ProfileResult:
    return run_on(None, package, host, **changes)


def run_on(board: Board | None, package: Path, host: Host | None, **changes: object) -> ProfileResult:
    """board: where trtexec runs."""
    arguments = {"package": package, "master": package.parent / MASTER, "turns": 6, "threads": 1}
    return profile(ProfileRequest(**{**arguments, **changes}), Silent(), host=host, board=board)  # type: ignore[arg-type]


@pytest.fixture
def jetson_package(packages: Packages, tmp_path: Path) -> Callable[[Callable[[int], bytes]], Path]:
    """Turn the graphs into a package for a board, with engines that were built there."""

    def write(engine: Callable[[int], bytes]) -> Path:
        package = Path(copytree(packages.own, tmp_path / "package"))
        document = json.loads((package / "manifest.json").read_text())
        document["files"] = [each for each in document["files"] if each["label"] in ("w8", "w4")]
        names = {each["path"] for each in document["files"]}
        for path in package.iterdir():
            if path.name not in (*names, "manifest.json"):
                path.unlink()
        document |= {"target": "jetson-orin-nano", "built_on_device": "on_device", "results": None}
        document["stack"] = {"name": "6.2", "engine": "tensorrt"}
        (package / "manifest.json").write_text(Manifest.from_json(json.dumps(document)).to_json())
        (package / "on_device").mkdir()
        for bits in (8, 4):
            (package / "on_device" / f"digits-w{bits}.engine").write_bytes(engine(bits))
        return package

    return write


def put_reference(package: Path) -> None:
    """Add a graph that is the float network's, as far as a package is concerned."""
    document = json.loads((package / "manifest.json").read_text())
    entry = next(each for each in document["files"] if each["label"] == "w8")
    document["files"].append(entry | {"path": "digits-fp16.onnx", "role": "reference", "label": "fp16"})
    (package / "digits-fp16.onnx").write_bytes((package / entry["path"]).read_bytes())
    (package / "manifest.json").write_text(json.dumps(document))
