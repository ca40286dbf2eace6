"""The baseline: what each sample came to when the team last said "this is good", in one JSON file of the repository.

Schema `bitswitch-baseline/1`, keys as the fields of `Baseline`. `digest` is the SHA-256 of the rest: the file is
recorded by `check --update-baseline` and edited by nobody.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bitswitch_deploy.atomic_file import check_writable, replace_file
from bitswitch_deploy.errors import DataError, InputFileError
from bitswitch_deploy.gate.outcomes import EncodedRows
from bitswitch_deploy.records import Reader

SCHEMA: Literal["bitswitch-baseline/1"] = "bitswitch-baseline/1"
_SCHEMA_FAMILY = "bitswitch-baseline/"
_MAX_BYTES = 1 << 30
_UPDATE = "the same command with --update-baseline"
_READER = Reader(
    error=InputFileError, do=f"take the file from version control, or delete it and record it again: {_UPDATE}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is checked: one master on one target at one width, by names that stay the same from run to run."""

    master: str
    target: str
    width: str

    @property
    def label(self) -> str:
        """`digits x86-cpu w4`."""
        return f"{self.master} {self.target} {self.width}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What must be equal for outcomes of two runs to be comparable.

    dataset_sha256: of the samples and labels, in order. preprocessing_sha256: of what the master says about raw pixels.
    hop: `engine` where the target's own runtime ran, `lowered` where its graph ran node by node.
    """

    dataset: str
    dataset_sha256: str
    n: int
    metric: str
    preprocessing_sha256: str
    hop: Literal["lowered", "engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Outcomes of one case. value: of the metric over all samples. tools: versions and host, which may differ."""

    case: Case
    conditions: Conditions
    master_sha256: str
    graph_sha256: str
    value: float
    tools: tuple[tuple[str, str], ...]
    outcomes: EncodedRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Records, each case once.

    Raises:
        ValueError: a case twice, or outcomes of another number of samples than the conditions say.
    """

    records: tuple[Record, ...]
    digest: str = ""
    schema: Literal["bitswitch-baseline/1"] = SCHEMA

    def __post_init__(self) -> None:
        cases = [record.case for record in self.records]
        twice = [case.label for case in cases if cases.count(case) > 1]
        if twice:
            raise ValueError(f"the case {twice[0]} is there twice")
        for record in self.records:
            if record.outcomes.shape[0] != record.conditions.n:
                raise ValueError(f"{record.case.label} has outcomes of {record.outcomes.shape[0]} samples")

    def record(self, case: Case) -> Record | None:
        """The record of a case, None where it has none."""
        return next((record for record in self.records if record.case == case), None)


def check_replaceable(path: Path) -> None:
    """See that a baseline can be written, before the work that it takes.

    Raises:
        InputFileError: a file is there that is no baseline.
        OutputError: the file cannot be written.
    """
    check_writable(path)
    if path.exists() and not _is_baseline(path):
        raise InputFileError(
            where=str(path),
            got="a file that is no baseline",
            allowed=f"a new file, or one of schema {SCHEMA} to replace",
            do="name another file as `baseline` in the configuration, or delete this one if it was a baseline",
        )


def write_baseline(path: Path, records: tuple[Record, ...]) -> None:
    """Write a baseline in one step, cases in order of their labels.

    Raises:
        InputFileError, OutputError: as `check_replaceable`.
    """
    check_replaceable(path)
    document = asdict(Baseline(records=tuple(sorted(records, key=lambda record: record.case.label))))
    for record in document["records"]:
        record["tools"] = dict(record["tools"])
    document["digest"] = _digest(document)
    replace_file(path, (json.dumps(document, indent=1) + "\n").encode())


def read_baseline(path: Path) -> Baseline:
    """The baseline in a file.

    Raises:
        InputFileError: there is none, it cannot be read, or it was edited after it was recorded.
    """
    if not path.exists():
        allowed = "a baseline that an earlier run recorded"
        raise InputFileError(where=str(path), got="does not exist", allowed=allowed, do=f"record it: {_UPDATE}")
    document = _document(path)
    if document.get("schema") != SCHEMA:
        raise _READER.refusal(f"{path}: schema", document.get("schema"), SCHEMA)
    if document.get("digest") != _digest(document):
        got = "the digest is not that of the content: the file was edited or damaged after it was recorded"
        raise _READER.refusal(str(path), got, "a file as --update-baseline writes it", is_text=True)
    return _READER.decode(Baseline, document, where=str(path))


def require_comparable(before: Conditions, now: Conditions, *, case: Case) -> None:
    """See that outcomes of two runs are about the same question.

    Raises:
        DataError: other data, another metric, another preprocessing, another hop; the message names what differs.
    """
    differing = [
        (name, _shown(before, field), _shown(now, field))
        for name, field in _COMPARED
        if getattr(before, field) != getattr(now, field)
    ]
    if differing:
        raise DataError(
            where=f"{case.label}: not comparable with its baseline",
            got="; ".join(f"another {name}: {mine}" for name, _, mine in differing),
            allowed="; ".join(f"the {name} of the baseline: {theirs}" for name, theirs, _ in differing),
            do=f"check on what was recorded, or record a new baseline: {_UPDATE}",
        )


_COMPARED = (
    ("data set", "dataset_sha256"),
    ("metric", "metric"),
    ("preprocessing", "preprocessing_sha256"),
    ("hop", "hop"),
)


def _shown(conditions: Conditions, field: str) -> str:
    value = str(getattr(conditions, field))
    if field == "dataset_sha256":
        return f"{conditions.dataset}, {conditions.n:,} samples, sha256 {value[:12]}"
    return f"sha256 {value[:12]}" if field.endswith("sha256") else value


def _digest(document: dict[str, Any]) -> str:
    content = {key: value for key, value in document.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _document(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES >> 20} MB")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise _READER.refusal(str(path), f"cannot be read: {exc}", "a baseline", is_text=True) from exc
    return _READER.load_json(text, where=str(path))


def _is_baseline(path: Path) -> bool:
    try:
        return str(_document(path).get("schema")).startswith(_SCHEMA_FAMILY)
    except InputFileError:
        return False
