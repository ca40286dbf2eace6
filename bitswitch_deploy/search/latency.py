"""A latency table as a search uses it: of this master, without its noise, and as far as it adds up.

Two measurements of one layer at one width differ. A search that takes each time as it is adds up the luckiest of every
layer, and buys with accuracy what nobody will measure again. So times of a layer that are no farther apart than

    max(NOISE * the shorter one, CLOCK_MS)              with UNSTABLE_NOISE where the table says that it is unstable

become one, their mean: the widest of these widths takes no longer than the others then, and they are left out as
dominated. From the shortest time on, each group takes what is that near to its own shortest.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from statistics import fmean

from bitswitch_deploy.errors import InputFileError, UsageError
from bitswitch_deploy.latency_table import LatencyTable
from bitswitch_deploy.master import Master

NS_PER_MS = 10**6
# Sums of times per layer that are farther from the measured whole than this predict nothing.
MAX_TABLE_ERROR = 0.25
# Of three tables of the bundled ResNet-20 at 8, 6, 4 and 2 bits, from a busy machine and UNSTABLE each, the times of a
# layer differ beside their sums by 1.7 % in the median, and by more than 7.7 % in one of twenty.
NOISE, UNSTABLE_NOISE = 0.05, 0.10
# onnxruntime's profiler counts whole microseconds
CLOCK_MS = 1e-3

_AGAIN = "measure it again: bitswitch-deploy profile PACKAGE --latency-table FILE"

Times = tuple[tuple[int, float], ...]
"""(width in bits, ms)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCheck:
    """How well a latency table adds up, and what was measured: batch_size, threads, unstable as in `LatencyTable`.

    errors_percent: (width, predicted against measured) of the uniform widths. margin_ns: added to every prediction, the
    most that a measured uniform width is slower than its prediction.
    noise_percent: times of a layer that differ by less were taken for one, as were n_alike of n_times.
    """

    target: str
    batch_size: int
    threads: int | None
    errors_percent: tuple[tuple[int, float], ...]
    margin_ns: int
    noise_percent: float
    n_alike: int
    n_times: int
    unstable: tuple[str, ...] = ()


def checked_table(
    table: LatencyTable, master: Master, *, layers: Collection[str], widths: Collection[int]
) -> tuple[LatencyTable, TableCheck]:
    """The table without its noise, and how well it adds up.

    layers, widths: that are searched.

    Raises:
        UsageError: it is of another master, or lacks a layer or a width.
        InputFileError: its layers do not add up to the whole.
    """
    where = f"latency table of {table.target}"
    if table.master_sha256 != master.sha256:
        raise UsageError(
            where=where,
            got=f"measured on the master with sha256 {table.master_sha256[:12]}",
            allowed=f"this master, sha256 {master.sha256[:12]}",
            do=_AGAIN,
        )
    missing = [str(width) for width in sorted(set(widths), reverse=True) if width not in table.widths]
    names = {layer.name for layer in table.layers}
    missing += [name for name in layers if name not in names]
    if missing:
        raise UsageError(
            where=where, got=f"without {', '.join(missing[:5])}", allowed="every width and layer", do=_AGAIN
        )
    noise = UNSTABLE_NOISE if table.unstable else NOISE
    settled = tuple(replace(layer, latency_ms=without_noise(layer.latency_ms, noise)) for layer in table.layers)
    n_alike = sum(
        old != new
        for old_layer, layer in zip(table.layers, settled)
        for old, new in zip(old_layer.latency_ms, layer.latency_ms)
    )
    return _added_up(replace(table, layers=settled), where, noise=noise, n_alike=n_alike)


def without_noise(latency_ms: Times, noise: float) -> Times:
    """Times of one layer, with one for those that differ by no more than the noise, a share of the shortest."""
    means: dict[int, float] = {}
    waiting = sorted(latency_ms, key=lambda time: time[1])
    while waiting:
        shortest = waiting[0][1]
        alike = [(width, ms) for width, ms in waiting if ms - shortest <= max(noise * shortest, CLOCK_MS)]
        means |= dict.fromkeys((width for width, _ in alike), fmean(ms for _, ms in alike))
        waiting = waiting[len(alike) :]
    return tuple((width, means[width]) for width, _ in latency_ms)


def _added_up(table: LatencyTable, where: str, *, noise: float, n_alike: int) -> tuple[LatencyTable, TableCheck]:
    predicted = {
        width: table.overhead_ms + sum(dict(layer.latency_ms)[width] for layer in table.layers)
        for width in table.widths
    }
    errors = tuple((width, predicted[width] / ms - 1 if ms else math.inf) for width, ms in table.end_to_end_ms)
    worst = max(errors, key=lambda error: abs(error[1]))
    if abs(worst[1]) > MAX_TABLE_ERROR:
        raise InputFileError(
            where=where,
            got=f"its layers add up to {100 * worst[1]:+.0f} % of what w{worst[0]} took as a whole",
            allowed=f"at most {100 * MAX_TABLE_ERROR:.0f} % apart",
            do=_AGAIN,
        )
    slower = max(ms - predicted[width] for width, ms in table.end_to_end_ms)
    return table, TableCheck(
        target=table.target,
        batch_size=table.batch_size,
        threads=table.threads,
        errors_percent=tuple((width, 100 * error) for width, error in errors),
        margin_ns=max(0, math.ceil(slower * NS_PER_MS)),
        noise_percent=100 * noise,
        n_alike=n_alike,
        n_times=len(table.layers) * len(table.widths),
        unstable=table.unstable,
    )
