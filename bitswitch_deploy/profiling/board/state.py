"""The board before, during and after a measurement, and whether it stood still meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from bitswitch_deploy.profiling.board import sensors
from bitswitch_deploy.profiling.board.host import Host, Recording
from bitswitch_deploy.profiling.board.nvidia_smi import GpuState, query_gpus
from bitswitch_deploy.profiling.board.sensors import Clock
from bitswitch_deploy.profiling.board.tegrastats import parse_tegrastats

# A run whose readings move by more is not one measurement but several.
MAX_TEMPERATURE_CHANGE_C = 5.0
MAX_CLOCK_CHANGE = 0.05
# Reading all sensors of a Jetson takes some milliseconds.
_INTERVAL_S = 0.5
_TEGRASTATS = ("tegrastats", "--interval", "500")
_FASTEST_CPU = "fastest cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardState:
    """One look at the machine; empty or None is what it does not tell.

    clocks_locked: whether every known clock has equal limits. throttle_events: counters since boot.
    """

    power_mode: str | None
    governors: tuple[str, ...]
    clocks: tuple[Clock, ...]
    clocks_locked: bool | None
    temperatures_c: tuple[tuple[str, float], ...]
    throttle_events: tuple[tuple[str, int], ...]
    rails_w: tuple[tuple[str, float], ...]
    gpus: tuple[GpuState, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Lowest and highest reading of one sensor during the measured turns."""

    name: str
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardRecord:
    """before: in front of the warm-up. during: between the measured turns. after: behind the last one.

    unstable: why the numbers are not one measurement; empty when nothing moved that could be seen.
    unknown: what this machine does not tell, so that nothing is claimed about it.
    """

    before: BoardState
    after: BoardState
    looks: int
    temperatures_c: tuple[Span, ...]
    clocks_mhz: tuple[Span, ...]
    unstable: tuple[str, ...]
    unknown: tuple[str, ...]


def read_state(host: Host, *, with_gpus: bool = True) -> BoardState:
    """One look at the machine; `with_gpus` asks nvidia-smi, which takes tens of milliseconds."""
    host.refresh()
    clocks = sensors.clocks(host)
    return BoardState(
        power_mode=sensors.power_mode(host),
        governors=sensors.governors(host),
        clocks=clocks,
        clocks_locked=all(clock.is_locked for clock in clocks) if clocks else None,
        temperatures_c=sensors.temperatures_c(host),
        throttle_events=sensors.throttle_events(host),
        rails_w=sensors.rail_watts(host),
        gpus=query_gpus(host) if with_gpus else (),
    )


