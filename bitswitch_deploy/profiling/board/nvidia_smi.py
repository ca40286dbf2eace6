"""What `nvidia-smi` says about a discrete GPU. Jetson boards up to JetPack 6 have none."""

from __future__ import annotations

from dataclasses import dataclass

from bitswitch_deploy.profiling.board.host import Host

# "event" since driver 535; the other name before, and as an alias still.
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
_FIELDS = ("index", "name", "driver_version", "clocks.sm", "clocks.max.sm", "temperature.gpu", "power.draw")
# nvml.h, nvmlClocksEventReason*: those that slow a busy GPU down; 0x2 and 0x100 are clocks that were set.
_IDLE = 0x1
_SLOWING = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """One GPU now; None is what it does not tell. index: of nvidia-smi. throttling: what slows it down.

    is_idle: whether its clocks are those of a GPU without work.
    """

    index: int
    name: str
    driver: str
    sm_mhz: float | None
    max_sm_mhz: float | None
    temperature_c: float | None
    power_w: float | None
    throttling: tuple[str, ...]
    is_idle: bool


def query_gpus(host: Host) -> tuple[GpuState, ...]:
    """The GPU that engines run on; empty where there is no nvidia-smi or it says nothing."""
    for reasons in _REASONS:
        query = ",".join((*_FIELDS, reasons))
        text = host.run(("nvidia-smi", f"--id={host.gpu}", f"--query-gpu={query}", "--format=csv,noheader,nounits"))
        if text is not None:
            return parse_gpus(text)
    return ()


def parse_gpus(text: str) -> tuple[GpuState, ...]:
    """The states in the output of nvidia-smi; lines of another form are passed over."""
    states: list[GpuState] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(_FIELDS) + 1 or not cells[0].isdecimal():
            continue
        index, name, driver, sm_mhz, max_sm_mhz, temperature_c, power_w, mask = cells
        reasons = _mask(mask)
        states.append(
            GpuState(
                index=int(index),
                name=name,
                driver=driver,
                sm_mhz=_number(sm_mhz),
                max_sm_mhz=_number(max_sm_mhz),
                temperature_c=_number(temperature_c),
                power_w=_number(power_w),
                throttling=tuple(text for bit, text in _SLOWING.items() if reasons & bit),
                is_idle=bool(reasons & _IDLE),
            )
        )
    return tuple(states)


def _number(cell: str) -> float | None:
    """A cell; `[N/A]` and `[Not Supported]` are no number."""
    try:
        return float(cell)
    except ValueError:
        return None


def _mask(cell: str) -> int:
    """The bits of a cell; none where the GPU does not tell."""
    try:
        return int(cell, 16)
    except ValueError:
        return 0
