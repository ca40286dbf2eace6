from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitswitch_deploy.errors import CheckFailedError, DataError
from bitswitch_deploy.validation.metrics import (
    HopAccumulator,
    Metrics,
    agreement_percent,
    max_abs_error,
    relative_error,
    sqnr_db,
    top1_percent,
)

# Highest class:          0                1                2                0 (tie with 1)
REFERENCE = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 0.0, 4.0], [5.0, 5.0, 0.0]], dtype=np.float32)
# Highest class:          0                2                2                1
OTHER = np.array([[3.0, 1.0, 1.0], [0.0, 2.0, 3.0], [0.0, 0.0, 4.0], [4.0, 5.0, 0.0]], dtype=np.float32)
LABELS = np.array([0, 2, 1, 0])
# Energy of the reference: 9 + 1 + 4 + 1 + 16 + 25 + 25 = 81; of the error: 1 + 4 + 1 = 6; largest error 2 of 5.
SQNR = 10 * math.log10(81 / 6)


def test_top1_counts_the_first_of_equal_scores() -> None:
    assert top1_percent(REFERENCE, LABELS) == 50.0
    assert top1_percent(REFERENCE, np.array([0, 1, 2, 0])) == 100.0
    assert top1_percent(OTHER, LABELS) == 50.0
    assert top1_percent(OTHER, np.array([0, 1, 0, 0])) == 25.0


def test_agreement() -> None:
    assert agreement_percent(REFERENCE, OTHER) == 50.0
    assert agreement_percent(REFERENCE, REFERENCE) == 100.0


@pytest.mark.parametrize(
    ("reference", "other", "sqnr", "largest", "relative"),
    [
        (REFERENCE, OTHER, SQNR, 2.0, 0.4),
        (REFERENCE, REFERENCE, math.inf, 0.0, 0.0),
        ([[10.0, 0.0]], [[9.0, 0.0]], 20.0, 1.0, 0.1),
        ([[-10.0, 0.0]], [[-9.0, 0.0]], 20.0, 1.0, 0.1),
        ([[0.0, 0.0]], [[0.0, 3.0]], -math.inf, 3.0, math.inf),
        ([[0.0, 0.0]], [[0.0, 0.0]], math.inf, 0.0, 0.0),
    ],
)
def test_distance(reference: Any, other: Any, sqnr: float, largest: float, relative: float) -> None:
    reference, other = np.asarray(reference, np.float32), np.asarray(other, np.float32)
    assert sqnr_db(reference, other) == pytest.approx(sqnr, rel=1e-12)
    assert max_abs_error(reference, other) == largest
    assert relative_error(reference, other) == pytest.approx(relative)


def test_differences_are_taken_in_float64() -> None:
    half = np.array([[60_000.0]], dtype=np.float16)
    assert max_abs_error(half, -half) == 2 * float(half[0, 0])


def test_empty_arrays_have_no_error() -> None:
    empty = np.empty((0, 3), np.float32)
    assert (max_abs_error(empty, empty), sqnr_db(empty, empty)) == (0.0, math.inf)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_never_a_metric(bad: float) -> None:
    broken = REFERENCE.copy()
    broken[2, 1] = bad
    message = "1 of 12 values are not finite, first in sample 2"
    for compare in (agreement_percent, sqnr_db, max_abs_error, relative_error):
        with pytest.raises(CheckFailedError, match=message):
            compare(broken, REFERENCE)
        with pytest.raises(CheckFailedError, match=message):
            compare(REFERENCE, broken)
    with pytest.raises(CheckFailedError, match=message):
        top1_percent(broken, LABELS)


def test_shapes_that_do_not_fit() -> None:
    for compare in (agreement_percent, sqnr_db, max_abs_error, relative_error):
        with pytest.raises(ValueError, match="cannot be compared"):
            compare(REFERENCE, OTHER[:3])
    with pytest.raises(ValueError, match="cannot be compared"):
        top1_percent(REFERENCE, LABELS[:3])
    with pytest.raises(ValueError, match="cannot be compared"):
        top1_percent(REFERENCE[:0], LABELS[:0])
    with pytest.raises(ValueError, match=r"outputs \[n, classes\] are needed, got shape \[4\]"):
        top1_percent(REFERENCE[:, 0], LABELS)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_batches_add_up_to_the_whole(size: int) -> None:
    total = HopAccumulator("w4 engine")
    for start in range(0, 4, size):
        part = slice(start, start + size)
        total.update(OTHER[part], reference=REFERENCE[part], labels=LABELS[part])
    metrics = total.metrics()
    assert metrics.sqnr_db == pytest.approx(SQNR, rel=1e-12)
    assert metrics.relative_error == pytest.approx(0.4)
    assert (metrics.n, metrics.top1_percent, metrics.agreement_percent) == (4, 50.0, 50.0)
    assert (metrics.max_abs_error, metrics.note) == (2.0, "")
    assert (metrics.lost, metrics.gained) == (1, 1)


