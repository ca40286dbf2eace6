"""Clocks, temperatures, throttling and power mode, as the kernel and nvpmodel tell them. Needs no root.

Sources: Documentation/ABI of the Linux kernel for cpufreq, devfreq, thermal and hwmon; the Jetson Linux Developer Guide
(r35, r36: Platform Power and Performance) for nvpmodel, the INA3221 rails and the event counters of over-current
throttling.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from bitswitch_deploy.profiling.board.host import Host

# Names of the GPU below /sys/class/devfreq: 17000000.gpu, 17000000.ga10b, 57000000.gpu, gpu-gpc-0
_GPU_NAMES = re.compile(r"gpu|g[avpm]\d+b")
_CPU_THERMOMETERS = ("coretemp", "k10temp")
_OFF_MILLICELSIUS = -200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """One clock now, and the limits that it may move in."""

    name: str
    mhz: float
    min_mhz: float
    max_mhz: float

    @property
    def is_locked(self) -> bool:
        """Whether it has nowhere to go."""
        return self.min_mhz == self.max_mhz


def power_mode(host: Host) -> str | None:
    """Name of the nvpmodel mode; None where there is none. By name: ids mean other modes on other modules.

    Where `nvpmodel -q` is refused the id that nvpmodel stored is looked up in its configuration.
    """
    match = re.search(r"NV Power Mode:\s*(\S.*)", host.run(("nvpmodel", "-q")) or "")
    if match:
        return match[1].strip()
    stored = re.search(r"pmode:0*(\d+)", host.text("var/lib/nvpmodel/status") or "")
    models = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", host.text("etc/nvpmodel.conf") or "")
    return dict(models).get(stored[1]) if stored else None


def clocks(host: Host) -> tuple[Clock, ...]:
    """Clocks of the processor, one for each policy, and of an integrated GPU."""
    found = []
    for policy in host.find("sys/devices/system/cpu/cpufreq/policy*"):
        values = [host.number(policy / f"scaling_{part}_freq") for part in ("cur", "min", "max")]
        found.append((policy.name.replace("policy", "cpu"), values, 1e3))
    for device in host.find("sys/class/devfreq/*"):
        if _GPU_NAMES.search(device.name):
            found.append((device.name, [host.number(device / f"{part}_freq") for part in ("cur", "min", "max")], 1e6))
    return tuple(
        Clock(name=name, mhz=now / unit, min_mhz=low / unit, max_mhz=high / unit)
        for name, (now, low, high), unit in found
        if now is not None and low is not None and high is not None
    )


def governors(host: Host) -> tuple[str, ...]:
    """Frequency governors of the processor, each once."""
    found = (host.text(path) for path in host.find("sys/devices/system/cpu/cpufreq/policy*/scaling_governor"))
    return tuple(sorted({text for text in found if text}))


def temperatures_c(host: Host) -> tuple[tuple[str, float], ...]:
    """(sensor, degrees Celsius) of every thermal zone and processor thermometer that is on, each under its own name."""
    found = []
    for zone in host.find("sys/class/thermal/thermal_zone*"):
        found.append((host.text(zone / "type") or zone.name, zone.name, host.number(zone / "temp")))
    for chip in host.find("sys/class/hwmon/hwmon*"):
        name = host.text(chip / "name")
        if name in _CPU_THERMOMETERS:
            for file in sorted(chip.glob("temp*_input")):
                label = host.text(file.with_name(file.name.replace("_input", "_label"))) or file.name
                found.append((f"{name} {label}", chip.name, host.number(file)))
    named = _named_apart(found)
    return tuple((name, value / 1e3) for name, value in named if value is not None and value > _OFF_MILLICELSIUS)


def _named_apart(found: list[tuple[str, str, int | None]]) -> list[tuple[str, int | None]]:
    """(name, value) of each (name, folder, value): a name that several sensors have is followed by the folder.

    A PC has several zones of the type acpitz, and a Core 0 in each socket.
    """
    times = Counter(name for name, _, _ in found)
    return [(f"{name} ({folder})" if times[name] > 1 else name, value) for name, folder, value in found]


def throttle_events(host: Host) -> tuple[tuple[str, int], ...]:
    """(counter, events since boot) of the counters that can be read: over-current on Jetson, heat on x86."""
    files = host.find("sys/class/hwmon/hwmon*/oc*_event_cnt")
    found = [
        (f"over-current {file.name.removesuffix('_event_cnt')}", file.parent.name, host.number(file)) for file in files
    ]
    counters = _named_apart(found)
    counters += [(f"thermal throttling, {kind}", _throttled(host, kind)) for kind in ("core", "package")]
    return tuple((name, count) for name, count in counters if count is not None)


def _throttled(host: Host, kind: str) -> int | None:
    """Events of all cores or packages; each logical processor of one has the same counter."""
    counts: dict[tuple[int | str | None, ...], int] = {}
    for file in host.find(f"sys/devices/system/cpu/cpu*/thermal_throttle/{kind}_throttle_count"):
        cpu, count = file.parent.parent, host.number(file)
        package, core = (host.number(cpu / "topology" / name) for name in ("physical_package_id", "core_id"))
        of = (cpu.name,) if package is None else (package,) if kind == "package" else (package, core)
        if count is not None:
            counts[of] = max(count, counts.get(of, 0))
    return sum(counts.values()) if counts else None


def rail_watts(host: Host) -> tuple[tuple[str, float], ...]:
    """(rail, watts) of the INA power monitors: INA3221 by voltage and current, others by the power they report."""
    rails: list[tuple[str, int | None, float]] = []
    for chip in host.find("sys/class/hwmon/hwmon*"):
        chip_name = host.text(chip / "name") or ""
        if not chip_name.startswith("ina"):
            continue
        for file in sorted(chip.glob("power*_input")):
            index = file.name.removeprefix("power").removesuffix("_input")
            label = host.text(chip / f"power{index}_label") or host.text(chip / f"in{index}_label") or chip_name
            rails.append((label, host.number(file), 1e6))
        for file in sorted(chip.glob("curr*_input")):
            index = file.name.removeprefix("curr").removesuffix("_input")
            millivolts, milliamperes = host.number(chip / f"in{index}_input"), host.number(file)
            rail = host.text(chip / f"in{index}_label")
            if rail and rail != "NC" and millivolts is not None and milliamperes is not None:
                rails.append((rail, millivolts * milliamperes, 1e6))
    return tuple((name, value / unit) for name, value, unit in rails if value is not None)


def device_name(host: Host) -> str | None:
    """The board or the processor, as the kernel calls it."""
    board = host.text("proc/device-tree/model")
    if board:
        return board
    match = re.search(r"^model name\s*:\s*(.+)$", host.text("proc/cpuinfo") or "", re.MULTILINE)
    return match[1].strip() if match else None
