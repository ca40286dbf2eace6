"""A latency budget in words: `5ms`, `0.005s`, `800us`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.profiling.result import BudgetVerdict, CandidateResult

_MS_OF = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_BUDGET = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(us|ms|s)")


def parse_latency_budget(text: str) -> float:
    """The budget in ms.

    Raises:
        UsageError: no unit, another unit, or not above 0.
    """
    match = _BUDGET.fullmatch(text.strip().lower().replace("µs", "us").replace("μs", "us"))
    budget_ms = float(match[1]) * _MS_OF[match[2]] if match else 0.0
    if budget_ms <= 0 or not math.isfinite(budget_ms):
        allowed = "a number above 0 with its unit: us, ms or s"
        raise UsageError(where="--budget", got=repr(text), allowed=allowed, do="write for example --budget 5ms")
    return budget_ms


def judge_budget(candidates: Iterable[CandidateResult], budget_ms: float | None) -> tuple[BudgetVerdict, ...]:
    """A verdict for each candidate; none where there is no budget."""
    if budget_ms is None:
        return ()
    return tuple(
        BudgetVerdict(
            label=each.label,
            batch_size=each.batch_size,
            p95_ms=each.statistics.p95_ms,
            budget_ms=budget_ms,
            verdict="ok" if each.statistics.p95_ms <= budget_ms else "failed",
        )
        for each in candidates
    )
