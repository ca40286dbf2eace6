"""Results made up for tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bitswitch_deploy.engines.optimized_operators import arithmetic_of
from bitswitch_deploy.profiling.result import CandidateResult, OperatorTime
from bitswitch_deploy.profiling.statistics import describe


def candidate(label: str, *, p50_ms: float = 1.0, p95_ms: float | None = None, **changes: object) -> CandidateResult:
    statistics = replace(describe(np.full(100, p50_ms), batch=1), p95_ms=p95_ms if p95_ms is not None else p50_ms)
    result = CandidateResult(
        label=label,
        bits=int(label[1:]) if label[1:].isdecimal() else None,
        batch_size=1,
        statistics=statistics,
        turn_medians_ms=(p50_ms,) * 9,
        ratio=None,
        verdict="",
    )
    return replace(result, **changes)  # type: ignore[arg-type]


def node(name: str, operator: str, share: float, layer: str | None = None) -> OperatorTime:
    arithmetic = arithmetic_of(operator)
    return OperatorTime(name=name, operator=operator, layer=layer, ms=share, share=share, arithmetic=arithmetic)
