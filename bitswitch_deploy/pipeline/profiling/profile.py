"""`profile`: how fast every width of a package is on this machine, beside the float network it was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.engines.cpu_features import usable_cores
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.master import Master
from bitswitch_deploy.package.manifest import Manifest
from bitswitch_deploy.pipeline.checked_package import checked_manifest
from bitswitch_deploy.pipeline.package_master import find_master
from bitswitch_deploy.pipeline.package_target import package_target
from bitswitch_deploy.pipeline.profiling.bench import Bench, Width, package_widths
from bitswitch_deploy.pipeline.profiling.onnxruntime_bench import OnnxRuntimeBench
from bitswitch_deploy.pipeline.profiling.steps import (
    LayerProfiles,
    TimedBatch,
    batch_results,
    layer_names,
    measure_energy,
    probe_ownership,
    profile_layers,
    time_batch,
)
from bitswitch_deploy.pipeline.profiling.table import check_layers, check_table_request, latency_table, table_residuals
from bitswitch_deploy.pipeline.profiling.tensorrt_bench import TensorRtBench
from bitswitch_deploy.pipeline.profiling.trtexec_bench import Board, TrtexecBench, this_board
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.profiling.board.energy import find_meter
from bitswitch_deploy.profiling.board.host import Host
from bitswitch_deploy.profiling.board.sensors import device_name
from bitswitch_deploy.profiling.board.state import BoardRecord, BoardWatch
from bitswitch_deploy.profiling.budget import judge_budget
from bitswitch_deploy.profiling.drift import disturbance, drift
from bitswitch_deploy.profiling.interleave import Schedule
from bitswitch_deploy.profiling.result import CandidateResult, Energy, ProfileResult
from bitswitch_deploy.profiling.statistics import MIN_TURNS
from bitswitch_deploy.profiling.trace import chrome_trace
from bitswitch_deploy.target import Measure, Target
from bitswitch_deploy.tensors import MAX_BITS

EngineName = Literal["onnxruntime", "tensorrt", "tensorrt_rtx", "trtexec"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """What to measure.

    master: what the package was made from; None: see `find_master`. target: see `revalidate`.
    engine: None takes the one of the target. threads: None takes every core that may be used.
    turns, duration_s: of each candidate, at most one of them; None takes the time that the target's profile asks for.
    widths: labels; None takes all. budget_ms: for the p95 of every width.
    trace, latency_table: files to write. trust: time engines that bitswitch-deploy has no record of.
    """

    package: Path
    master: Path | None = None
    target: str | None = None
    engine: str | None = None
    batches: tuple[int, ...] = (1,)
    threads: int | None = None
    turns: int | None = None
    duration_s: float | None = None
    widths: tuple[str, ...] | None = None
    budget_ms: float | None = None
    trace: Path | None = None
    latency_table: Path | None = None
    trust: bool = False


def profile(
    request: ProfileRequest, progress: Progress, *, host: Host | None = None, board: Board | None = None
) -> ProfileResult:
    """Verify a package, open every width in one engine, and time them in turns.

    host: the machine that is looked at. board: where trtexec runs. None: this one, both.

    Raises:
        CheckFailedError: a file of the package is not as it was exported.
        PackageError: the manifest cannot be read.
        UsageError: an unknown width or engine, a master of another package, a batch that the graphs do not take, a
            target that is not bundled and not named.
        UnavailableError: the engine is not here, it has no times for a latency table, or another profile is running on
            this machine.
        OutputError: a file cannot be written.
    """
    host = host or Host()
    manifest = checked_manifest(request.package)
    target = package_target(manifest, request.target)
    engine = _engine(request, target)
    widths = package_widths(request.package, manifest, request.widths)
    master = find_master(manifest, request.master)
    if request.latency_table is not None:
        check_table_request(widths, request.batches, engine=engine, target=target, master=master)
    check_turns(request.turns, request.duration_s)
    with ExitStack() as stack:
        stack.enter_context(host.alone())
        bench = _open(request, manifest, widths, master=master, board=board, stack=stack)
        if request.latency_table is not None and engine != "onnxruntime":
            # before minutes are spent: onnxruntime runs its nodes one by one, TensorRT may run several layers in one
            check_layers(probe_ownership(bench, request.batches[0], layer_names(master), progress), widths)
        measured = _measured(bench, request, target, master, host, progress)
    result = _result(request, manifest, widths, measured)
    return _with_files(request, result, widths, measured, master, host)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What was found out about an open bench: a list entry for each batch size."""

    bench: Bench
    engine: EngineName
    target: Target
    schedule: Schedule
    batches: tuple[TimedBatch, ...]
    energies: tuple[Mapping[str, Energy], ...]
    layers: tuple[LayerProfiles, ...]
    board: BoardRecord


