from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.errors import DataError, UsageError
from bitswitch_deploy.gate.metrics import METRICS, find_metric
from bitswitch_deploy.gate.metrics.metric import Metric, MetricContext

HERE = Path(__file__).parent
NAMED = MetricContext(class_names=("cat", "dog", "cow"))


def _measure(name: str, outputs: Any, labels: Any = None, reference: Any = None) -> tuple[Metric, Any, float]:
    """The metric, its rows, and what they are worth."""
    metric = find_metric(name, folder=HERE)
    outputs = np.asarray(outputs, np.float32)
    y = None if labels is None else np.asarray(labels, np.int64)
    metric.check_fit(outputs, y)
    rows = metric.measure(outputs, y, None if reference is None else np.asarray(reference, np.float32))
    assert rows.dtype == metric.dtype
    assert rows.ndim == 2
    return metric, rows, float(metric.value(metric.rows_for(rows, y).mean(axis=0)))


def test_top_1_and_ties_go_to_the_first_class() -> None:
    _, rows, value = _measure("top-1", [[3, 1], [1, 1], [1, 1], [0, 2]], [0, 0, 1, 0])
    assert rows[:, 0].tolist() == [True, True, False, False]
    assert value == 50.0


def test_top_5_is_that_of_a_sorted_list() -> None:
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(200, 9)), rng.integers(9, size=200)
    _, rows, _ = _measure("top-5", outputs, labels)
    best = np.argsort(-outputs, axis=1)[:, :5]
    assert rows[:, 0].tolist() == [label in row for label, row in zip(labels, best)]


def test_recall_counts_each_class_the_same() -> None:
    # class 0: 3 of 4, class 1: 0 of 1
    outputs = np.eye(2)[[0, 0, 0, 1, 0]]
    metric, rows, value = _measure("recall", outputs, [0, 0, 0, 0, 1])
    assert value == pytest.approx((75.0 + 0.0) / 2)
    labels = np.array([0, 0, 0, 0, 1])
    assert metric.degenerate(rows, labels, NAMED) == ""
    rows[:] = 0
    assert metric.degenerate(rows, labels, NAMED) == "class 1 (dog) is never predicted"


def test_a_sample_of_the_rarest_class_bounds_what_recall_may_lose_unseen() -> None:
    metric, labels = find_metric("recall", folder=HERE), np.repeat([0, 1], [90, 10])
    assert metric.largest_change(labels) == pytest.approx(100 / 10 / 2 * 100)
    rows = np.asarray(labels, np.int32)[:, None]
    same = metric.bootstrap(rows, rows, labels, draws=4999, seed=0)
    # none of 100 changed, but 3 % of them might have, by 500 points each
    assert same.interval(0.05) == pytest.approx((-15, 15), rel=0.1)
    assert same.p_value_of_exclusion(1.0) > 0.5


def test_recall_wants_samples_of_each_class() -> None:
    with pytest.raises(DataError, match=r"no sample of class 1 \(dog\), 2 \(cow\)"):
        find_metric("recall", folder=HERE).check_labels(np.array([0, 0]), NAMED)
    with pytest.raises(DataError, match="no sample of class 1"):
        find_metric("recall", folder=HERE).check_labels(np.array([0, 2]), MetricContext())
    with pytest.raises(DataError, match="no sample of class 1, 2"):
        find_metric("recall", folder=HERE).check_labels(np.array([0, 2**31 - 1]), MetricContext())
    with pytest.raises(DataError, match=r"labels \[n, 2\]\n  allowed: labels \[n\]"):
        find_metric("recall", folder=HERE).check_labels(np.zeros((3, 2), np.int64), MetricContext())


def test_mean_iou_sums_over_samples_before_it_divides() -> None:
    labels = np.array([[[0, 0], [1, 1]], [[0, 255], [255, 255]]])
    choice = np.array([[[0, 1], [1, 1]], [[0, 0], [1, 1]]])
    outputs = np.eye(3)[choice].transpose(0, 3, 1, 2)
    metric, rows, value = _measure("miou", outputs, labels)
    # class 0: 2 of 3; class 1: 2 of 3; class 2 is in neither
    assert rows.tolist() == [[1, 2, 0, 2, 3, 0], [1, 0, 0, 1, 0, 0]]
    assert value == pytest.approx(100 * 2 / 3)
    assert metric.degenerate(rows, labels, NAMED) == ""
    rows[:, 1] = 0
    assert metric.degenerate(rows, labels, NAMED) == "class 1 (dog) is never predicted rightly"


