"""`blame`: which layer loses accuracy, in quantization and in lowering."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from bitswitch_deploy.catalogue import ResolvedTarget
from bitswitch_deploy.diagnosis.blame_result import BlameResult, WidthBlame
from bitswitch_deploy.diagnosis.edit_model import embedded
from bitswitch_deploy.diagnosis.lowered_comparison import LoweredComparison, Runtime
from bitswitch_deploy.diagnosis.quantized_width import QuantizedWidth
from bitswitch_deploy.diagnosis.suspects import faults, sensitive_layer
from bitswitch_deploy.diagnosis.switchable_graph import SwitchableGraph
from bitswitch_deploy.errors import DataError, GraphError
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.graph.lint.reading import read_model
from bitswitch_deploy.graph.stamp import read_stamp
from bitswitch_deploy.lowering.approximation import EXPORTED
from bitswitch_deploy.master import Master, read_master
from bitswitch_deploy.package.verify import read_manifest, verify_package
from bitswitch_deploy.pipeline.approximation_limit import ApproximationLimit
from bitswitch_deploy.pipeline.inputs import load_export_data, load_test_samples
from bitswitch_deploy.pipeline.look_at_layers import batch_size
from bitswitch_deploy.pipeline.lower_width import lower_width
from bitswitch_deploy.pipeline.package_master import package_master
from bitswitch_deploy.pipeline.package_target import own_target
from bitswitch_deploy.pipeline.progress import Progress, Silent
from bitswitch_deploy.target import Target
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.validation.dataset import Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """One lowered graph with all its weights, and the widths that it was made for."""

    assignment: WidthAssignment
    model: onnx.ModelProto


def blame_package(
    package: Path,
    *,
    master: Path | None,
    target: str | None,
    data: Path | None,
    samples: int,
    progress: Progress | None = None,
) -> BlameResult:
    """Compare the graphs of a package with the canonical graphs of its master, and these with the network in float.

    A package that was changed is looked at as well: `changed` names the files.

    Raises:
        PackageError: the manifest cannot be read.
        UsageError: `master` is not the one that the package was made from; or that was made for a profile which is
            not bundled, and `target` does not name it.
        DataError: there are no data, or they do not fit.
        GraphError: a graph is damaged, or onnxruntime refuses it.
    """
    manifest = read_manifest(package)
    loaded = package_master(manifest, master)
    profile = own_target(manifest, target)
    # w8 before w2
    paths = [
        package / entry.path for entry in sorted(manifest.graphs, key=lambda entry: entry.label or "", reverse=True)
    ]
    states = verify_package(package).files
    result = _blame(loaded, profile, (_load(path) for path in paths), data, samples, progress or Silent())
    changed = tuple(f"{state.path} ({state.state})" for state in states if state.state != "ok")
    return replace(result, subject=str(package), changed=changed)


def blame_master(
    master: Path,
    target: ResolvedTarget,
    assignments: tuple[WidthAssignment, ...],
    *,
    data: Path | None,
    samples: int,
    progress: Progress | None = None,
) -> BlameResult:
    """The same for a master that is lowered to a target here, as `export` does without `--approximate`.

    Raises:
        MasterError: the file is damaged.
        DataError: there are no data, or they do not fit.
        UsageError: a width does not fit the master.
    """
    loaded, profile = read_master(master), target.target
    progress = progress or Silent()

    def lowered() -> Iterator[Lowered]:
        chosen = load_export_data(loaded, data=data, calibration=None)
        for assignment in assignments:
            progress.start(f"{assignment.label}: deriving and lowering", 1)
            width = lower_width(
                loaded,
                assignment,
                profile,
                data=chosen,
                wanted=EXPORTED,
                limit=ApproximationLimit(min_agreement=profile.quantization.min_agreement, set_by="of the target"),
                progress=progress,
            )
            yield Lowered(assignment=assignment, model=embedded(width.lowered.model, width.lowered.large))

    return replace(_blame(loaded, profile, lowered(), data, samples, progress), subject=str(master))


def _load(path: Path) -> Lowered:
    model = read_model(path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, onnx.checker.ValidationError) as exc:  # onnx follows no symbolic link
        raise GraphError(
            where=str(path),
            got=f"its weights cannot be read: {exc}",
            allowed="weights in files beside it",
            do="copy the package again, as files",
        ) from exc
    return Lowered(assignment=read_stamp(model, where=str(path)).assignment, model=model)


def _blame(
    master: Master, target: Target, graphs: Iterator[Lowered], data: Path | None, samples: int, progress: Progress
) -> BlameResult:
    if len(master.spec.inputs) != 1:
        raise DataError(
            where="blame",
            got=f"a network with {len(master.spec.inputs)} inputs",
            allowed="networks with one input",
            do="compare the graphs in your own code; no format of data here says which input is which",
        )
    batch = master.spec.inputs[0].shape[0] if master.spec.inputs[0].shape else None
    whole = -(-samples // batch) * batch if isinstance(batch, int) else samples
    test = load_test_samples(master, data, limit=whole)
    if test is None:
        raise DataError(where="--data", got="no data", allowed="a folder or an .npz file", do="name one with --data")
    if test.n % (test.fixed_batch or 1):
        raise DataError(
            where="--data",
            got=f"{test.n} samples for a network that takes {test.fixed_batch} at a time",
            allowed=f"a multiple of {test.fixed_batch}",
            do="choose --samples so that they fill batches, or add samples",
        )
    switchable = SwitchableGraph(master)
    widths = tuple(_width(master, target, lowered, switchable, test, progress) for lowered in graphs)
    return BlameResult(subject="", target=target.name, master_sha256=master.sha256, dataset=test.summary, widths=widths)


def _width(
    master: Master, target: Target, graph: Lowered, switchable: SwitchableGraph, test: Dataset, progress: Progress
) -> WidthBlame:
    canonical = canonical_graph(master, graph.assignment)
    canonical = replace(canonical, model=embedded(canonical.model, canonical.large))
    is_run_here = target.engine.name == "onnxruntime"
    runtime = Runtime(optimisation="all" if is_run_here else "off", session_options=dict(target.engine.session))
    lowered = LoweredComparison(master, canonical, graph.model, runtime=runtime)
    quantized = QuantizedWidth(switchable, graph.assignment)
    progress.start(f"{graph.assignment.label}: comparing layers", test.n)
    for x, y in test.batches(batch_size(test)):
        quantized.add(x, y, lowered.add(x, y))
        progress.advance(len(x))
    found, layers = lowered.result(), quantized.layers()
    sensitive = sensitive_layer(layers, found.statistics, highest=master.spec.bits)
    return WidthBlame(
        label=graph.assignment.label,
        in_float=quantized.in_float.top1_percent,
        canonical=quantized.canonical,
        lowered=found.lowered,
        layers=layers,
        statistics=found.statistics,
        lowered_layers=found.lowered_layers,
        parts=found.parts,
        n_parts=found.n_parts,
        suspects=(*faults(each.part for each in found.parts), *sensitive),
    )
