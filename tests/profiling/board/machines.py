"""Machines made of a folder and a table of commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bitswitch_deploy.profiling.board.host import Host

# Jetson Linux Developer Guide r36: one policy for each cluster, devfreq of the GPU, INA3221 by hwmon, event counters of
# over-current. Paths of JetPack 5 and 6; for JetPack 7 they are not confirmed.
JETSON_FILES = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "etc/nvpmodel.conf": "# x\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=25W >\n",
    "var/lib/nvpmodel/status": "pmode:0001 fmode:quiet",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1344000",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "1344000",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1344000",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil",
    "sys/class/devfreq/17000000.gpu/cur_freq": "918000000",
    "sys/class/devfreq/17000000.gpu/min_freq": "918000000",
    "sys/class/devfreq/17000000.gpu/max_freq": "918000000",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000",
    "sys/class/devfreq/15340000.vic/min_freq": "115200000",
    "sys/class/devfreq/15340000.vic/max_freq": "729600000",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "48562",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal",
    "sys/class/thermal/thermal_zone2/temp": "-256000",
    "sys/class/thermal/thermal_zone10/type": "tj-thermal",
    "sys/class/thermal/thermal_zone10/temp": "49312",
    "sys/class/hwmon/hwmon1/name": "soctherm_oc",
    "sys/class/hwmon/hwmon1/oc1_event_cnt": "0",
    "sys/class/hwmon/hwmon1/oc3_event_cnt": "2",
    "sys/class/hwmon/hwmon2/name": "ina3221",
    "sys/class/hwmon/hwmon2/in1_label": "VDD_IN",
    "sys/class/hwmon/hwmon2/in1_input": "5000",
    "sys/class/hwmon/hwmon2/curr1_input": "1200",
    "sys/class/hwmon/hwmon2/in2_label": "VDD_CPU_GPU_CV",
    "sys/class/hwmon/hwmon2/in2_input": "4992",
    "sys/class/hwmon/hwmon2/curr2_input": "250",
    "sys/class/hwmon/hwmon2/in3_label": "NC",
    "sys/class/hwmon/hwmon2/in3_input": "0",
    "sys/class/hwmon/hwmon2/curr3_input": "0",
    "sys/class/hwmon/hwmon2/in7_label": "sum of shunt voltages",
    "sys/class/hwmon/hwmon2/in7_input": "7",
}
# A laptop: intel_pstate, coretemp, RAPL with one part of the package.
X86_FILES = {
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some Processor 7\nflags\t\t: avx2\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "800000",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "400000",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "4700000",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "powersave",
    "sys/devices/system/cpu/cpufreq/policy1/scaling_cur_freq": "4500000",
    "sys/devices/system/cpu/cpufreq/policy1/scaling_min_freq": "400000",
    "sys/devices/system/cpu/cpufreq/policy1/scaling_max_freq": "4700000",
    "sys/devices/system/cpu/cpufreq/policy1/scaling_governor": "powersave",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "4",
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "9",
    "sys/class/hwmon/hwmon0/name": "coretemp",
    "sys/class/hwmon/hwmon0/temp1_label": "Package id 0",
    "sys/class/hwmon/hwmon0/temp1_input": "61000",
    "sys/class/powercap/intel-rapl:0/name": "package-0",
    "sys/class/powercap/intel-rapl:0/energy_uj": "1000000",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "10000000",
    "sys/class/powercap/intel-rapl:0:0/name": "core",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "700000",
}


def machine(root: Path, files: Mapping[str, str], commands: Mapping[str, str] | None = None) -> Host:
    """Write the files and answer commands by the beginning of their line; others are missing."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")

    def run(words: Sequence[str]) -> str | None:
        line = " ".join(words)
        return next((text for start, text in (commands or {}).items() if line.startswith(start)), None)

    return Host(root=root, run=run, start=lambda words: None, gpu="0")