def test_a_class_that_no_label_has_is_no_part_of_mean_iou() -> None:
    labels = np.array([[[0, 0], [1, 1]], [[0, 0], [1, 255]]])
    choice = np.where(labels == 255, 1, labels)
    choice[0, 0, 0] = 2
    metric, rows, value = _measure("miou", np.eye(3)[choice].transpose(0, 3, 1, 2), labels)
    # its pixel is missing in class 0, of which 3 of 4 are left, and that is all that it costs
    assert value == pytest.approx(100 * (3 / 4 + 1) / 2)
    assert metric.degenerate(rows, labels, NAMED) == ""
    same = metric.bootstrap(
        np.tile(rows, (20, 1)), np.tile(rows, (20, 1)), np.tile(labels, (20, 1, 1)), draws=9, seed=0
    )
    assert (same.drop, same.unseen) == (0.0, 0.0)


def test_labels_that_judge_nothing_are_no_baseline() -> None:
    labels = np.full((2, 2, 2), 255)
    metric, rows, value = _measure("miou", np.zeros((2, 3, 2, 2)), labels)
    assert value == 0.0
    assert metric.degenerate(rows, labels, NAMED) == "no position is judged: every label is 255"


def test_perplexity_is_on_a_scale_of_percent() -> None:
    vocabulary = 7
    _, _, uniform = _measure("perplexity", np.zeros((2, 3, vocabulary)), np.zeros((2, 3)))
    assert uniform == pytest.approx(-100 * np.log(vocabulary), rel=1e-6)
    rng = np.random.default_rng(0)
    scores, labels = 1000 * rng.normal(size=(4, 5)), rng.integers(5, size=4)
    shifted = scores - scores.max(axis=1, keepdims=True)
    likelihood = shifted[np.arange(4), labels] - np.log(np.exp(shifted).sum(axis=1))
    assert _measure("perplexity", scores, labels)[2] == pytest.approx(100 * likelihood.mean(), rel=1e-5)


def test_cosine_with_the_reference() -> None:
    _, rows, _ = _measure("cosine", [[1, 0], [1, 1], [0, 0], [-2, 0]], reference=[[2, 0], [1, 0], [1, 0], [1, 0]])
    assert rows[:, 0].tolist() == pytest.approx([1.0, 2**-0.5, 0.0, -1.0])


@pytest.mark.parametrize(
    ("name", "outputs", "labels", "message"),
    [
        ("top-1", (4, 10), None, "a data set without labels"),
        ("top-1", (4, 10, 2), (4, 2), r"outputs \[n, 10, 2\] and labels \[n, 2\]"),
        ("top-5", (4, 5), (4,), "more than 5 classes"),
        ("recall", (4, 1), (4,), "class scores"),
        ("miou", (4, 10), (4,), "dense class scores"),
        ("perplexity", (4, 10, 3), (4, 3), "vocabulary"),
        ("cosine", (4, 1), None, "embeddings"),
    ],
)
def test_a_metric_that_does_not_fit_says_what_would(name: str, outputs: Any, labels: Any, message: str) -> None:
    metric = find_metric(name, folder=HERE)
    y = None if labels is None else np.zeros(labels, np.int64)
    with pytest.raises(DataError, match=message) as info:
        metric.check_fit(np.zeros(outputs, np.float32), y)
    assert name in info.value.where


@pytest.mark.parametrize(
    ("name", "outputs", "shape"),
    [
        ("top-1", (4, 3), (4,)),
        ("recall", (4, 3), (4,)),
        ("miou", (1, 3, 2, 2), (1, 2, 2)),
        ("perplexity", (1, 2, 2, 3), (1, 2, 2)),
    ],
)
def test_labels_beyond_the_output_are_refused(name: str, outputs: Any, shape: Any) -> None:
    labels = np.full(shape, 7)
    with pytest.raises(DataError, match=r"(label|token) 7"):
        find_metric(name, folder=HERE).check_fit(np.zeros(outputs, np.float32), labels)


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'top1' \(did you mean top-1\?\)") as info:
        find_metric("top1", folder=HERE)
    assert all(name in info.value.allowed for name in METRICS)