def _measured(
    bench: Bench, request: ProfileRequest, target: Target, master: Master | None, host: Host, progress: Progress
) -> _Measured:
    """Time, then energy, then layers: what comes later slows down what is measured."""
    engine = _engine(request, target)
    schedule = schedule_for(target.measure, bench.turn_ms, turns=request.turns, duration_s=request.duration_s)
    on_gpu = engine != "onnxruntime"
    watch = BoardWatch(host, on_gpu=on_gpu)
    batches = tuple(time_batch(bench, batch, schedule, watch, progress) for batch in request.batches)
    state = watch.end()
    # trtexec loads the engine anew each time, which would be counted as well
    rails = target.measure.total_rails
    meter = find_meter(host, total_rails=rails, of_gpu=on_gpu) if engine != "trtexec" else None
    energies = tuple(measure_energy(bench, each, meter, schedule, progress) for each in batches)
    layers = tuple(profile_layers(bench, each, layer_names(master), progress) for each in batches)
    return _Measured(
        bench=bench,
        engine=engine,
        target=target,
        schedule=schedule,
        batches=batches,
        energies=energies,
        layers=layers,
        board=state,
    )


def _result(request: ProfileRequest, manifest: Manifest, widths: Sequence[Width], measured: _Measured) -> ProfileResult:
    bench, schedule, engine = measured.bench, measured.schedule, measured.engine
    bits = {width.label: width.bits for width in widths}
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
        reference=_about_reference(engine, bench.reference),
        candidates=candidates,
        budget=judge_budget([each for each in candidates if each.label != bench.reference], request.budget_ms),
        board=measured.board,
        unstable=(*measured.board.unstable, *_disturbances(candidates)),
        notes=(*_notes(widths, schedule, measured.target, engine), *bench.notes),
    )


def _with_files(
    request: ProfileRequest,
    result: ProfileResult,
    widths: Sequence[Width],
    measured: _Measured,
    master: Master | None,
    host: Host,
) -> ProfileResult:
    """Write the files that were asked for, of the first batch size; the result says how well the table predicts."""
    layers = measured.layers[0]
    if request.trace is not None:
        owners = {label: ownership.owner_of for label, ownership in layers.ownership.items()}
        replace_file(request.trace, chrome_trace(layers.runs, owners).encode())
    if request.latency_table is None:
        return result
    about = (("processor", device_name(host) or "unknown"), *measured.bench.device)
    table = latency_table(result, layers, widths, master, about)
    table.write(request.latency_table)
    return replace(result, residuals=table_residuals(table, result, widths))


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


def _notes(widths: Sequence[Width], schedule: Schedule, target: Target, engine: str) -> tuple[str, ...]:
    notes = []
    wanted_s, got_s = target.measure.min_seconds, schedule.turns * schedule.turn_ms / 1e3
    if got_s < wanted_s:
        notes.append(f"{got_s:.1f} s for each candidate; the profile of {target.name} asks for {wanted_s:g} s")
    if engine not in (target.engine.name, "trtexec"):
        notes.append(f"the package is for {target.engine.name}: in {engine} its graphs are not what they were made for")
    if any(width.bits is None or width.bits < MAX_BITS for width in widths):
        notes.append("codes below 8 bits are computed by the same 8-bit kernels: no width is faster for its bits")
    return tuple(notes)


def _engine(request: ProfileRequest, target: Target) -> EngineName:
    name = request.engine or target.engine.name
    for engine in ENGINES:
        if engine == name:
            return engine
    raise UsageError(where="--engine", got=repr(name), allowed=", ".join(ENGINES), do="choose one of these")


def _open(
    request: ProfileRequest,
    manifest: Manifest,
    widths: Sequence[Width],
    *,
    master: Master | None,
    board: Board | None,
    stack: ExitStack,
) -> Bench:
    target = package_target(manifest, request.target)
    engine = _engine(request, target)
    if engine == "trtexec":
        return TrtexecBench(request.package, manifest, widths, target, board or this_board(), trust=request.trust)
    if engine != "onnxruntime":
        return TensorRtBench(request.package, manifest, widths, engine, stack=stack, trust=request.trust)
    threads = request.threads if request.threads is not None else usable_cores()
    return OnnxRuntimeBench(request.package, manifest, widths, master=master, threads=threads, stack=stack)


def schedule_for(measure: Measure, turn_ms: float, *, turns: int | None, duration_s: float | None) -> Schedule:
    """The turns of one measurement: as many as asked for, else as long as the target's profile wants, 6 or more.

    The warm-up keeps the proportion of the profile.
    """
    wanted = turns if turns is not None else math.ceil(1e3 * (duration_s or measure.min_seconds) / turn_ms)
    wanted = max(wanted, MIN_TURNS)
    warmup = math.ceil(wanted * measure.min_warmup_s / measure.min_seconds) if measure.min_seconds else 0
    return Schedule(turns=wanted, warmup_turns=max(1, min(warmup, wanted)), turn_ms=turn_ms)


def check_turns(turns: int | None, duration_s: float | None) -> None:
    """Refuse what no ratio can be computed from.

    Raises:
        UsageError: too few turns, or a number of turns and a duration.
    """
    if turns is not None and duration_s is not None:
        raise UsageError(where="--duration", got="--turns as well", allowed="one of the two", do="leave one out")
    if turns is not None and turns < MIN_TURNS:
        raise UsageError(
            where="--turns",
            got=str(turns),
            allowed=f"{MIN_TURNS} or more: fewer hold no confidence interval",
            do=f"use --turns {MIN_TURNS} or more",
        )
