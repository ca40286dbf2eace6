"""The steps of a profile: time, energy, layers; and what they come to for each candidate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import numpy as np

from bitswitch_deploy.engines.cpu_features import cpu_features
from bitswitch_deploy.engines.read_back import ReadBack
from bitswitch_deploy.master import Master
from bitswitch_deploy.pipeline.profiling.bench import Bench, Feeds
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.profiling.board.energy import EnergyMeter
from bitswitch_deploy.profiling.board.state import BoardWatch
from bitswitch_deploy.profiling.interleave import Pace, Schedule, interleave, learn_pace, turn_medians
from bitswitch_deploy.profiling.layers import LayerName, Ownership, ProfiledRuns, operator_times
from bitswitch_deploy.profiling.result import CandidateResult, Energy, OperatorTime
from bitswitch_deploy.profiling.statistics import Milliseconds, Ratio, describe, ratio
from bitswitch_deploy.profiling.verdict import cause_in_engine, cause_in_graph, is_faster, speed_verdict

# Long enough for rails that are read fifty times in a second; no longer than the timing itself.
_MAX_ENERGY_MS = 2000.0
# Of one turn of the profiler, which writes about a kilobyte for each node and run.
_PROFILE_MS = 100.0
_MAX_PROFILED_RUNS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedBatch:
    """Latencies in ms of all candidates at one batch size, for each turn."""

    batch_size: int
    feeds: Feeds
    turns: Mapping[str, tuple[Milliseconds, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProfiles:
    """By label: the profiled runs, whose time each node is, the times, and engines read back."""

    runs: Mapping[str, ProfiledRuns] = field(default_factory=dict)
    ownership: Mapping[str, Ownership] = field(default_factory=dict)
    times: Mapping[str, tuple[OperatorTime, ...]] = field(default_factory=dict)
    engines: Mapping[str, ReadBack] = field(default_factory=dict)


def layer_names(master: Master | None) -> tuple[LayerName, ...]:
    """The layers of a master; none where it is not at hand."""
    layers = master.spec.layers if master is not None else ()
    return tuple(LayerName(name=each.name, weight=each.weight, is_quantized=not each.pinned) for each in layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class PacedBatch:
    """One batch size: what the networks are fed with, and by label what a turn of each is."""

    batch_size: int
    feeds: Feeds
    paces: Mapping[str, Pace]


def pace_batch(bench: Bench, batch: int, feeds: Feeds, progress: Progress) -> PacedBatch:
    """Learn how long a run of each candidate is, by a few of them.

    Raises:
        BitswitchError: as the engine.
    """
    progress.start(f"looking at the time of a run, batch {batch}", len(bench.sessions))
    paces = {}
    for label, session in bench.sessions.items():
        paces[label] = learn_pace(partial(session.time_runs, feeds), bench.turn_ms)
        progress.advance()
    return PacedBatch(batch_size=batch, feeds=feeds, paces=paces)


def time_batch(
    bench: Bench, paced: PacedBatch, schedule: Schedule, watch: BoardWatch, progress: Progress
) -> TimedBatch:
    """Time every candidate at one batch size.

    Raises:
        BitswitchError: as the engine.
    """
    batch, feeds = paced.batch_size, paced.feeds
    total = (schedule.warmup_turns + schedule.turns) * len(bench.sessions)
    progress.start(f"timing, batch {batch}", total)

    def after_turn(is_warmup: bool) -> None:
        progress.advance()
        watch.look(warming_up=is_warmup)

    runners = {label: partial(session.time_runs, feeds) for label, session in bench.sessions.items()}
    turns = interleave(runners, paced.paces, schedule, after_turn=after_turn)
    return TimedBatch(batch_size=batch, feeds=feeds, turns=turns)


def measure_energy(
    bench: Bench, timed: TimedBatch, meter: EnergyMeter | None, schedule: Schedule, progress: Progress
) -> dict[str, Energy]:
    """Energy of one inference of each candidate, in runs of their own; nothing where there is no meter."""
    if meter is None:
        return {}
    progress.start(f"energy, batch {timed.batch_size}", len(bench.sessions))
    energies = {}
    for label in bench.sessions:
        wanted_ms = min(_MAX_ENERGY_MS, schedule.turns * schedule.turn_ms)
        runs = max(1, round(wanted_ms / _median(timed.turns[label])))
        meter.start()
        begin = perf_counter()
        bench.sessions[label].time_runs(timed.feeds, runs)
        seconds = perf_counter() - begin
        joules = meter.stop()
        progress.advance()
        if joules is not None:
            energies[label] = Energy(
                source=meter.source,
                millijoules_per_inference=1e3 * joules / (runs * timed.batch_size),
                mean_watts=joules / seconds,
                seconds=seconds,
            )
    return energies


def profile_layers(bench: Bench, timed: TimedBatch, layers: Sequence[LayerName], progress: Progress) -> LayerProfiles:
    """The time of every operator of each candidate, in runs of their own: the profiler slows them down."""
    progress.start(f"layers, batch {timed.batch_size}", 1)
    runs_of = {
        label: int(np.clip(_PROFILE_MS / _median(turns), 1, _MAX_PROFILED_RUNS)) for label, turns in timed.turns.items()
    }
    runs = bench.profile(timed.feeds, runs_of)
    ownership = {label: bench.ownership(label, layers, profile) for label, profile in runs.items()}
    times = {
        label: operator_times(profile, ownership[label], p50_ms=_median(timed.turns[label]))
        for label, profile in runs.items()
    }
    progress.advance()
    engines = {label: found for label in runs if (found := bench.read_back(label)) is not None}
    return LayerProfiles(runs=runs, ownership=ownership, times=times, engines=engines)


def probe_ownership(
    bench: Bench, feeds: Feeds, layers: Sequence[LayerName], progress: Progress
) -> Mapping[str, Ownership]:
    """Whose time the layers of each candidate would be, by a few runs of each.

    Raises:
        BitswitchError: as the engine.
    """
    progress.start("looking at the layers", 1)
    runs = bench.profile(feeds, dict.fromkeys(bench.sessions, 1))
    progress.advance()
    return {label: bench.ownership(label, layers, profile) for label, profile in runs.items()}


def batch_results(
    timed: TimedBatch,
    bits: Mapping[str, int | None],
    layers: LayerProfiles,
    energies: Mapping[str, Energy],
    *,
    reference: str | None,
) -> tuple[CandidateResult, ...]:
    """What was found out about each candidate.

    bits: by label, of the uniform widths. reference: label, None where there is none.
    """
    medians = {label: turn_medians(turns) for label, turns in timed.turns.items()}
    results = []
    for label, turns in timed.turns.items():
        against = None
        if reference is not None and label != reference:
            against = ratio(medians[label], medians[reference], reference=reference)
        times = layers.times.get(label, ())
        results.append(
            CandidateResult(
                label=label,
                bits=bits.get(label),
                batch_size=timed.batch_size,
                statistics=describe(np.concatenate(turns), batch=timed.batch_size),
                turn_medians_ms=medians[label],
                ratio=against,
                verdict=_verdict(against, layers, label) if against else "",
                operators=tuple(sorted(Counter(each.operator for each in times).items())),
                layers=times,
                energy=energies.get(label),
            )
        )
    return tuple(results)


def _verdict(against: Ratio, layers: LayerProfiles, label: str) -> str:
    """The sentence, with why it is no faster where that is so."""
    if is_faster(against):
        return speed_verdict(against)
    engine = layers.engines.get(label)
    if engine is not None:
        return speed_verdict(against, cause_in_engine(engine))
    return speed_verdict(against, cause_in_graph(layers.times.get(label, ()), cpu_features()))


def _median(turns: Sequence[Milliseconds]) -> float:
    return max(float(np.median(np.concatenate(turns))), 1e-3)
