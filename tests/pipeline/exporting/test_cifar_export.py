"""The bundled ResNet-20 for CIFAR-10 on every target: a real network, real images, every width.

The images are not part of the repository; without them these tests are skipped.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from bitswitch_deploy.catalogue import load_target, target_names
from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession
from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.engines.shape_range import batch_profile
from bitswitch_deploy.engines.tensorrt_config import BuildSettings
from bitswitch_deploy.engines.tensorrt_engine import build_engine
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.master import read_master
from bitswitch_deploy.master.spec import ValueSpec
from bitswitch_deploy.package.verify import verify_package
from bitswitch_deploy.pipeline.building.engine_recipe import BATCH_RANGE
from bitswitch_deploy.target import Target
from bitswitch_deploy.training.batches import preprocess
from bitswitch_deploy.training.datasets import load_cifar10
from tests.networks.comparing import agreement
from tests.pipeline.conftest import WIDTHS, export_to

DATA = Path(os.environ.get("BITSWITCH_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
MASTER = Path(__file__).parents[3] / "calibration" / "cifar10" / "resnet20-8642.safetensors"
IMAGES = 500
LIMIT = 99.5

pytestmark = pytest.mark.skipif(
    not (DATA / "cifar10").is_dir(),
    reason=f"no CIFAR-10 in {DATA}; set BITSWITCH_TEST_DATA to the folder that holds it",
)


@dataclass(frozen=True)
class Samples:
    """Preprocessed test images, with the outputs of the canonical graphs [IMAGES, 10]; files of images and labels."""

    x: np.ndarray
    references: dict[str, np.ndarray]
    data: Path
    calibration: Path


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    folder, dataset, master = tmp_path_factory.mktemp("cifar"), load_cifar10(DATA / "cifar10"), read_master(MASTER)
    for name, part, count in (("test", dataset.test, IMAGES), ("train", dataset.train, 512)):
        np.savez(folder / f"{name}.npz", x=part.images[:count], y=part.labels[:count].astype(np.int64))
    assert master.spec.preprocessing is not None
    x = preprocess(dataset.test.images[:IMAGES], master.spec.preprocessing).numpy()
    models = {width.label: canonical_graph(master, width).model.SerializeToString() for width in WIDTHS}
    references = {label: ReferenceSession(model, threads=2).run(x) for label, model in models.items()}
    return Samples(x=x, references=references, data=folder / "test.npz", calibration=folder / "train.npz")


@pytest.mark.parametrize("target", ["jetson-orin-nano", "x86-cpu"])
def test_the_export_with_labels_keeps_predictions_or_accuracy_at_every_hop(
    samples: Samples, target: str, tmp_path: Path
) -> None:
    exported = export_to(tmp_path / "p", target, master=MASTER, data=samples.data, calibration=samples.calibration)
    assert verify_package(exported.package).is_ok
    for row in exported.report.widths:
        canonical = next(hop.top1_percent for hop in row.hops if hop.hop == "canonical")
        assert canonical is not None
        for hop in row.hops[2:]:
            if hop.n:
                assert hop.n == IMAGES
                assert hop.agreement_percent is not None
                assert hop.top1_percent is not None
                # an approximation that moves predictions stays only where the labels exclude a drop by the limit
                tested = "is excluded" in str(row.changes)
                assert hop.agreement_percent >= LIMIT or tested, (row.label, hop)
                assert hop.top1_percent >= canonical - (100 - LIMIT) - 1e-9, (row.label, hop)


def graphs_of(target: Target) -> tuple[object, ...]:
    """What the graphs of a target depend on."""
    stack = target.stack
    return (
        *(target.arch, target.quantization, target.lowering, target.engine),
        *(stack.opset, stack.ir_version, stack.typing, stack.weight_form),
    )


PROFILES = {name: load_target(name).target for name in target_names()}
DIFFERENT = {graphs_of(target): name for name, target in PROFILES.items()}  # boards of a family get the same graphs


@pytest.mark.parametrize("target", DIFFERENT.values())
def test_every_target_agrees_with_the_canonical_graph(samples: Samples, target: str, tmp_path: Path) -> None:
    arguments = {"master": MASTER, "data": samples.data, "calibration": samples.calibration}
    exported = export_to(tmp_path / "p", target, **arguments, min_agreement=LIMIT)
    profile = PROFILES[target]
    level: Literal["all", "off"] = "all" if profile.engine.name == "onnxruntime" else "off"
    for row in exported.report.widths:
        options = dict(profile.engine.session)
        path = exported.package / row.file_name
        session = OnnxRuntimeSession(path, optimisation=level, threads=2, session_options=options)
        assert agreement(samples.references[row.label], session.run(samples.x)) >= LIMIT / 100, row.label
        if profile.engine.name == "tensorrt":
            _check_builds(path)


def _check_builds(path: Path) -> None:
    """The graph for a Jetson builds with the TensorRT that runs on this host."""
    pytest.importorskip("tensorrt_rtx")
    inputs = (ValueSpec(name="input", dtype="float", shape=("batch", 3, 32, 32)),)
    settings = BuildSettings(compute_capabilities=("SM86",), profile=batch_profile(inputs, batch=BATCH_RANGE))
    assert len(build_engine(path.read_bytes(), module="tensorrt_rtx", settings=settings).plan) > 100_000
