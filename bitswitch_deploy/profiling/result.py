"""What a profile found out, as frozen values; as JSON under the schema `SCHEMA`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bitswitch_deploy.engines.optimized_operators import Arithmetic
from bitswitch_deploy.profiling.board.state import BoardRecord
from bitswitch_deploy.profiling.statistics import LatencyStatistics, Ratio

SCHEMA = "bitswitch-profile/1"
Operators = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTime:
    """One node of what really runs. layer: of the master, None where none owns it.

    ms: from the profiler, less what the profiler costs. share: of the p50 of the whole network, 0..1.
    arithmetic: of a layer, where the engine tells.
    """

    name: str
    operator: str
    layer: str | None
    ms: float
    share: float
    arithmetic: Arithmetic | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What one inference took, from `source` over `seconds` of nothing but this candidate, idle power included."""

    source: str
    millijoules_per_inference: float
    mean_watts: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateResult:
    """One width, or the float reference, at one batch size.

    bits: None for the reference and for mixed widths. ratio: to the reference; None for itself or where there is none.
    verdict: the sentence about its speed; empty for the reference.
    operators: types and counts of what runs after optimisation. layers: times of all nodes, the longest first.
    """

    label: str
    bits: int | None
    batch_size: int
    statistics: LatencyStatistics
    turn_medians_ms: tuple[float, ...]
    ratio: Ratio | None
    verdict: str
    operators: Operators = ()
    layers: tuple[OperatorTime, ...] = ()
    energy: Energy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetVerdict:
    """Whether the p95 of one candidate stays within the budget."""

    label: str
    batch_size: int
    p95_ms: float
    budget_ms: float
    verdict: Literal["ok", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """What the latency table predicts for an assignment that was measured as a whole. error: predicted/measured - 1."""

    label: str
    predicted_ms: float
    measured_ms: float
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileResult:
    """All candidates of a package at all batch sizes.

    timed: what a latency covers. reference: how the float reference was made, or why there is none.
    turn_ms: how long a turn took, the mean of all candidates and batch sizes.
    reference_label: of the candidate that is the reference, None where there is none.
    board: state before, during and after. unstable: why this is not one measurement but several; empty when it is one.
    notes: sentences that the numbers need beside them. residuals: of the latency table, where one was written.
    """

    package: str
    master_sha256: str
    target: str
    engine: str
    engine_version: str
    timed: str
    threads: int | None
    turns: int
    warmup_turns: int
    turn_ms: float
    reference_label: str | None
    reference: str
    candidates: tuple[CandidateResult, ...]
    budget: tuple[BudgetVerdict, ...]
    board: BoardRecord
    unstable: tuple[str, ...]
    notes: tuple[str, ...] = ()
    residuals: tuple[Residual, ...] = ()

    @property
    def is_within_budget(self) -> bool:
        """Whether no candidate left its budget."""
        return all(verdict.verdict == "ok" for verdict in self.budget)