@given(
    hnp.arrays(np.float32, (5, 3), elements=st.floats(-100, 100, width=32)),
    hnp.arrays(np.float32, (5, 3), elements=st.floats(-100, 100, width=32)),
    st.integers(1, 5),
)
def test_the_accumulator_agrees_with_the_functions(a: Any, b: Any, size: int) -> None:
    total = HopAccumulator("w4 engine")
    for start in range(0, 5, size):
        total.update(b[start : start + size], reference=a[start : start + size])
    metrics = total.metrics()
    assert metrics.agreement_percent == agreement_percent(a, b)
    assert metrics.max_abs_error == max_abs_error(a, b)
    assert metrics.relative_error == pytest.approx(relative_error(a, b))
    assert metrics.sqnr_db == pytest.approx(sqnr_db(a, b), abs=1e-6)


def test_without_a_reference_there_is_nothing_to_compare() -> None:
    total = HopAccumulator("w4 canonical")
    total.update(REFERENCE, labels=LABELS)
    assert total.metrics() == Metrics(
        n=4,
        top1_percent=50.0,
        agreement_percent=None,
        sqnr_db=None,
        max_abs_error=None,
        relative_error=None,
        lost=None,
        gained=None,
        note="",
    )


def test_without_samples_nothing_is_measured() -> None:
    metrics = HopAccumulator("w4 engine").metrics()
    assert (metrics.n, metrics.top1_percent, metrics.max_abs_error, metrics.note) == (0, None, None, "no samples")


DENSE = np.array([[[1.0, 0.0], [0.0, 2.0]], [[0.0, 0.0], [1.0, 1.0]]])  # [n, classes, 2], highest: 0 1, 1 1


@pytest.mark.parametrize(
    ("outputs", "labels", "top1", "agreement", "note"),
    [
        (REFERENCE, None, None, 100.0, "no top-1: the data set has no labels"),
        (REFERENCE, np.zeros((4, 2), int), None, 100.0, "no top-1: labels with 2 dimensions do not fit outputs with 2"),
        (DENSE, np.array([[0, 1], [0, 1]]), 75.0, 100.0, ""),
        (DENSE, np.array([0, 1]), None, None, "no top-1 and no agreement: outputs [n, 2, 2] are not one row of class"),
        (DENSE, None, None, None, "no top-1 and no agreement: outputs [n, 2, 2]"),
        (REFERENCE[:, :1], LABELS, None, None, "no top-1 and no agreement: outputs [n, 1] are not"),
        (REFERENCE[:, 0], LABELS, None, None, "no top-1 and no agreement: outputs [n] are not"),
    ],
)
def test_no_metric_is_said_not_failed(
    outputs: Any, labels: Any, top1: float | None, agreement: float | None, note: str
) -> None:
    total = HopAccumulator("w4 engine")
    total.update(outputs, reference=outputs, labels=labels)
    metrics = total.metrics()
    assert (metrics.top1_percent, metrics.agreement_percent) == (top1, agreement)
    # positions of one dense sample are no independent samples
    assert metrics.lost == (0 if top1 is not None and outputs.ndim == 2 else None)
    assert metrics.note.startswith(note)
    assert bool(metrics.note) == bool(note)
    assert (metrics.sqnr_db, metrics.max_abs_error) == (math.inf, 0.0)


def test_the_sample_that_is_not_finite_is_counted_over_batches() -> None:
    total = HopAccumulator("w2 engine")
    total.update(REFERENCE)
    broken = REFERENCE.copy()
    broken[1:, 0] = math.nan
    with pytest.raises(CheckFailedError, match="w2 engine output: 3 of 12 values are not finite, first in sample 5"):
        total.update(broken)


def test_another_shape_than_the_reference() -> None:
    with pytest.raises(CheckFailedError, match=r"w2 engine output: shape \[4, 2\]\n  allowed: \[4, 3\], as the canon"):
        HopAccumulator("w2 engine").update(REFERENCE[:, :2], reference=REFERENCE)


def test_positions_that_are_not_judged_count_for_nothing() -> None:
    scores = np.eye(3, dtype=np.float32)[[[0, 1, 2, 2], [1, 1, 0, 0]]].transpose(0, 2, 1)  # [2, 3 classes, 4]
    labels = np.array([[0, 255, 2, 1], [255, 255, 0, 0]])
    hop = HopAccumulator("w2 engine")
    hop.update(scores, reference=scores, labels=labels)
    hop.update(scores[:1], reference=scores[:1], labels=np.full((1, 4), 255))
    assert hop.metrics().top1_percent == pytest.approx(100 * 4 / 5)
    assert hop.metrics().agreement_percent == 100.0
    none = HopAccumulator("w2 engine")
    none.update(scores, labels=np.full((2, 4), 255))
    assert none.metrics().top1_percent is None
    with pytest.raises(DataError, match="classes from 0 to 254"):
        hop.update(scores, labels=np.where(labels == 255, 254, labels))
    with pytest.raises(DataError, match="classes from 0 to 255"):  # of a whole sample it is a wrong label
        HopAccumulator("w2 engine").update(REFERENCE, labels=np.array([0, 1, 2, 255]))


@pytest.mark.parametrize(("labels", "found"), [([0, 1, 2, 3], "0 to 3"), ([0, -1, 2, 1], "-1 to 2")])
def test_labels_outside_the_output(labels: list[int], found: str) -> None:
    with pytest.raises(DataError, match=f"labels for the w2 engine output: classes from {found}\n  allowed: 0 to 2"):
        HopAccumulator("w2 engine").update(REFERENCE, labels=np.array(labels))
