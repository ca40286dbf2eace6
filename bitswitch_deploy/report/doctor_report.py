"""The result of `doctor` as frozen values. Nothing in it names a machine or its user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bitswitch_deploy.engines.device_facts import DeviceFacts

State = Literal["here", "missing", "broken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One part of the installation. what: what it is for. detail: its version, or what is wrong. do: how to get it."""

    name: str
    what: str
    state: State
    detail: str
    do: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One command of the self-test. detail: what it measured, or the last lines that it wrote."""

    name: str
    works: bool
    seconds: float
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """What was found on a machine; trials are empty where no self-test was asked for."""

    version: str
    python: str
    system: str
    device: DeviceFacts
    findings: tuple[Finding, ...]
    trials: tuple[Trial, ...]

    @property
    def is_ok(self) -> bool:
        """Whether everything required is here, nothing is broken and each trial worked."""
        bad = any(
            each.state == "broken" or (each.state, each.what) == ("missing", "required") for each in self.findings
        )
        return not bad and all(trial.works for trial in self.trials)
