"""A device as the board that is looked at: its commands run there, its files are copied here before each look."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from bitswitch_deploy.package.manifest import is_inside
from bitswitch_deploy.profiling.board.host import Host, Recording
from bitswitch_deploy.remote.device import PatientFolder

_ROOT = "/"
_TIMEOUT_S = 10
_NOT_FOUND = 127
# All that profiling/board/sensors.py and engines/device_facts.py read.
_FILES = (
    "proc/device-tree/model",
    "proc/device-tree/compatible",
    "proc/cpuinfo",
    "etc/nv_tegra_release",
    "etc/nvpmodel.conf",
    "var/lib/nvpmodel/status",
    "sys/devices/system/cpu/cpufreq/policy*/scaling_*",
    "sys/devices/system/cpu/cpu*/thermal_throttle/*_count",
    "sys/devices/system/cpu/cpu*/topology/physical_package_id",
    "sys/devices/system/cpu/cpu*/topology/core_id",
    "sys/class/devfreq/*/*_freq",
    "sys/class/thermal/thermal_zone*/type",
    "sys/class/thermal/thermal_zone*/temp",
    "sys/class/hwmon/hwmon*/name",
    "sys/class/hwmon/hwmon*/*_label",
    "sys/class/hwmon/hwmon*/*_input",
    "sys/class/hwmon/hwmon*/*_event_cnt",
)
# one process for all files, each line behind its path and a zero byte
_READ = f"cd {{}} && grep -asHZ '' {' '.join(_FILES)} || :"


def host_of(folder: PatientFolder, copy: Path) -> Host:
    """The device of a folder, which is locked by `folder` already; `copy`: an empty folder here for its files."""
    missing: set[str] = set()

    def run(words: Sequence[str]) -> str | None:
        if words[0] in missing:  # asked before each look otherwise
            return None
        done = folder.run(f"timeout --foreground {_TIMEOUT_S} {shlex.join(words)} 2>/dev/null")
        if done.code == _NOT_FOUND:
            missing.add(words[0])
        return done.stdout.decode("utf-8", "replace") if done.code == 0 else None

    def start(words: Sequence[str]) -> Recording | None:
        if folder.run(f"command -v {shlex.quote(words[0])}").code:
            return None
        folder.start(shlex.join(words))
        return _Recorded(folder)

    def refresh() -> None:
        _copy(folder.run(_READ.format(shlex.quote(_ROOT))).stdout, copy)

    return Host(root=copy, run=run, start=start, refresh=refresh, alone=nullcontext, gpu="0")


class _Recorded:
    """A command that goes on printing there."""

    def __init__(self, folder: PatientFolder) -> None:
        self._folder = folder

    def stop(self) -> str:
        """End it; what it printed."""
        return self._folder.stop().decode("utf-8", "replace")


def _copy(found: bytes, copy: Path) -> None:
    """Write the files that grep found, and no other: what is gone there is gone here."""
    contents: dict[str, bytes] = {}
    for line in found.split(b"\n"):
        path, zero, text = line.partition(b"\0")
        if zero:
            name = path.decode("utf-8", "replace")
            contents[name] = contents.get(name, b"") + text + b"\n"
    for old in copy.rglob("*"):
        if old.is_file():
            old.unlink()
    for name, content in contents.items():
        # a device does not choose where files are written here
        if is_inside(name):
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
