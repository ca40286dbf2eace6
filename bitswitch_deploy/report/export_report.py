"""The result of `export` as frozen values: the pipeline fills them, the pages and json.py render them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bitswitch_deploy.validation.dataset import DatasetSummary
from bitswitch_deploy.validation.hops import HopResult, Verdict

# labels of the widths that it holds for, and a sentence
Note = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class NotDone:
    """A step that could not be done here: what, why, and the exact command that does it where it can be done."""

    what: str
    why: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCounts:
    """Convolutions and matrix products of the graph that the engine runs; how many of them compute in integers.

    fell_back: layers of the master that have a width and run in float.
    """

    integer: int
    total: int
    fell_back: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthRow:
    """One exported bit-width.

    label: `w4` or `mixed`. bits: None for a mixed assignment.
    file_name, size_bytes: the ONNX file in the package.
    hops: results in the order of validation.hops.HOPS; empty when nothing was validated.
    exact: whether the lowered graph computes the same integer codes as the canonical one.
    approximations: that the lowered graph makes, by name.
    changes: what lowering changed, and what that cost where it was not exact; one sentence each.
    engine: what became of the engine, in words. layers: in numbers, None where no engine has seen the graph.
    verdicts: judgements on the accuracy of the hops; empty when none were asked for.
    """

    label: str
    bits: int | None
    file_name: str
    size_bytes: int
    hops: tuple[HopResult, ...]
    exact: bool
    changes: tuple[str, ...]
    engine: str
    verdicts: tuple[Verdict, ...] = ()
    approximations: tuple[str, ...] = ()
    layers: LayerCounts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """Everything `export` has to say.

    target: name of the target. stack: versions it was lowered for, in words. note: how the target was chosen.
    dataset: what accuracy was measured on; None when there was no data.
    host: processor that the hops ran on, with the instruction sets that decide its integer kernels, and onnxruntime.
    package_path, seconds: where to, and wall time of the run; empty and 0 in the results of a package, which two
        exports give the same.
    shared_weights, shared_bytes: the file that all graphs read their weights from; empty and 0 where each has its own.
    """

    target: str
    stack: str
    note: str
    master_path: str
    master_sha256: str
    dataset: DatasetSummary | None
    widths: tuple[WidthRow, ...]
    not_done: tuple[NotDone, ...]
    package_path: str
    seconds: float
    host: str = ""
    shared_weights: str = ""
    shared_bytes: int = 0


def notes_of(widths: Iterable[WidthRow]) -> list[Note]:
    """What there is to say about the widths: what lowering did, the hops, the engine; each sentence once."""
    notes = []
    for row in widths:
        # Why there is no engine is also why it did not run.
        hops = [hop for hop in row.hops if hop.note and not (hop.hop == "engine" and hop.n == 0 and row.engine)]
        notes += [(row.label, f"lowered: {change}") for change in row.changes]
        notes += [] if row.hops else [(row.label, "accuracy: not measured at any hop")]
        notes += [(row.label, f"{hop.hop}: {hop.note}") for hop in hops]
        notes += [(row.label, f"engine: {row.engine}")] if row.engine else []
    return _grouped(notes)


def not_judged(verdicts: Iterable[Verdict]) -> list[Note]:
    """Hops whose accuracy nobody judged, and why."""
    return _grouped((each.label, f"{each.hop}: {each.reason}") for each in verdicts if each.verdict == "not judged")


def _grouped(notes: Iterable[Note]) -> list[Note]:
    """Each sentence once, with the labels of the widths that it holds for."""
    holders: dict[str, list[str]] = {}
    for label, sentence in notes:
        holders.setdefault(sentence, []).append(label)
    return [(" ".join(labels), sentence) for sentence, labels in holders.items()]
