"""`validate`: measure the graphs of a package again, where it is now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bitswitch_deploy.errors import DataError, PackageError
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.graph.lint.reading import read_model
from bitswitch_deploy.graph.stamp import read_stamp
from bitswitch_deploy.master import Master
from bitswitch_deploy.package.manifest import MANIFEST, FileEntry, Manifest
from bitswitch_deploy.pipeline.checked_package import checked_manifest
from bitswitch_deploy.pipeline.inputs import load_test_samples
from bitswitch_deploy.pipeline.package_master import package_master
from bitswitch_deploy.pipeline.package_target import own_target
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.pipeline.validate_width import WidthValidator
from bitswitch_deploy.target import Target
from bitswitch_deploy.tensors import WidthAssignment
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
        PackageError: the manifest cannot be read, names no graphs or says something else than a graph.
        GraphError: a graph is no ONNX, or not of an export.
        UsageError: `master` is not the one that the package was made from, or `target` is needed.
        DataError: there is no data, or it does not fit.
    """
    manifest = checked_manifest(package)
    loaded = package_master(manifest, master)
    test = load_test_samples(loaded, data)
    if test is None:
        raise DataError(where="--data", got="no data", allowed="a folder or an .npz file", do="name one with --data")
    profile = own_target(manifest, target)
    graphs = [(entry, _assignment(package, entry, manifest)) for entry in manifest.graphs]
    if not graphs:
        raise _refusal(package / MANIFEST, "names no graphs", "at least one graph")
    widths = tuple(_validate(package / entry.path, each, loaded, profile, test, progress) for entry, each in graphs)
    result = ValidationResult(dataset=test.summary, widths=widths)
    verdicts = judge(result, loaded.spec.accuracy, max_drop=max_drop)
    return Revalidation(package=str(package), target=manifest.target, result=result, verdicts=verdicts)


def _assignment(package: Path, entry: FileEntry, manifest: Manifest) -> WidthAssignment:
    """What the graph says that it was made for, where the manifest says the same."""
    path = package / entry.path
    found = read_stamp(read_model(path), where=str(path))
    said = (entry.label, manifest.target, manifest.master_sha256)
    if (found.assignment.label, found.target, found.master_sha256) != said:
        got = f"made as {found.assignment.label} for {found.target} from master {found.master_sha256[:12]}"
        allowed = f"{entry.label} for {manifest.target} from {manifest.master_sha256[:12]}, as the manifest says"
        raise _refusal(path, got, allowed)
    return found.assignment


def _refusal(path: Path, got: str, allowed: str) -> PackageError:
    return PackageError(where=str(path), got=got, allowed=allowed, do="export the package again")


def _validate(
    graph: Path, assignment: WidthAssignment, master: Master, target: Target, test: Dataset, progress: Progress
) -> WidthResult:
    return WidthValidator(master, canonical_graph(master, assignment), target, test, progress).validate(graph)
