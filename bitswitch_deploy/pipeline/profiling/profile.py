"""`profile`: how fast every width of a package is on this machine, beside the float network it was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import mean

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.engines.cpu_features import usable_cores
from bitswitch_deploy.package.manifest import Manifest
from bitswitch_deploy.pipeline.checked_package import checked_manifest
from bitswitch_deploy.pipeline.profiling.bench import Bench, Feeds, Width
from bitswitch_deploy.pipeline.profiling.onnxruntime_bench import OnnxRuntimeBench
from bitswitch_deploy.pipeline.profiling.request import EngineName, ProfileRequest, Subject, check_request
from bitswitch_deploy.pipeline.profiling.steps import (
    LayerProfiles,
    TimedBatch,
    batch_results,
    layer_names,
    measure_energy,
    pace_batch,
    probe_ownership,
    profile_layers,
    time_batch,
)
from bitswitch_deploy.pipeline.profiling.table import check_layers, latency_table, table_residuals
from bitswitch_deploy.pipeline.profiling.tensorrt_bench import TensorRtBench
from bitswitch_deploy.pipeline.profiling.trtexec_bench import Board, TrtexecBench, this_board
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.profiling.board.energy import find_meter
from bitswitch_deploy.profiling.board.host import Host
from bitswitch_deploy.profiling.board.sensors import device_name
from bitswitch_deploy.profiling.board.state import BoardRecord, BoardWatch
from bitswitch_deploy.profiling.budget import judge_budget
from bitswitch_deploy.profiling.drift import disturbance, drift
from bitswitch_deploy.profiling.feeds import make_feeds
from bitswitch_deploy.profiling.interleave import Schedule
from bitswitch_deploy.profiling.result import CandidateResult, Energy, ProfileResult
from bitswitch_deploy.profiling.statistics import MIN_TURNS
from bitswitch_deploy.profiling.trace import chrome_trace
from bitswitch_deploy.target import Measure
from bitswitch_deploy.tensors import MAX_BITS


def profile(
    request: ProfileRequest, progress: Progress, *, host: Host | None = None, board: Board | None = None
) -> ProfileResult:
    """Verify a package, open every width in one engine, and time them in turns.

    host: the machine that is looked at. board: where trtexec runs. None: this one, both.

    Raises:
        CheckFailedError: a file of the package is not as it was exported.
        PackageError: the manifest cannot be read.
        UsageError: as `check_request`, or a batch that the graphs do not take.
        UnavailableError: the engine is not here, it has no times for a latency table, or another profile is running on
            this machine.
        OutputError: a file cannot be written.
    """
    host = host or Host()
    manifest = checked_manifest(request.package)
    subject = check_request(request, manifest)
    with ExitStack() as stack:
        stack.enter_context(host.alone())
        bench = _open(request, manifest, subject, board=board, stack=stack)
        feeds = [make_feeds(next(iter(bench.sessions.values())).inputs, batch) for batch in request.batches]
        if request.latency_table is not None and subject.engine != "onnxruntime":
            # before minutes are spent: onnxruntime runs its nodes one by one, TensorRT may run several layers in one
            check_layers(probe_ownership(bench, feeds[0], layer_names(subject.master), progress), subject.widths)
        measured = _measured(bench, request, subject, feeds, host, progress)
    result = _result(request, manifest, subject, measured)
    return _with_files(request, result, subject, measured, host)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What was found out about an open bench: a list entry for each batch size."""

    bench: Bench
    schedule: Schedule
    batches: tuple[TimedBatch, ...]
    energies: tuple[Mapping[str, Energy], ...]
    layers: tuple[LayerProfiles, ...]
    board: BoardRecord


def _measured(
    bench: Bench, request: ProfileRequest, subject: Subject, feeds: Sequence[Feeds], host: Host, progress: Progress
) -> _Measured:
    """Time, then energy, then layers: what comes later slows down what is measured.

    feeds: for each batch size.
    """
    measure, names = subject.target.measure, layer_names(subject.master)
    paced = [pace_batch(bench, batch, each, progress) for batch, each in zip(request.batches, feeds)]
    turn_ms = mean(pace.turn_ms for each in paced for pace in each.paces.values())
    schedule = schedule_for(measure, turn_ms, turns=request.turns, duration_s=request.duration_s)
    on_gpu = subject.engine != "onnxruntime"
    with BoardWatch(host, on_gpu=on_gpu) as watch:
        batches = tuple(time_batch(bench, each, schedule, watch, progress) for each in paced)
        state = watch.end()
    # trtexec loads the engine anew each time, which would be counted as well
    is_metered = subject.engine != "trtexec"
    meter = find_meter(host, total_rails=measure.total_rails, of_gpu=on_gpu) if is_metered else None
    energies = tuple(measure_energy(bench, each, meter, schedule, progress) for each in batches)
    layers = tuple(profile_layers(bench, each, names, progress) for each in batches)
    return _Measured(bench=bench, schedule=schedule, batches=batches, energies=energies, layers=layers, board=state)


