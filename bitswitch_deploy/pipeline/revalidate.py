"""`validate`: measure the graphs of a package again, where it is now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from bitswitch_deploy.errors import DataError
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.graph.stamp import read_stamp
from bitswitch_deploy.master import Master
from bitswitch_deploy.package.manifest import FileEntry
from bitswitch_deploy.pipeline.checked_package import checked_manifest
from bitswitch_deploy.pipeline.inputs import load_test_samples
from bitswitch_deploy.pipeline.package_master import package_master
from bitswitch_deploy.pipeline.package_target import package_target
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.pipeline.validate_width import WidthValidator
from bitswitch_deploy.target import Target
from bitswitch_deploy.validation.dataset import Dataset
from bitswitch_deploy.validation.hops import ValidationResult, Verdict, WidthResult, judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Revalidation:
    """What was measured now, and the verdicts on it."""

    package: str
    target: str
    result: ValidationResult
    verdicts: tuple[Verdict, ...]


def revalidate(
    package: Path, *, master: Path | None, target: str | None, data: Path | None, max_drop: float, progress: Progress
) -> Revalidation:
    """Verify a package, then run every graph in it beside the canonical graph of its master.

    `target` is needed only where the package was made for a profile of the user's own.

    Raises:
        CheckFailedError: a file of the package is not as it was exported.
        PackageError: the manifest cannot be read or names no graphs.
        UsageError: `master` is not the one that the package was made from, or `target` is needed.
        DataError: there is no data, or it does not fit.
    """
    manifest = checked_manifest(package)
    loaded = package_master(manifest, master)
    test = load_test_samples(loaded, data)
    if test is None:
        raise DataError(where="--data", got="no data", allowed="a folder or an .npz file", do="name one with --data")
    profile = package_target(manifest, target)
    graphs = [entry for entry in manifest.files if entry.role == "graph"]
    widths = tuple(_validate(package, entry, loaded, profile, test, progress) for entry in graphs)
    result = ValidationResult(dataset=test.summary, widths=widths)
    verdicts = judge(result, loaded.spec.accuracy, max_drop=max_drop)
    return Revalidation(package=str(package), target=manifest.target, result=result, verdicts=verdicts)


def _validate(
    package: Path, entry: FileEntry, master: Master, target: Target, test: Dataset, progress: Progress
) -> WidthResult:
    path = package / entry.path
    made_from = read_stamp(onnx.load(str(path), load_external_data=False), where=str(path))
    canonical = canonical_graph(master, made_from.assignment)
    return WidthValidator(master, canonical, target, test, progress).validate(path)
