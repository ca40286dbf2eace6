"""Energy of a piece of work: counters of the processor (RAPL), or power that is read while it runs.

RAPL (Documentation/power/powercap of the Linux kernel) counts microjoules of a processor package and wraps around;
kernels since 5.10 let only root read it. Rails and nvidia-smi tell power now, which is integrated (trapezoids) over the
readings of a thread. Either way it is all that the board, GPU or package takes, what it takes when idle included.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Protocol

from bitswitch_deploy.profiling.board.host import Host
from bitswitch_deploy.profiling.board.nvidia_smi import query_gpus
from bitswitch_deploy.profiling.board.sensors import rail_watts

_RAPL = "sys/class/powercap/intel-rapl:[0-9]*"
_INTERVAL_S = 0.02


class EnergyMeter(Protocol):
    """Measures one piece of work after the other."""

    @property
    def source(self) -> str:
        """What is measured, for people."""

    def start(self) -> None:
        """The work begins."""

    def stop(self) -> float | None:
        """The work has ended: joules since `start`, None where the source went silent."""


def find_meter(host: Host, *, total_rails: tuple[str, ...], of_gpu: bool) -> EnergyMeter | None:
    """The best meter of a machine, None where there is none.

    Args:
        host: the machine.
        total_rails: what adds up to the board, from the target's profile.
        of_gpu: whether the work runs on a discrete GPU.
    """
    names = [name for name, _ in rail_watts(host)]
    if total_rails and set(total_rails) <= set(names):
        return SampledPower(f"INA rails {' + '.join(total_rails)}", lambda: _board_watts(host, total_rails))
    for gpu in query_gpus(host) if of_gpu else ():
        if gpu.power_w is not None:
            return SampledPower(f"nvidia-smi, GPU {gpu.index}", lambda: _gpu_watts(host))
    # by name: core, uncore and dram are parts of a package or beside it, psys is the platform with the packages in it
    packages = [path for path in host.find(_RAPL) if (host.text(path / "name") or "").startswith("package-")]
    are_readable = all(host.number(path / "energy_uj") is not None for path in packages)
    return RaplCounters(host, packages) if packages and are_readable and not of_gpu else None


class RaplCounters:
    """The energy counters of all processor packages."""

    source = "RAPL, processor packages"

    def __init__(self, host: Host, domains: list[Path]) -> None:
        self._host, self._domains = host, domains
        self._before: list[int | None] = []

    def start(self) -> None:
        """Remember the counters."""
        self._before = self._read()

    def stop(self) -> float | None:
        """Joules since then; a counter that is behind where it was has wrapped around once."""
        total = 0
        for domain, before, after in zip(self._domains, self._before, self._read(), strict=True):
            if before is None or after is None:
                return None
            total += after - before
            if after < before:
                total += self._host.number(domain / "max_energy_range_uj") or 0
        return total / 1e6

    def _read(self) -> list[int | None]:
        return [self._host.number(domain / "energy_uj") for domain in self._domains]


class SampledPower:
    """Power that a thread reads while the work runs."""

    def __init__(
        self, source: str, read_watts: Callable[[], float | None], *, clock: Callable[[], float] = perf_counter
    ) -> None:
        self.source = source
        self._read, self._clock = read_watts, clock
        self._readings: list[tuple[float, float]] = []
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to read."""
        self._readings.clear()
        self._done.clear()
        self._take()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> float | None:
        """End reading; None where fewer than two readings came."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        self._take()
        pairs = list(zip(self._readings, self._readings[1:]))
        if not pairs:
            return None
        return sum((end - begin) * (first + last) / 2 for (begin, first), (end, last) in pairs)

    def _sample(self) -> None:
        while not self._done.wait(_INTERVAL_S):
            self._take()

    def _take(self) -> None:
        watts = self._read()
        if watts is not None:
            self._readings.append((self._clock(), watts))


def _gpu_watts(host: Host) -> float | None:
    return next((gpu.power_w for gpu in query_gpus(host)), None)


def _board_watts(host: Host, total_rails: tuple[str, ...]) -> float | None:
    rails = dict(rail_watts(host))
    if not set(total_rails) <= set(rails):
        return None
    return sum(rails[name] for name in total_rails)
