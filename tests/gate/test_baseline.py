from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.errors import DataError, InputFileError
from bitswitch_deploy.gate.baseline import (
    Baseline,
    Case,
    Conditions,
    Record,
    read_baseline,
    require_comparable,
    write_baseline,
)
from bitswitch_deploy.gate.outcomes import encode

CONDITIONS = Conditions(
    dataset="photos", dataset_sha256="a" * 64, n=3, metric="top-1", preprocessing_sha256="b" * 64, hop="engine"
)
CASE = Case(master="net", target="x86-cpu", width="w4")
RECORD = Record(
    case=CASE,
    conditions=CONDITIONS,
    master_sha256="c" * 64,
    graph_sha256="d" * 64,
    value=200 / 3,
    tools=(("numpy", "2"), ("onnxruntime", "1")),
    outcomes=encode(np.array([[True], [False], [True]])),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    other = replace(RECORD, case=replace(CASE, width="w2"))
    path = tmp_path / "baseline.json"
    write_baseline(path, (RECORD, other))
    baseline = read_baseline(path)
    assert baseline.records == (other, RECORD)
    assert baseline.record(CASE) == RECORD
    assert baseline.record(replace(CASE, width="w8")) is None
    first = path.read_bytes()
    write_baseline(path, (other, RECORD))
    assert path.read_bytes() == first


@pytest.mark.parametrize("what", ["outcome", "value", "digest", "space"])
def test_an_edited_file_is_seen(tmp_path: Path, what: str) -> None:
    path = tmp_path / "baseline.json"
    write_baseline(path, (RECORD,))
    document = json.loads(path.read_text())
    record = document["records"][0]
    if what == "outcome":
        record["outcomes"] = {**record["outcomes"], "data": encode(np.zeros((3, 1), bool)).data}
    elif what == "value":
        record["value"] = 50.0
    elif what == "digest":
        document["digest"] = "0" * 64
    path.write_text(json.dumps(document))
    if what == "space":
        assert read_baseline(path).records == (RECORD,)  # a formatter or a merge of line ends changes nothing
        return
    with pytest.raises(InputFileError, match="digest is not that of the content") as info:
        read_baseline(path)
    assert "--update-baseline" in info.value.do


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting"),
        ("[]", "JSON object"),
        ("{}", "schema"),
        ('{"schema": "bitswitch-baseline/9"}', "bitswitch-baseline/9"),
        ('{"schema": "bitswitch-baseline/1"}', "digest"),
    ],
)
def test_other_files_are_refused_and_not_overwritten(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(InputFileError, match=message):
        read_baseline(path)
    if "schema" not in text:
        with pytest.raises(InputFileError, match="no baseline") as info:
            write_baseline(path, (RECORD,))
        assert "delete this one" in info.value.do
        assert path.read_text() == text


def test_a_missing_file_says_how_to_record_one(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="does not exist") as info:
        read_baseline(tmp_path / "none.json")
    assert "--update-baseline" in info.value.do


def test_a_case_stands_there_once_and_with_all_its_samples() -> None:
    with pytest.raises(ValueError, match="net x86-cpu w4 is there twice"):
        Baseline(records=(RECORD, RECORD))
    with pytest.raises(ValueError, match="outcomes of 3 samples"):
        Baseline(records=(replace(RECORD, conditions=replace(CONDITIONS, n=4)),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset_sha256": "e" * 64}, "another data set: photos, 3 samples, sha256 eeeeeeeeeeee"),
        ({"metric": "recall"}, "another metric: recall"),
        ({"preprocessing_sha256": "f" * 64}, "another preprocessing: sha256 ffffffffffff"),
        ({"hop": "lowered"}, "another hop: lowered"),
    ],
)
def test_what_is_not_comparable_is_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        require_comparable(CONDITIONS, replace(CONDITIONS, **change), case=CASE)  # type: ignore[arg-type]


def test_the_name_of_a_data_set_does_not_matter() -> None:
    require_comparable(CONDITIONS, replace(CONDITIONS, dataset="pictures"), case=CASE)
