"""A profile of one width beside float32, made up."""

from __future__ import annotations

from bitswitch_deploy.profiling.board.state import BoardRecord, BoardState, Span
from bitswitch_deploy.profiling.result import BudgetVerdict, Energy, ProfileResult, Residual
from bitswitch_deploy.profiling.statistics import Ratio
from tests.profiling.results import candidate, node

STATE = BoardState(
    power_mode="15W",
    governors=("schedutil",),
    clocks=(),
    clocks_locked=True,
    temperatures_c=(),
    throttle_events=(),
    rails_w=(("VDD_IN", 6.0),),
    gpus=(),
)
RESULT = ProfileResult(
    package="deploy",
    master_sha256="0" * 64,
    target="jetson-orin-nano",
    engine="onnxruntime",
    engine_version="1.32.0",
    timed="arrays in to arrays out",
    threads=2,
    turns=40,
    warmup_turns=6,
    turn_ms=50.0,
    reference_label="float32",
    reference="the float network",
    candidates=(
        candidate(
            "w8",
            p50_ms=1.5,
            ratio=Ratio(reference="float32", value=0.75, low=0.7, high=0.8, confidence=0.96, turns=40),
            verdict="faster than float32: 0.750 x its time",
            layers=(node("q", "QLinearConv", 1.0, "body.1"), node("a", "QLinearAdd", 0.25, "body.1")),
            energy=Energy(source="INA", millijoules_per_inference=2.5, mean_watts=6.0, seconds=2.0),
        ),
        candidate("float32", p50_ms=2.0, layers=(node("only_here", "Conv", 2.0),)),
    ),
    budget=(BudgetVerdict(label="w8", batch_size=1, p95_ms=1.5, budget_ms=1.0, verdict="failed"),),
    board=BoardRecord(
        before=STATE,
        after=STATE,
        looks=4,
        temperatures_c=(Span(name="tj", lowest=48.0, highest=55.0),),
        clocks_mhz=(),
        unstable=(),
        unknown=("throttling",),
    ),
    unstable=(),
    notes=("a note",),
    residuals=(Residual(label="mixed", predicted_ms=1.1, measured_ms=1.0, error=0.1),),
)