def _module(folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.py").write_text(text)
    return f"{name}:score"


def test_a_function_of_the_users_own(tmp_path: Path) -> None:
    name = _module(tmp_path, "own_metric_a", "def score(outputs, labels): return -abs(outputs[:, 0] - labels)\n")
    metric = find_metric(name, folder=tmp_path)
    rows = metric.measure(np.array([[1.0], [5.0]], np.float32), np.array([1, 2]), None)
    assert rows.tolist() == [[0.0], [-3.0]]
    other = _module(tmp_path, "own_metric_b", "def score(outputs, labels): return outputs[:, 0]\n")
    assert find_metric(other, folder=tmp_path).identity != metric.identity
    assert "sha256" in metric.identity


def test_files_that_a_function_imports_from_its_folder_are_part_of_it(tmp_path: Path) -> None:
    """Also those that these import, and within a package; what is not imported is none."""
    text = "import own_helper_a\nimport own_helper_b.part\ndef score(outputs, labels): return outputs[:, 0]\n"
    name = _module(tmp_path, "own_metric_with_helpers", text)
    (tmp_path / "own_helper_a.py").write_text("import math\n")
    (tmp_path / "own_helper_b").mkdir()
    (tmp_path / "own_helper_b" / "__init__.py").write_text("from . import part\n")
    (tmp_path / "own_helper_b" / "part.py").write_text("def late(): from .last import factor\n")
    (tmp_path / "own_helper_b" / "last.py").write_text("factor = 1\n")
    (tmp_path / "own_other.py").write_text("not Python")
    seen = {find_metric(name, folder=tmp_path).identity}
    (tmp_path / "own_other.py").write_text("nor is this")
    assert {find_metric(name, folder=tmp_path).identity} == seen
    for changed in ("own_helper_a.py", "own_helper_b/__init__.py", "own_helper_b/part.py", "own_helper_b/last.py"):
        path = tmp_path / changed
        path.write_text(path.read_text() + "# another\n")
        identity = find_metric(name, folder=tmp_path).identity
        assert identity not in seen, changed
        seen.add(identity)


def test_a_function_in_a_file_whose_name_is_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `statistics` is by Python's own."""
    (tmp_path / "there").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "there")
    _module(tmp_path / "there", "own_metric_taken", "")
    importlib.import_module("own_metric_taken")
    name = _module(tmp_path, "own_metric_taken", "def score(outputs, labels): return outputs[:, 0]\n")
    with pytest.raises(UsageError, match=r"own_metric_taken is .*there/own_metric_taken.py already"):
        find_metric(name, folder=tmp_path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return outputs", r"float32 of shape \[2, 1\] for 2 samples"),
        ("return outputs[:, 0] / 0", "not finite"),
        ("return ['a', 'b']", "<U1"),
    ],
)
def test_what_a_function_returns_is_checked(tmp_path: Path, body: str, message: str) -> None:
    name = _module(tmp_path, f"own_metric_{abs(hash(body))}", f"def score(outputs, labels): {body}\n")
    metric = find_metric(name, folder=tmp_path)
    with pytest.raises(DataError, match=message), np.errstate(all="ignore"):
        metric.measure(np.ones((2, 1), np.float32), None, None)


def test_what_a_function_raises_is_its_authors(tmp_path: Path) -> None:
    text = "import numpy as np\ndef score(outputs, labels):\n    return np.reshape(outputs, (3, 3))\n"
    metric = find_metric(_module(tmp_path, "own_metric_raising", text), folder=tmp_path)
    with pytest.raises(
        DataError, match=r"own_metric_raising\.py, line 3: ValueError: .*\n.*\n  do: correct the function"
    ):
        metric.measure(np.ones((2, 1), np.float32), None, None)
    metric = find_metric(_module(tmp_path, "own_metric_of_one", "def score(outputs): ...\n"), folder=tmp_path)
    with pytest.raises(DataError, match=r": TypeError: score\(\) takes 1 positional argument"):
        metric.measure(np.ones((2, 1), np.float32), None, None)
    text = "import sys\ndef score(outputs, labels): sys.exit(0)\n"
    metric = find_metric(_module(tmp_path, "own_metric_leaving", text), folder=tmp_path)
    with pytest.raises(DataError, match=r"own_metric_leaving\.py, line 2: SystemExit: 0"):
        metric.measure(np.ones((2, 1), np.float32), None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = 1 / 0\n", r"own_metric_\d+\.py, line 2: ZeroDivisionError: division by zero"),
        ("def score(outputs, labels)\n", r"SyntaxError: .*own_metric_\d+\.py, line 1"),
        ("import sys\nsys.exit()\n", r"own_metric_\d+\.py, line 2: SystemExit"),
    ],
)
def test_a_module_that_fails_is_its_authors(tmp_path: Path, text: str, message: str) -> None:
    name = _module(tmp_path, f"own_metric_{abs(hash(text))}", text)
    with pytest.raises(UsageError, match=f"the module cannot be imported: .*{message}"):
        find_metric(name, folder=tmp_path)


@pytest.mark.parametrize("name", ["no_such_module:score", "json:no_such_function", ":score", "json:"])
def test_a_function_that_is_not_there(name: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be imported|has no function"):
        find_metric(name, folder=HERE)


def test_a_rare_class_that_another_image_is_said_to_have_once_keeps_its_part() -> None:
    """Left out of the data set it has, its class is gone, and does not count as one that is never right."""
    metric = find_metric("miou", folder=HERE)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (60, 100))
    labels[7] = 3
    rows = [metric.measure(np.eye(4)[labels].transpose(0, 2, 1), labels, None) for _ in range(2)]
    said = labels.copy()
    said[50, 0] = 3
    rows[1] = metric.measure(np.eye(4)[said].transpose(0, 2, 1), labels, None)
    result = metric.bootstrap(rows[0], rows[1], labels, draws=200, seed=0)
    assert 0 < result.drop < 1
    low, high = result.interval(0.05)
    assert -50 < low < high < 50
