"""`export`: from one master to a validated package."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from bitswitch_deploy import __version__
from bitswitch_deploy.catalogue import ResolvedTarget
from bitswitch_deploy.diagnosis.layer_look import LayerLook
from bitswitch_deploy.engines.onnxruntime_engine import host_text
from bitswitch_deploy.errors import CheckFailedError, UsageError
from bitswitch_deploy.graph.model_io import check_file
from bitswitch_deploy.graph.plan import plan_canonical
from bitswitch_deploy.graph.stamp import MadeFrom, stamp
from bitswitch_deploy.lowering.approximation import EXACT, EXPORTED, Approximation
from bitswitch_deploy.lowering.lower import MADE_BY, check_passes
from bitswitch_deploy.master import Master, read_master
from bitswitch_deploy.model_file import COMPRESSED_SUFFIX, SUFFIX, compressed
from bitswitch_deploy.package.destination import check_destination
from bitswitch_deploy.package.manifest import Manifest, SkippedStep
from bitswitch_deploy.package.writer import PackageWriter
from bitswitch_deploy.pipeline.approximation_limit import ApproximationLimit
from bitswitch_deploy.pipeline.building.engine_recipe import EngineOptions, engine_profile
from bitswitch_deploy.pipeline.building.engine_step import EngineOutcome, make_engines
from bitswitch_deploy.pipeline.exporting.shared_weights import SharedWeights, check_sharing
from bitswitch_deploy.pipeline.graph_files import GraphFile, graph_stem, write_graph, write_reference
from bitswitch_deploy.pipeline.inputs import ExportData, load_export_data
from bitswitch_deploy.pipeline.look_at_layers import look_at_layers
from bitswitch_deploy.pipeline.lower_width import LoweredWidth, lower_width
from bitswitch_deploy.pipeline.package_target import stack_facts
from bitswitch_deploy.pipeline.progress import Progress, Silent
from bitswitch_deploy.report.export_report import ExportReport, NotDone, WidthRow
from bitswitch_deploy.report.html.export import ExportContent, export_html
from bitswitch_deploy.report.json import report_to_json
from bitswitch_deploy.target import Target
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.validation.dataset import Dataset
from bitswitch_deploy.validation.hops import ValidationResult, Verdict, WidthResult, judge

RESULTS = "results.json"
REPORT = "report.html"
_TOOLS = ("numpy", "onnx", "onnx-graphsurgeon", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What to export, and where to. `command` is the command line that makes the same package again.

    approximations: tried beyond the usual ones, see `lower_width`. min_agreement: percent of predictions that they must
    leave, whatever labels say; None takes the target's limit. strict: without any, and refuse what is not exact.
    """

    master: Path
    target: ResolvedTarget
    output: Path
    widths: tuple[WidthAssignment, ...]
    data: Path | None = None
    calibration: Path | None = None
    max_drop: float = 1.0
    min_agreement: float | None = None
    strict: bool = False
    approximations: frozenset[Approximation] = EXACT
    shared_weights: bool = False
    force: bool = False
    command: tuple[str, ...] = ()


def export(request: ExportRequest, progress: Progress | None = None) -> ExportReport:
    """Derive, lower, build, validate and package every width. The package appears whole or not at all.

    Returns:
        The report; its verdicts say whether accuracy fell by more than `max_drop`, which is no exception here.

    Raises:
        CheckFailedError: `strict` and a width whose lowering is not exact; an output that is not finite.
        UsageError: an option that does not fit, or the output exists.
        InputFileError: the master or the data are damaged.
        OutputError: the package cannot be written.
    """
    started = time.monotonic()
    progress = progress or Silent()
    target = request.target.target
    if request.shared_weights:
        check_sharing(target)
    check_passes(target)
    _check_approximations(request)
    check_destination(request.output, force=request.force)
    master = read_master(request.master)
    for assignment in request.widths:
        plan_canonical(master, assignment)  # what does not fit is refused before the first is worked on
    options = EngineOptions(fp32=request.strict)
    if target.engine.name != "onnxruntime":
        engine_profile(master.spec.inputs, options)
    data = load_export_data(master, data=request.data, calibration=request.calibration)
    with PackageWriter(request.output, force=request.force) as writer:
        shared = SharedWeights(writer, master, graph_stem(request.master)) if request.shared_weights else None
        job = _Job(request=request, master=master, data=data, writer=writer, shared=shared, progress=progress)
        references = _references(job)
        outcomes = [_export_width(job, each) for each in request.widths]
        weights = shared.finish() if shared else ""
        graphs = [*(outcome.graph for outcome in outcomes), *references]
        engines = make_engines(writer, graphs, target, master.spec, options, progress)
        rows = _rows(request, master, outcomes, engines, data.test)
        report = ExportReport(
            target=target.name,
            stack=stack_text(target),
            note=request.target.note or "",
            master_path=str(request.master),
            master_sha256=master.sha256,
            dataset=data.test.summary if data.test else None,
            widths=rows,
            not_done=(*_validation_not_done(request, data.test), *engines.not_done),
            package_path=str(request.output),
            shared_weights=weights,
            shared_bytes=shared.size_bytes if shared else 0,
            seconds=time.monotonic() - started,
            host=host_text(),
        )
        # two exports give the same results
        results = replace(report, package_path="", seconds=0.0)
        writer.write(RESULTS, report_to_json(results).encode(), role="results")
        tools = _tools(engines)
        writer.write(REPORT, _html(request, writer, outcomes, tools, report).encode(), role="report")
        writer.commit(_manifest(request, master, writer, engines, report))
    return report


