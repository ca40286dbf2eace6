"""The result of `check` as frozen values: the pipeline fills them, report/ renders them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bitswitch_deploy.gate.baseline import Case
from bitswitch_deploy.gate.config import Limits
from bitswitch_deploy.gate.judgement import Evidence, Judgement, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One case.

    hop: what ran, `engine` or `lowered`. value: of the metric now. n: samples; computed: those not taken from the
    cache.
    approximations: that the graph makes.
    evidence, judgement: None when a baseline was recorded instead. notes: what the reader should know, one sentence
    each.
    """

    case: Case
    hop: Literal["lowered", "engine"]
    value: float
    n: int
    computed: int
    approximations: tuple[str, ...] = ()
    evidence: Evidence | None = None
    judgement: Judgement | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """Everything `check` has to say.

    metric, unit: `top-1`, `points`. baseline: its path. updated: whether it was recorded in this run.
    require_proof: whether a case that cannot be told about fails the run as well.
    dataset, dataset_sha256: names and digests of the data, one for each master.
    notes: about the run as a whole. host: processor and onnxruntime. seconds: wall time.
    """

    metric: str
    unit: str
    limits: Limits
    baseline: str
    updated: bool
    require_proof: bool
    dataset: tuple[str, ...]
    dataset_sha256: tuple[str, ...]
    cases: tuple[CaseResult, ...]
    notes: tuple[str, ...]
    host: str
    seconds: float

    @property
    def failed(self) -> tuple[CaseResult, ...]:
        """The cases for which the run fails."""
        undecided = self.with_verdict("too few samples to tell") if self.require_proof else ()
        return (*self.with_verdict("regressed"), *undecided)

    def with_verdict(self, verdict: Verdict) -> tuple[CaseResult, ...]:
        """The cases of one verdict, in order."""
        return tuple(each for each in self.cases if each.judgement is not None and each.judgement.verdict == verdict)
