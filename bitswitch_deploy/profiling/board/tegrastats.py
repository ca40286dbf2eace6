"""Lines of tegrastats, in every form that JetPack 4 to 7 print.

What differs, and is read alike:

    GR3D_FREQ 0%@318    0%@[306]    0%@[0,0]    0%    @[1574,1574,1574]     the last one, of Thor, has no load
    CPU [3%@1904,off]   CPU [0%,5%,off]@2601
    CPU@39.5C    cpu@48.562C    tj@66.625C/66.625C    now [/ highest]; -256 is a sensor that is off

The date in front, rails and what is not known are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_GPU = re.compile(r"(?<!\S)GR3D_FREQ(?: (\d+)%)?(?: ?@\[?([\d, ]+)\]?)?")
_CPU = re.compile(r"(?<!\S)CPU \[")
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C(?:/-?\d+(?:\.\d+)?C)?(?!\S)")
_OFF_CELSIUS = -200


@dataclass(frozen=True, slots=True, kw_only=True)
class TegrastatsSample:
    """One line. gpu_load_percent: None where the board does not tell. gpu_mhz: of each cluster.

    temperatures_c: (sensor, value now).
    """

    gpu_load_percent: int | None
    gpu_mhz: tuple[int, ...]
    temperatures_c: tuple[tuple[str, float], ...]


def parse_tegrastats(lines: Iterable[str]) -> tuple[TegrastatsSample, ...]:
    """The samples in `lines`; other lines are passed over."""
    return tuple(sample for line in lines if (sample := _parse(line)) is not None)


def _parse(line: str) -> TegrastatsSample | None:
    gpu = _GPU.search(line)
    if gpu is None and _CPU.search(line) is None:
        return None
    temperatures = [(name, float(value)) for name, value in _TEMPERATURE.findall(line)]
    return TegrastatsSample(
        gpu_load_percent=int(gpu[1]) if gpu is not None and gpu[1] is not None else None,
        gpu_mhz=tuple(int(word) for word in re.findall(r"\d+", gpu[2] or "")) if gpu is not None else (),
        temperatures_c=tuple((name, value) for name, value in temperatures if value > _OFF_CELSIUS),
    )