def _check_approximations(request: ExportRequest) -> None:
    target = request.target.target
    asked = request.approximations
    if request.strict and (asked or request.min_agreement is not None):
        option = "--approximate" if asked else "--min-agreement"
        got = ", ".join(sorted(each.value for each in asked)) if asked else f"{request.min_agreement:g}"
        do = "leave out one of the two options"
        raise UsageError(where=option, got=f"{got} with --strict", allowed="none: nothing is approximated", do=do)
    useless = sorted(each.value for each in asked if MADE_BY[each] not in target.lowering)
    if useless:
        able = [each.value for each in MADE_BY if each not in EXPORTED and MADE_BY[each] in target.lowering]
        raise UsageError(
            where="--approximate",
            got=f"{', '.join(useless)} for target {target.name}",
            allowed=", ".join(able) or "none",
            do="choose one of these, or another target" if able else "leave it out, or choose another target",
        )


def stack_text(target: Target) -> str:
    """The software that the graphs were made for, in words."""
    runtime = "JetPack " if target.stack.l4t else ""
    return (
        f"{runtime}{target.stack.name}, {target.engine.name} {target.stack.engine_version}, opset {target.stack.opset}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What is left of one width when its graphs are written: not the graphs, so memory does not grow with widths."""

    graph: GraphFile
    bits: int | None
    exact: bool
    changes: tuple[str, ...]
    approximations: tuple[str, ...]
    result: WidthResult | None
    look: LayerLook | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What every width of one export needs. shared: None where each graph has its own weights."""

    request: ExportRequest
    master: Master
    data: ExportData
    writer: PackageWriter
    shared: SharedWeights | None
    progress: Progress


def _references(job: _Job) -> tuple[GraphFile, ...]:
    """What engines are compared with, where the target has engines; written first, while there is least in memory."""
    target = job.request.target.target
    if target.engine.name == "onnxruntime":
        return ()
    job.progress.start("deriving the FP16 reference", 1)
    return (write_reference(job.writer, job.master, graph_stem(job.request.master), target),)


def _export_width(job: _Job, assignment: WidthAssignment) -> _Outcome:
    request, master, target = job.request, job.master, job.request.target.target
    job.progress.start(f"{assignment.label}: deriving and lowering", 1)
    wanted = EXACT if request.strict else EXPORTED | request.approximations
    width = lower_width(
        master, assignment, target, data=job.data, wanted=wanted, limit=_limit(request), progress=job.progress
    )
    if request.strict and not width.exact:
        raise _not_exact(width, target)
    made_from = MadeFrom(master_sha256=master.sha256, target=target.name, assignment=assignment)
    stamp(width.lowered.model, made_from)
    samples = None if width.lowered.large else job.data.test or job.data.calibration
    # before the graph is written: sharing weights uses it up
    look = look_at_layers(master, width.canonical, width.lowered.model, samples) if samples is not None else None
    graph = _write_graph(job, f"{graph_stem(request.master)}-{assignment.label}", width)
    notes = [f"{change.where}: {change.what}" for change in width.changes]
    if unused := width.unused(request.approximations):
        notes.append(f"approximations: {unused}")
    notes += job.shared.unshared(graph.path) if job.shared else ()
    return _Outcome(
        graph=graph,
        bits=None if assignment.overrides else assignment.default,
        exact=width.exact,
        changes=tuple(notes),
        approximations=tuple(sorted(each.value for each in width.lowered.approximations)),
        result=width.result,
        look=look,
    )


def _limit(request: ExportRequest) -> ApproximationLimit:
    """What the user asked for is agreement; the target's limit may be kept by labels, too."""
    if request.min_agreement is not None:
        return ApproximationLimit(min_agreement=request.min_agreement, by_labels=False)
    return ApproximationLimit(min_agreement=request.target.target.quantization.min_agreement)


def _write_graph(job: _Job, name: str, width: LoweredWidth) -> GraphFile:
    """One self-contained file, or the graph and a file with its large tensors; with shared weights the graph alone.

    That graph is compressed: four of them are much beside the weights of a small network.
    """
    model, large, label = width.lowered.model, width.lowered.large, width.canonical.plan.assignment.label
    if job.shared is not None:
        weight_bits = {layer.layer.weight: layer.bits for layer in width.canonical.plan.layers}
        path = f"{name}{COMPRESSED_SUFFIX}"
        data = job.shared.share(width.lowered, weight_bits, path)
        entry = job.writer.write(path, compressed(data), role="graph", label=label)
        check_file(job.writer.folder / path)
        return GraphFile(label=label, path=path, size_bytes=entry.size_bytes, is_large=bool(large))
    if large:
        job.progress.start(f"{label}: writing weights", 1)
    return write_graph(job.writer, model, large, GraphFile(label=label, path=f"{name}{SUFFIX}", size_bytes=0))


def _not_exact(width: LoweredWidth, target: Target) -> CheckFailedError:
    inexact = "; ".join(f"{change.where}: {change.what}" for change in width.changes if not change.exact)
    return CheckFailedError(
        where=f"{width.canonical.plan.assignment.label} for {target.name}",
        got=f"the lowering is not exact: {inexact}",
        allowed="with --strict, the integer codes of the canonical graph only",
        do="leave out --strict, choose another target, or train the master for it",
    )


def _rows(
    request: ExportRequest, master: Master, outcomes: Sequence[_Outcome], engines: EngineOutcome, test: Dataset | None
) -> tuple[WidthRow, ...]:
    results = tuple(outcome.result for outcome in outcomes if outcome.result is not None)
    verdicts: tuple[Verdict, ...] = ()
    if test is not None:
        measured = ValidationResult(dataset=test.summary, widths=results)
        verdicts = judge(measured, master.spec.accuracy, max_drop=request.max_drop)
    return tuple(
        WidthRow(
            label=outcome.graph.label,
            bits=outcome.bits,
            file_name=outcome.graph.path,
            size_bytes=outcome.graph.size_bytes,
            hops=outcome.result.hops if outcome.result is not None else (),
            exact=outcome.exact,
            changes=outcome.changes,
            approximations=outcome.approximations,
            engine=engine,
            layers=layers,
            verdicts=tuple(verdict for verdict in verdicts if verdict.label == outcome.graph.label),
        )
        for outcome, engine, layers in zip(outcomes, engines.texts, engines.layers, strict=True)
    )


def _validation_not_done(request: ExportRequest, test: Dataset | None) -> tuple[NotDone, ...]:
    if test is not None:
        return ()
    return (
        NotDone(
            what="validation",
            why="no data: the master was not measured on a bundled sample set, and --data was not given",
            command=f"bitswitch-deploy validate {shlex.quote(str(request.output))} --data PATH",
        ),
    )


def _manifest(
    request: ExportRequest, master: Master, writer: PackageWriter, engines: EngineOutcome, report: ExportReport
) -> Manifest:
    target = request.target.target
    return Manifest(
        master_sha256=master.sha256,
        target=target.name,
        stack=stack_facts(target),
        command=request.command,
        tools=_tools(engines),
        files=writer.files,
        results=RESULTS,
        built_on_device=engines.built_on_device,
        skipped=tuple(SkippedStep(step=item.what, reason=item.why) for item in report.not_done),
        preprocessing=master.spec.preprocessing,
        strict=request.strict,
    )


def _tools(engines: EngineOutcome) -> tuple[tuple[str, str], ...]:
    tools = (("bitswitch-deploy", __version__), *((name, metadata.version(name)) for name in _TOOLS), *engines.tools)
    return tuple(sorted(tools))


def _html(
    request: ExportRequest,
    writer: PackageWriter,
    outcomes: Sequence[_Outcome],
    tools: tuple[tuple[str, str], ...],
    report: ExportReport,
) -> str:
    """The page about the package; of its files all that are listed so far but the results, which hold a time."""
    content = ExportContent(
        title=f"{graph_stem(request.master)} for {report.target}",
        report=report,
        looks=tuple(outcome.look for outcome in outcomes if outcome.look is not None),
        files=tuple(entry for entry in writer.files if entry.role != "results"),
        tools=tools,
        command=request.command,
    )
    return export_html(content)