class BoardWatch:
    """Looks at a machine between turns, at most twice in a second: a thread would disturb what is measured.

    Where there is a tegrastats it runs beside the measured turns: it sees the clock of the GPU while the GPU is busy.
    As a context it leaves none of them running, whatever ends it.

    Args:
        host: the machine. on_gpu: whether the work runs on a discrete GPU, so that nvidia-smi is asked as well.
        clock: seconds, for tests.
    """

    def __init__(self, host: Host, *, on_gpu: bool, clock: Callable[[], float] = monotonic) -> None:
        self._host, self._on_gpu, self._clock = host, on_gpu, clock
        self._before = read_state(host, with_gpus=on_gpu)
        self._temperatures: dict[str, list[float]] = {}
        self._clocks: dict[str, list[float]] = {}
        self._slowed: dict[str, None] = {}
        self._looks, self._next_s = 0, -1.0
        self._tegrastats: Recording | None = None
        self._is_measuring = False

    def __enter__(self) -> BoardWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_recording()

    def look(self, *, warming_up: bool) -> None:
        """A turn has ended."""
        if warming_up:
            self._take_tegrastats(self._stop_recording())
            self._is_measuring = False
            return
        if not self._is_measuring:
            self._is_measuring = True
            self._tegrastats = self._host.start(_TEGRASTATS)
        if self._clock() < self._next_s:
            return
        self._next_s = self._clock() + _INTERVAL_S
        self._looks += 1
        self._host.refresh()
        for name, celsius in sensors.temperatures_c(self._host):
            self._temperatures.setdefault(name, []).append(celsius)
        clocks = sensors.clocks(self._host)
        # cores that idle clock down while the busy one does not: the fastest one counts
        cores = [clock.mhz for clock in clocks if clock.name.startswith("cpu")]
        # between two turns a GPU idles, so that of its own clock only one that may not go down tells something
        locked = {clock.name: clock.mhz for clock in clocks if not clock.name.startswith("cpu") and clock.is_locked}
        for name, mhz in (locked | ({_FASTEST_CPU: max(cores)} if cores else {})).items():
            self._clocks.setdefault(name, []).append(mhz)
        for gpu in query_gpus(self._host) if self._on_gpu else ():
            self._look_at(gpu)

    def _look_at(self, gpu: GpuState) -> None:
        name = f"GPU {gpu.index}"
        if gpu.temperature_c is not None:
            self._temperatures.setdefault(name, []).append(gpu.temperature_c)
        if gpu.sm_mhz is not None and not gpu.is_idle:
            self._clocks.setdefault(name, []).append(gpu.sm_mhz)
        self._slowed |= dict.fromkeys(f"{name}: {reason}" for reason in gpu.throttling)

    def _stop_recording(self) -> str:
        """What tegrastats printed since it was started; nothing where none runs."""
        recording, self._tegrastats = self._tegrastats, None
        return recording.stop() if recording is not None else ""

    def _take_tegrastats(self, text: str) -> None:
        for sample in parse_tegrastats(text.splitlines()):
            # a GPU that idles between two turns clocks down, and that moves nothing that is measured; where the board
            # does not tell the load, as Thor, its clock says nothing
            if sample.gpu_mhz and sample.gpu_load_percent:
                self._clocks.setdefault("tegrastats GR3D", []).append(max(sample.gpu_mhz))
            for name, celsius in sample.temperatures_c:
                self._temperatures.setdefault(f"tegrastats {name}", []).append(celsius)

    def end(self) -> BoardRecord:
        """The whole record; nothing is measured any more."""
        self._take_tegrastats(self._stop_recording())
        after = read_state(self._host, with_gpus=self._on_gpu)
        temperatures, clocks = _spans(self._temperatures), _spans(self._clocks)
        moved = (*_moved(temperatures, clocks), *_changed(self._before, after), *self._slowed)
        return BoardRecord(
            before=self._before,
            after=after,
            looks=self._looks,
            temperatures_c=temperatures,
            clocks_mhz=clocks,
            unstable=moved,
            unknown=_unknown(after, clocks, on_gpu=self._on_gpu),
        )


def _spans(readings: dict[str, list[float]]) -> tuple[Span, ...]:
    return tuple(Span(name=name, lowest=min(values), highest=max(values)) for name, values in readings.items())


def _moved(temperatures: tuple[Span, ...], clocks: tuple[Span, ...]) -> list[str]:
    reasons = [
        f"temperature {span.name} moved from {span.lowest:.1f} to {span.highest:.1f} C, "
        f"more than {MAX_TEMPERATURE_CHANGE_C:g} C"
        for span in temperatures
        if span.highest - span.lowest > MAX_TEMPERATURE_CHANGE_C
    ]
    reasons += [
        f"clock {span.name} moved between {span.lowest:.0f} and {span.highest:.0f} MHz, "
        f"more than {MAX_CLOCK_CHANGE:.0%}"
        for span in clocks
        if span.highest - span.lowest > MAX_CLOCK_CHANGE * span.highest
    ]
    return reasons


def _changed(before: BoardState, after: BoardState) -> list[str]:
    reasons = []
    if before.power_mode != after.power_mode:
        reasons.append(f"the power mode went from {before.power_mode} to {after.power_mode}")
    limits = [{clock.name: (clock.min_mhz, clock.max_mhz) for clock in state.clocks} for state in (before, after)]
    reasons += [f"the limits of clock {name} changed" for name in limits[0] if limits[0][name] != limits[1].get(name)]
    counted = dict(before.throttle_events)
    reasons += [
        f"{name}: {count - counted[name]} events while measuring"
        for name, count in after.throttle_events
        if count > counted.get(name, count)
    ]
    return reasons


def _unknown(state: BoardState, clocks: tuple[Span, ...], *, on_gpu: bool) -> tuple[str, ...]:
    known = {
        "clocks": bool(clocks),
        "clock of the busy GPU": not on_gpu or not clocks or any(span.name != _FASTEST_CPU for span in clocks),
        "temperatures": bool(state.temperatures_c or any(gpu.temperature_c is not None for gpu in state.gpus)),
        "throttling": bool(state.throttle_events or state.gpus),
        "power": bool(state.rails_w or any(gpu.power_w is not None for gpu in state.gpus)),
    }
    return tuple(name for name, is_known in known.items() if not is_known)
