"""`bitswitch.yaml`: what a repository wants to be checked. Paths are relative to the file.

masters: [net.safetensors]        # the bundled digits network where it is left out
targets: [x86-cpu, jetson]
widths: [8, 6, 4, 2, mixed.json]  # a name is a JSON file of layer -> width
data: photos/                     # the bundled set of the master where it is left out
calibration: train.npz            # samples for approximations; as for export
approximations: {net x86-cpu w8: [residual-codes]}  # what export kept; chosen on the calibration samples if left out
metric: top-1
baseline: bitswitch-baseline.json
limits: {max_drop: 0.0, effect: 1.0, alpha: 0.05, power: 0.8}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bitswitch_deploy.errors import InputFileError
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.master import master_name
from bitswitch_deploy.records import Reader
from bitswitch_deploy.tensors import MAX_BITS, MIN_BITS
from bitswitch_deploy.yaml_file import read_yaml

DEFAULT_NAME = "bitswitch.yaml"
# The bootstrap draws in inverse proportion to it: below, one case alone takes millions of draws.
MIN_ALPHA = 1e-4
_APPROXIMATIONS = tuple(each.value for each in Approximation)
_READER = Reader(error=InputFileError, do="correct the configuration: bitswitch_deploy/gate/README.md has every key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What counts as a regression.

    max_drop: what a case may lose, in the unit of the metric; 0 or more.
    effect: what it may not lose unnoticed beyond `max_drop`; above 0. Decides whether there are enough samples.
    alpha: probability that a run in which nothing fell by more than `max_drop` is called a regression; MIN_ALPHA to
        0.5.
    power: probability that a case that fell by max_drop + effect is, where there are enough samples.

    Raises:
        ValueError: a value outside its range.
    """

    max_drop: float = 0.0
    effect: float = 1.0
    alpha: float = 0.05
    power: float = 0.8

    def __post_init__(self) -> None:
        if not (0 <= self.max_drop < math.inf and 0 < self.effect < math.inf):
            raise ValueError("max_drop must be 0 or more and effect above 0, and both finite")
        if not (MIN_ALPHA <= self.alpha <= 0.5 <= self.power < 1):
            raise ValueError(f"alpha must be {MIN_ALPHA:g} to 0.5, power at least 0.5 and below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckConfig:
    """What the file says.

    Raises:
        ValueError: no target or width, one of them twice or empty, a width that is none, an unknown approximation.
    """

    targets: tuple[str, ...]
    widths: tuple[int | str, ...]
    masters: tuple[str, ...] = ()
    data: str | None = None
    calibration: str | None = None
    approximations: tuple[tuple[str, tuple[str, ...]], ...] = ()
    metric: str = "top-1"
    baseline: str = "bitswitch-baseline.json"
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        for name in ("targets", "widths", "masters"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} holds something twice")
        texts = (*self.targets, *self.widths, *self.masters, self.data, self.calibration, self.baseline)
        if "" in texts:  # as of a variable that is not set; `data` would become the bundled set
            raise ValueError("an empty name or path; leave the key out for its default")
        if not self.targets or not self.widths:
            raise ValueError("at least one target and one width are needed")
        wrong = [bits for bits in self.widths if isinstance(bits, int) and not MIN_BITS <= bits <= MAX_BITS]
        if wrong:
            raise ValueError(f"the width {wrong[0]} is not in {MIN_BITS}..{MAX_BITS}")
        if len(dict(self.approximations)) != len(self.approximations):
            raise ValueError("approximations holds a case twice")
        for case, kept in self.approximations:
            unknown = [name for name in kept if name not in _APPROXIMATIONS]
            if unknown:
                raise ValueError(f"the approximation {unknown[0]} is none of {', '.join(_APPROXIMATIONS)}")
            if len(set(kept)) != len(kept):
                raise ValueError(f"the approximations of {case} hold something twice")
        for what, names in (
            ("masters", [master_name(Path(name)) for name in self.masters]),
            ("widths", [width_label(width) for width in self.widths]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"two {what} have the same name, which is what the baseline knows them by")


def width_label(width: int | str) -> str:
    """The name of a width: `w8`, or that of its file."""
    return f"w{width}" if isinstance(width, int) else Path(width).stem


def read_config(path: Path) -> CheckConfig:
    """The configuration in a YAML file.

    Raises:
        InputFileError: it cannot be read, is not YAML, has a key that is unknown or given twice, or a wrong value.
    """
    if not path.exists():
        do = "write one: bitswitch_deploy/gate/README.md shows how; or name it: bitswitch-deploy check FILE"
        raise InputFileError(where=str(path), got="does not exist", allowed="a YAML file", do=do)
    document = read_yaml(path, source=str(path), refuse=partial(_READER.refusal, is_text=True))
    return _READER.decode(CheckConfig, document, where=str(path))
