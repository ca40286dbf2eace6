"""One network exported twice: with shared weights and with weights in each graph; and what each width answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

from bitswitch_deploy.catalogue import bundled_master
from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession
from bitswitch_deploy.master import assemble_master, read_master, write_master
from bitswitch_deploy.tensors import WidthAssignment
from tests.pipeline.conftest import WIDTHS, export_to

MIXED = WidthAssignment(default=8, overrides=(("blocks.0.conv1", 4), ("blocks.1.conv2", 2)))
LABELS = ("w8", "w6", "w4", "w2", "mixed")


@dataclass(frozen=True)
class Packages:
    """Folders, inputs [n, 1, 8, 8] and the outputs of each width, from onnxruntime alone."""

    shared: Path
    own: Path
    inputs: np.ndarray
    outputs: dict[str, np.ndarray]


def graph_file(package: Path, label: str) -> Path:
    """Give the file of one width, which is compressed where weights are shared."""
    compressed = package / f"digits-{label}.onnx.gz"
    return compressed if compressed.exists() else package / f"digits-{label}.onnx"


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    folder = tmp_path_factory.mktemp("runtime")
    bundled = read_master(bundled_master())
    # without a data set nothing is validated, which takes a second
    spec = replace(bundled.spec, accuracy=())
    master = folder / "digits.safetensors"
    write_master(assemble_master(spec=spec, tensors=bundled.tensors, skeleton=bundled.skeleton), master)
    for name, shared in (("shared", True), ("own", False)):
        export_to(folder / name, "x86-cpu", master=master, widths=(*WIDTHS, MIXED), shared_weights=shared)
    inputs = np.random.default_rng(3).normal(0.3, 0.5, (16, 1, 8, 8)).astype(np.float32)
    outputs = {}
    for label in LABELS:
        path = folder / "own" / f"digits-{label}.onnx"
        session = OnnxRuntimeSession(path, optimisation="all", threads=1, session_options={})
        outputs[label] = np.stack([session.run(x[None])[0] for x in inputs])
    return Packages(shared=folder / "shared", own=folder / "own", inputs=inputs, outputs=outputs)


@pytest.fixture(params=["shared", "own"])
def package(request: pytest.FixtureRequest, packages: Packages, tmp_path: Path) -> Path:
    """Give a copy that a test may damage."""
    return Path(copytree(getattr(packages, request.param), tmp_path / "package"))


@pytest.fixture
def rehash() -> Callable[[Path, str], None]:
    """Let the manifest agree with a file that a test has changed."""

    def write(package: Path, name: str) -> None:
        path = package / "manifest.json"
        document = json.loads(path.read_text())
        entry = next(each for each in document["files"] if each["path"] == name)
        data = (package / name).read_bytes()
        entry |= {"sha256": sha256(data).hexdigest(), "size_bytes": len(data)}
        path.write_text(json.dumps(document))

    return write
