"""Packages to test with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bitswitch_deploy.package.manifest import FileEntry, Manifest, SkippedStep
from bitswitch_deploy.package.writer import PackageWriter
from bitswitch_deploy.preprocessing import Preprocessing


def _manifest(files: tuple[FileEntry, ...], **changes: object) -> Manifest:
    values = {
        "master_sha256": "ab" * 32,
        "target": "x86-cpu",
        "stack": (("opset", "21"), ("python", "3.10")),
        "command": ("bitswitch-deploy", "export", "--target", "x86-cpu"),
        "tools": (("numpy", "2.0"), ("onnx", "1.23.2")),
        "files": files,
        "preprocessing": Preprocessing(colour="L", size=(8, 8), divide_by=16.0, mean=(0.5,), std=(0.25,)),
        "skipped": (SkippedStep(step="engine", reason="no GPU here"),),
    }
    return Manifest(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def manifest_of() -> Callable[..., Manifest]:
    """A manifest that lists the files given."""
    return _manifest


@pytest.fixture
def export() -> Callable[..., Path]:
    """Write a package of two files, `graphs/w8.onnx` holding `text`, and return its folder."""

    def run(destination: Path, text: str = "graph", *, force: bool = False) -> Path:
        with PackageWriter(destination, force=force) as writer:
            writer.write("graphs/w8.onnx", text.encode(), role="graph", label="w8")
            writer.write("build.sh", b"#!/bin/sh\n", role="bundle", executable=True)
            writer.commit(_manifest(writer.files, built_on_device="on_device"))
        return destination

    return run
