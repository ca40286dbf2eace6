"""Exports of the bundled master that several tests look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.catalogue import bundled_file, bundled_master, load_target
from bitswitch_deploy.master import read_master
from bitswitch_deploy.pipeline.exporting.export import ExportRequest, export
from bitswitch_deploy.report.export_report import ExportReport
from bitswitch_deploy.tensors import WidthAssignment

WIDTHS = tuple(WidthAssignment(default=bits) for bits in (8, 6, 4, 2))


@dataclass(frozen=True)
class Exported:
    package: Path
    report: ExportReport


def export_to(package: Path, target: str, **changes: object) -> Exported:
    arguments = {"master": bundled_master(), "target": load_target(target), "output": package, "widths": WIDTHS}
    report = export(ExportRequest(**{**arguments, **changes}))  # type: ignore[arg-type]
    return Exported(package=package, report=report)


@pytest.fixture(
    scope="session", params=["jetson", "jetson-xavier-nx@4.6", "jetson-thor", "rtx", "x86-cpu", "arm64-cpu"]
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_to(tmp_path_factory.mktemp("export") / "package", request.param)


@pytest.fixture(scope="session")
def doubtful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits ten times over under heavy noise: 6,000 labelled samples, many of which any rounding can tip."""
    steps = read_master(bundled_master()).spec.preprocessing
    assert steps is not None
    with np.load(bundled_file("calibration/digits/test.npz")) as samples:
        x = np.repeat(steps.apply(samples["x"][..., None]), 10, axis=0)
        y = np.repeat(samples["y"], 10)
    x += np.random.default_rng(1).normal(0, 0.25 / steps.std[0], x.shape).astype(np.float32)
    path = tmp_path_factory.mktemp("doubtful") / "doubtful.npz"
    np.savez(path, x=x, y=y)
    return path
