from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.errors import CheckFailedError, UsageError
from bitswitch_deploy.master.spec import MeasuredAccuracy
from bitswitch_deploy.validation.arrays import ArraySource
from bitswitch_deploy.validation.dataset import Dataset, DatasetSummary
from bitswitch_deploy.validation.hops import (
    HOPS,
    Hop,
    HopResult,
    Runner,
    ValidationResult,
    Verdict,
    WidthResult,
    WidthUnderTest,
    judge,
    percent_rounded_down,
    recorded_accuracy,
    validate_hops,
)

HERE, ELSEWHERE = "a" * 64, "b" * 64
# Each sample holds its own logits. Highest class: 0, 1, 2, 0, 1.
X = np.array([[3, 1, 0], [0, 2, 1], [0, 0, 4], [5, 1, 0], [0, 1, 0]], dtype=np.float32)
Y = np.array([0, 1, 2, 0, 0])
W4 = WidthUnderTest(label="w4", bits=4)


@dataclass
class Pass:
    """Returns its inputs as logits plus `offset`, and remembers the batch sizes."""

    offset: Any = 0.0
    sizes: list[int] = field(default_factory=list)

    def run(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.sizes.append(len(x))
        return x + np.asarray(self.offset, np.float32)


def _dataset(*, labels: Any = Y, fixed_batch: int | None = None) -> Dataset:
    source = ArraySource(x=X, preprocessing=None)
    return Dataset(name="five", sha256=HERE, n=5, y=labels, source=source, fixed_batch=fixed_batch)


def _recorded(bits: int, value: float, sha256: str = HERE) -> MeasuredAccuracy:
    return MeasuredAccuracy(bits=bits, metric="top1", value=value, n=5000, dataset="full", dataset_sha256=sha256)


def test_each_hop_is_compared_with_the_canonical_one() -> None:
    runners: dict[Hop, Runner] = {"engine": Pass([0, 2, 0]), "canonical": Pass(), "lowered": Pass([0, 0.5, 0])}
    trained, canonical, lowered, engine = validate_hops(runners, _dataset(), width=W4, batch_size=2).hops
    assert trained == HopResult(label="w4", hop="trained", note="not run")
    assert canonical == HopResult(label="w4", hop="canonical", top1_percent=80.0, n=5)
    assert lowered == HopResult(
        label="w4",
        hop="lowered",
        top1_percent=80.0,
        agreement_percent=100.0,
        sqnr_db=lowered.sqnr_db,
        max_abs_error=0.5,
        relative_error=0.1,
        lost=0,
        gained=0,
        n=5,
    )
    # Energy 10 + 5 + 16 + 26 + 1 = 58 over 5 / 4.
    assert lowered.sqnr_db == pytest.approx(10 * math.log10(58 / 1.25))
    # 3 1 0 becomes 3 3 0, where the first wins; nothing else changes class.
    assert (engine.top1_percent, engine.agreement_percent, engine.max_abs_error) == (80.0, 100.0, 2.0)


def test_lost_classes_show_in_top1_and_agreement() -> None:
    runners: dict[Hop, Runner] = {"canonical": Pass(), "lowered": Pass([0, 0, 3.5])}
    # Highest class now: 2, 2, 2, 0, 2.
    lowered = validate_hops(runners, _dataset(), width=W4).hop("lowered")
    assert (lowered.top1_percent, lowered.agreement_percent) == (40.0, 40.0)
    assert (lowered.lost, lowered.gained) == (2, 0)


def test_results_do_not_depend_on_the_batch_size() -> None:
    runners: dict[Hop, Runner] = {"canonical": Pass(), "lowered": Pass([0, 0, 3.5])}
    assert validate_hops(runners, _dataset(), width=W4, batch_size=2) == validate_hops(runners, _dataset(), width=W4)


def test_progress_counts_every_sample() -> None:
    done: list[int] = []
    runner = Pass()
    validate_hops({"canonical": runner}, _dataset(), width=W4, batch_size=2, progress=done.append)
    assert done == [2, 2, 1]
    assert runner.sizes == [2, 2, 1]


def test_a_fixed_batch_is_always_filled() -> None:
    runner, done = Pass(), list[int]()
    result = validate_hops(
        {"canonical": runner}, _dataset(fixed_batch=4), width=W4, batch_size=2, progress=done.append
    ).hop("canonical")
    assert runner.sizes == [4, 4]
    assert done == [4, 1]
    assert (result.n, result.top1_percent) == (5, 80.0)


def test_hops_that_did_not_run_say_why() -> None:
    result = validate_hops({"canonical": Pass()}, _dataset(), width=W4, not_run={"engine": "no GPU here"})
    assert [hop.hop for hop in result.hops] == list(HOPS)
    assert result.hop("engine") == HopResult(label="w4", hop="engine", note="no GPU here")
    assert result.hop("lowered") == HopResult(label="w4", hop="lowered", note="not run")


def test_without_the_canonical_hop_there_is_nothing_to_compare() -> None:
    lowered = validate_hops({"lowered": Pass()}, _dataset(), width=W4).hop("lowered")
    assert (lowered.top1_percent, lowered.agreement_percent, lowered.sqnr_db) == (80.0, None, None)
    assert lowered.note == "compared with nothing: the canonical graph did not run"


def test_without_labels_there_is_no_top1() -> None:
    lowered = validate_hops({"canonical": Pass(), "lowered": Pass()}, _dataset(labels=None), width=W4).hop("lowered")
    assert (lowered.top1_percent, lowered.agreement_percent) == (None, 100.0)
    assert lowered.note == "no top-1: the data set has no labels"


@pytest.mark.parametrize(
    ("sha256", "same_data", "note"),
    [
        (HERE, True, "recorded by the trainer on this data set"),
        (ELSEWHERE, False, "recorded by the trainer on other data: 5,000 samples of full"),
    ],
)
def test_the_trained_hop_is_what_the_trainer_recorded(sha256: str, same_data: bool, note: str) -> None:
    width = WidthUnderTest(label="w4", bits=4, recorded=_recorded(4, 91.5, sha256))
    trained = validate_hops({"canonical": Pass()}, _dataset(), width=width).hop("trained")
    assert trained == HopResult(label="w4", hop="trained", top1_percent=91.5, n=5000, same_data=same_data, note=note)


def test_a_trained_network_that_runs_is_measured() -> None:
    width = WidthUnderTest(label="w4", bits=4, recorded=_recorded(4, 91.5))
    runners: dict[Hop, Runner] = {"canonical": Pass(), "trained": Pass()}
    trained = validate_hops(runners, _dataset(), width=width).hop("trained")
    assert (trained.top1_percent, trained.agreement_percent, trained.n) == (80.0, 100.0, 5)


def test_a_failing_hop_is_named() -> None:
    with pytest.raises(CheckFailedError, match="w4 engine output: 15 of 15 values are not finite, first in sample 0"):
        validate_hops({"canonical": Pass(), "engine": Pass(math.nan)}, _dataset(), width=W4)


@pytest.mark.parametrize("kept", [0, 1])
def test_an_output_without_a_row_for_each_sample(kept: int) -> None:
    class Short:
        def run(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return x[:kept] if kept else np.float32(0.0)

    with pytest.raises(CheckFailedError, match=r"w4 lowered output: shape .* for 5 samples\n  allowed: \[5, ...\]"):
        validate_hops({"canonical": Pass(), "lowered": Short()}, _dataset(), width=W4)


def _validated(*top1: float | None, bits: int | None = 4, n: int = 1000, labelled: bool = True) -> ValidationResult:
    hops = tuple(
        HopResult(label="w4", hop=hop, top1_percent=value, n=n, note="" if value is not None else "no data")
        for hop, value in zip(HOPS, top1, strict=True)
    )
    dataset = DatasetSummary(name="five", sha256=HERE, n=n, labelled=labelled)
    return ValidationResult(dataset=dataset, widths=(WidthResult(label="w4", bits=bits, hops=hops),))


def test_hops_are_held_against_what_the_trainer_recorded_on_these_samples() -> None:
    recorded = (_recorded(8, 10.0), _recorded(4, 92.0, ELSEWHERE), _recorded(4, 92.0))
    verdicts = judge(_validated(92.0, 92.1, 91.5, 91.4), recorded, max_drop=0.5)
    assert [(v.label, v.hop, v.verdict) for v in verdicts] == [
        ("w4", "canonical", "ok"),
        ("w4", "lowered", "ok"),
        ("w4", "engine", "failed"),
    ]
    assert [v.drop_points for v in verdicts] == [pytest.approx(-0.1), pytest.approx(0.5), pytest.approx(0.6)]
    assert [v.reason for v in verdicts] == [
        "92.10 %, 0.10 points above the 92.00 % that the trainer recorded",
        "91.50 %, 0.50 points below the 92.00 % that the trainer recorded",
        "91.40 %, 0.60 points below the 92.00 % that the trainer recorded; 0.5 allowed",
    ]


def test_a_file_known_to_the_trainer_is_the_same_data() -> None:
    result = _validated(None, 90.0, None, None)
    dataset = DatasetSummary(name="five", sha256=ELSEWHERE, n=1000, labelled=True, file_sha256=HERE)
    verdict = judge(ValidationResult(dataset=dataset, widths=result.widths), (_recorded(4, 92.0),), max_drop=0.5)[0]
    assert verdict.verdict == "failed"


@pytest.mark.parametrize(
    ("recorded", "bits", "why"),
    [
        ((_recorded(4, 92.9, ELSEWHERE),), 4, "the trainer's value is from other data"),
        ((_recorded(8, 99.0),), 4, "the trainer recorded nothing at this width"),
        ((_recorded(4, 99.0),), None, "the trainer recorded nothing at this width"),
        ((), 4, "the trainer recorded nothing at this width"),
    ],
)
def test_otherwise_the_canonical_graph_is_the_baseline_and_it_is_said(
    recorded: tuple[MeasuredAccuracy, ...], bits: int | None, why: str
) -> None:
    canonical, lowered, engine = judge(_validated(99.0, 92.0, 91.5, 91.0, bits=bits), recorded, max_drop=0.5)
    assert canonical == Verdict(
        label="w4", hop="canonical", verdict="not judged", drop_points=None, reason=f"it is the baseline: {why}"
    )
    assert (lowered.verdict, engine.verdict) == ("ok", "failed")
    assert lowered.reason == f"91.50 %, 0.50 points below the 92.00 % of the canonical graph ({why})"


@pytest.mark.parametrize(
    ("here", "n", "max_drop", "verdict", "is_said"),
    [
        (0.0, 600, 1.0, "failed", True),  # labels of other classes
        (0.0, 600, 100.0, "not judged", True),
        (46.0, 600, 1.0, "failed", True),
        (46.2, 600, 1.0, "not judged", True),  # harder images
        (90.9, 5000, 1.0, "not judged", False),  # 2.7 standard errors
        (90.6, 5000, 1.0, "not judged", True),  # 3.3
        (0.0, 1, 1.0, "failed", True),
        (99.0, 600, 1.0, "not judged", False),
    ],
)
def test_what_the_trainer_recorded_on_other_data_is_not_forgotten(
    here: float, n: int, max_drop: float, verdict: str, is_said: bool
) -> None:
    recorded = (_recorded(4, 92.36, ELSEWHERE),)
    canonical, lowered, _ = judge(_validated(None, here, here, None, n=n), recorded, max_drop=max_drop)
    assert canonical.verdict == verdict
    assert ("and 92.36 % on 5,000 samples of full, which is no chance: are labels" in canonical.reason) == is_said
    assert lowered.verdict == "ok"


@pytest.mark.parametrize("bits", [4, None])
def test_of_several_records_of_a_width_the_one_on_these_data_counts(bits: int | None) -> None:
    other, same = _recorded(4, 50.0, ELSEWHERE), _recorded(4, 92.0)
    data = DatasetSummary(name="five", sha256=HERE, n=5, labelled=True)
    for recorded in ((other, same), (same, other)):
        assert recorded_accuracy(recorded, bits, data) == (same if bits else None)
    assert recorded_accuracy((_recorded(8, 1.0), other), 4, data) == other


def test_nothing_to_judge_is_said() -> None:
    canonical, lowered, engine = judge(_validated(99.0, None, 91.5, None), (), max_drop=0.5)
    assert {canonical.verdict, lowered.verdict, engine.verdict} == {"not judged"}
    assert canonical.reason == "no data"
    assert engine.reason == "no data"
    assert lowered.reason == (
        "no baseline: the trainer recorded nothing at this width, and the canonical graph has no top-1"
    )


def test_a_drop_of_exactly_what_is_allowed_survives_floating_point() -> None:
    assert 90.01 - 89.91 > 0.1
    verdict = judge(_validated(None, 89.91, None, None), (_recorded(4, 90.01),), max_drop=0.1)[0]
    assert verdict.verdict == "ok"


def test_no_drop_at_all_is_allowed_by_zero() -> None:
    verdicts = judge(_validated(None, 92.0, 92.1, 91.9), (_recorded(4, 92.0),), max_drop=0.0)
    assert [v.verdict for v in verdicts] == ["ok", "ok", "failed"]


def test_few_samples_are_pointed_out() -> None:
    few = judge(_validated(None, 91.0, None, None, n=100), (_recorded(4, 92.0),), max_drop=0.5)[0]
    assert few.reason.endswith("; 0.5 allowed, while one sample of 100 is already 1 points")
    enough = judge(_validated(None, 91.0, None, None, n=200), (_recorded(4, 92.0),), max_drop=0.5)[0]
    assert enough.reason.endswith("; 0.5 allowed")


@pytest.mark.parametrize("max_drop", [-0.1, math.nan, math.inf])
def test_a_limit_that_cannot_be(max_drop: float) -> None:
    with pytest.raises(UsageError, match=r"largest accepted drop of accuracy: .*\n  allowed: 0 or more points"):
        judge(_validated(None, 91.0, None, None), (), max_drop=max_drop)


@pytest.mark.parametrize(
    ("percent", "text"),
    [(100.0, "100.00"), (99.998, "99.99"), (99.67, "99.67"), (0.0, "0.00"), (-math.inf, "-inf"), (math.nan, "nan")],
)
def test_percent_is_rounded_down(percent: float, text: str) -> None:
    assert percent_rounded_down(percent) == text
