"""A check of three widths: one fell, one did not, one has too few samples."""

from __future__ import annotations

from typing import Any

from bitswitch_deploy.gate.baseline import Case
from bitswitch_deploy.gate.config import Limits
from bitswitch_deploy.gate.judgement import Evidence, Judgement, Verdict
from bitswitch_deploy.gate.result import CaseResult, CheckResult


def case(
    width: str, verdict: Verdict, *, drop: float, needed: int | None = None, notes: tuple[str, ...] = ()
) -> CaseResult:
    evidence = Evidence(
        before=90.0,
        now=90.0 - drop,
        drop=drop,
        lower=drop - 1,
        upper=drop + 1,
        n=1000,
        lost=30,
        gained=5,
        p_drop=0.01,
        p_excluded=0.2,
        spread=10.0,
        unseen=100.0,
        method="McNemar",
    )
    return CaseResult(
        case=Case(master="net", target="x86-cpu", width=width),
        hop="engine",
        value=90.0 - drop,
        n=1000,
        computed=0,
        evidence=evidence,
        judgement=Judgement(verdict=verdict, p_value=0.03, needed=needed),
        notes=notes,
    )


CASES = (
    case("w8", "regressed", drop=2.5, notes=("another graph of the same master",)),
    case("w4", "not shown to regress", drop=0.1, notes=("another graph of the same master",)),
    case("w2", "too few samples to tell", drop=0.3, needed=4321),
)


def check_result(**changes: Any) -> CheckResult:
    values: dict[str, Any] = {
        "metric": "top-1",
        "unit": "points",
        "limits": Limits(),
        "baseline": "bitswitch-baseline.json",
        "updated": False,
        "require_proof": False,
        "dataset": ("photos",),
        "dataset_sha256": ("a" * 64,),
        "cases": CASES,
        "notes": ("in the baseline and not checked: net x86-cpu w6",),
        "host": "x86_64, avx2, onnxruntime 1.32.0",
        "seconds": 1.5,
    }
    return CheckResult(**{**values, **changes})
