"""Lines of tegrastats, in every form that JetPack 4 to 7 print.

What differs, and is read alike:

    GR3D_FREQ 0%@318    0%@[306]    0%@[0,0]    0%    @[1574,1574,1574]     the last one, of Thor, has no load
    CPU [3%@1904,off]   CPU [0%,5%,off]@2601
    VDD_IN 4319mW/4319mW    VDD_GPU 37939mW/8660mW/37939mW    POM_5V_IN 2532/2698      now / average [/ highest]
    CPU@39.5C    cpu@48.562C    tj@66.625C/66.625C    now [/ highest]; -256 is a sensor that is off

The date in front is left out, and what is not known is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_GPU = re.compile(r"(?<!\S)GR3D_FREQ(?: (\d+)%)?(?: ?@\[?([\d, ]+)\]?)?")
_CPU = re.compile(r"(?<!\S)CPU \[([^\]]*)\](?:@(\d+))?")
_CORE = re.compile(r"(\d+)%(?:@(\d+))?")
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C(?:/-?\d+(?:\.\d+)?C)?(?!\S)")
_POWER = re.compile(r"(?<!\S)([A-Z]\w*) (-?\d+)(?:mW)?/-?\d+(?:mW)?(?:/-?\d+(?:mW)?)?(?!\S)")
_OFF_CELSIUS = -200
# Channels that nothing is connected to.
_NOT_CONNECTED = "NC"


@dataclass(frozen=True, slots=True, kw_only=True)
class TegrastatsSample:
    """One line. gpu_load_percent: None where the board does not tell. gpu_mhz: of each cluster.

    cpu_mhz: of each core that is on. temperatures_c, power_mw: (sensor or rail, value now).
    """

    gpu_load_percent: int | None
    gpu_mhz: tuple[int, ...]
    cpu_mhz: tuple[int, ...]
    temperatures_c: tuple[tuple[str, float], ...]
    power_mw: tuple[tuple[str, int], ...]


def parse_tegrastats(lines: Iterable[str]) -> tuple[tuple[TegrastatsSample, ...], int]:
    """The samples in `lines`, and how many lines that are not empty were none."""
    samples, unknown = [], 0
    for line in lines:
        sample = _parse(line)
        if sample is not None:
            samples.append(sample)
        else:
            unknown += bool(line.strip())
    return tuple(samples), unknown


def _parse(line: str) -> TegrastatsSample | None:
    gpu, cpu = _GPU.search(line), _CPU.search(line)
    if gpu is None and cpu is None:
        return None
    temperatures = [(name, float(value)) for name, value in _TEMPERATURE.findall(line)]
    return TegrastatsSample(
        gpu_load_percent=int(gpu[1]) if gpu is not None and gpu[1] is not None else None,
        gpu_mhz=tuple(int(word) for word in re.findall(r"\d+", gpu[2] or "")) if gpu is not None else (),
        cpu_mhz=_core_mhz(cpu) if cpu is not None else (),
        temperatures_c=tuple((name, value) for name, value in temperatures if value > _OFF_CELSIUS),
        power_mw=tuple((name, int(value)) for name, value in _POWER.findall(line) if name != _NOT_CONNECTED),
    )


def _core_mhz(cpu: re.Match[str]) -> tuple[int, ...]:
    cores = _CORE.findall(cpu[1])
    return tuple(int(mhz or cpu[2]) for _, mhz in cores if mhz or cpu[2])