def _result(request: ProfileRequest, manifest: Manifest, subject: Subject, measured: _Measured) -> ProfileResult:
    bench, schedule = measured.bench, measured.schedule
    bits = {width.label: width.bits for width in subject.widths}
    candidates = tuple(
        candidate
        for each, energy, layers in zip(measured.batches, measured.energies, measured.layers)
        for candidate in batch_results(each, bits, layers, energy, reference=bench.reference)
    )
    return ProfileResult(
        package=str(request.package),
        master_sha256=manifest.master_sha256,
        target=manifest.target,
        engine=bench.name,
        engine_version=bench.version,
        timed=bench.timed,
        threads=bench.threads,
        turns=schedule.turns,
        warmup_turns=schedule.warmup_turns,
        turn_ms=schedule.turn_ms,
        reference_label=bench.reference,
        reference=_about_reference(subject.engine, bench.reference),
        candidates=candidates,
        budget=judge_budget([each for each in candidates if each.label != bench.reference], request.budget_ms),
        board=measured.board,
        unstable=(*measured.board.unstable, *_disturbances(candidates)),
        notes=(*_notes(subject, schedule, candidates), *bench.notes),
    )


def _with_files(
    request: ProfileRequest,
    result: ProfileResult,
    subject: Subject,
    measured: _Measured,
    host: Host,
) -> ProfileResult:
    """Write the files that were asked for, of the one batch size; the result says how well the table predicts."""
    layers = measured.layers[0]
    if request.trace is not None:
        owners = {label: ownership.owner_of for label, ownership in layers.ownership.items()}
        replace_file(request.trace, chrome_trace(layers.runs, owners).encode())
    if request.latency_table is None:
        return result
    about = (("processor", device_name(host) or "unknown"), *measured.bench.device)
    table = latency_table(result, layers, subject.widths, subject.master, about)
    table.write(request.latency_table)
    return replace(result, residuals=table_residuals(table, result, subject.widths))


def _disturbances(candidates: Sequence[CandidateResult]) -> tuple[str, ...]:
    found = [drift(f"{each.label} at batch {each.batch_size}", each.turn_medians_ms) for each in candidates]
    found.append(disturbance([each.statistics for each in candidates]))
    return tuple(sentence for sentence in found if sentence is not None)


def _about_reference(engine: EngineName, label: str | None) -> str:
    if label is None and engine == "onnxruntime":
        return "none: the master is not at hand, name it with --master FILE"
    if label is None:
        return "none: there is no FP16 engine of the float network in this package"
    if engine != "onnxruntime":
        return "the float network of the master, built in FP16"
    return "the float network of the master: same topology, weights = codes x scale, no quantizer, in the same engine"


def _notes(subject: Subject, schedule: Schedule, candidates: Sequence[CandidateResult]) -> tuple[str, ...]:
    target, engine = subject.target, subject.engine
    notes = []
    wanted_s, got_s = target.measure.min_seconds, schedule.turns * schedule.turn_ms / 1e3
    if got_s < wanted_s:
        notes.append(f"{got_s:.1f} s for each candidate; the profile of {target.name} asks for {wanted_s:g} s")
    if engine not in (target.engine.name, "trtexec"):
        notes.append(f"the package is for {target.engine.name}: in {engine} its graphs are not what they were made for")
    narrow = [width for width in subject.widths if width.bits is None or width.bits < MAX_BITS]
    if narrow and not _has_kernels_of_its_own(narrow, candidates):
        notes.append("codes below 8 bits are computed by the same 8-bit kernels: no width is faster for its bits")
    return tuple(notes)


def _has_kernels_of_its_own(narrow: Sequence[Width], candidates: Sequence[CandidateResult]) -> bool:
    """Whether some of these widths may be computed by kernels for narrow codes: weight-only products are."""
    operators = {each.label: dict(each.operators) for each in candidates}
    return any(width.is_weight_only or "MatMulNBits" in operators[width.label] for width in narrow)


def _open(
    request: ProfileRequest,
    manifest: Manifest,
    subject: Subject,
    *,
    board: Board | None,
    stack: ExitStack,
) -> Bench:
    engine, widths = subject.engine, subject.widths
    if engine == "trtexec":
        return TrtexecBench(
            request.package, manifest, widths, subject.target, board or this_board(), trust=request.trust
        )
    if engine != "onnxruntime":
        return TensorRtBench(request.package, manifest, widths, engine, stack=stack, trust=request.trust)
    threads = request.threads if request.threads is not None else usable_cores()
    return OnnxRuntimeBench(request.package, manifest, widths, master=subject.master, threads=threads, stack=stack)


def schedule_for(measure: Measure, turn_ms: float, *, turns: int | None, duration_s: float | None) -> Schedule:
    """The turns of one measurement: as many as asked for, else as long as the target's profile wants, 6 or more.

    The warm-up keeps the proportion of the profile. turn_ms: how long a turn takes, the mean of all candidates.
    """
    wanted = turns if turns is not None else math.ceil(1e3 * (duration_s or measure.min_seconds) / turn_ms)
    wanted = max(wanted, MIN_TURNS)
    warmup = math.ceil(wanted * measure.min_warmup_s / measure.min_seconds) if measure.min_seconds else 0
    return Schedule(turns=wanted, warmup_turns=max(1, min(warmup, wanted)), turn_ms=turn_ms)
