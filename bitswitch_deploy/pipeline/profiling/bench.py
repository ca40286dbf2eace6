"""What is profiled: the widths of a package and the float reference, opened in one engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from bitswitch_deploy.engines.input_signature import InputSignature
from bitswitch_deploy.engines.read_back import ReadBack
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.graph.lint.reading import read_model
from bitswitch_deploy.graph.stamp import read_stamp
from bitswitch_deploy.package.manifest import FileEntry, Manifest
from bitswitch_deploy.profiling.layers import LayerName, Ownership, ProfiledRuns
from bitswitch_deploy.tensors import WidthAssignment

Feeds = Mapping[str, NDArray[np.generic]]


class TimedSession(Protocol):
    """A loaded network with a clock."""

    @property
    def inputs(self) -> tuple[InputSignature, ...]:
        """What it takes."""

    def time_runs(self, feeds: Feeds, runs: int) -> NDArray[np.float64]:
        """Wall time of each of `runs` calls in ms."""


class Bench(Protocol):
    """Candidates that are open in one engine.

    name, version: of the engine. device: (name, value) facts about what it runs on. timed: what a latency covers.
    threads: inside one operator, None where that says nothing. turn_ms: what runs of one turn fill. reference: label of
    the float network, None where there is none. sessions: by label.
    """

    name: str
    version: str
    device: tuple[tuple[str, str], ...]
    timed: str
    threads: int | None
    turn_ms: float
    reference: str | None
    sessions: Mapping[str, TimedSession]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the numbers need beside them, once everything is measured."""

    def ownership(self, label: str, layers: Sequence[LayerName], profile: ProfiledRuns) -> Ownership:
        """Whose time each of the profiled nodes of a candidate is.

        layers: all layers of the master. profile: what `profile` found out about the candidate.
        """

    def read_back(self, label: str) -> ReadBack | None:
        """What became of its graph in a TensorRT engine, where that is known."""

    def profile(self, feeds: Feeds, runs_of: Mapping[str, int]) -> dict[str, ProfiledRuns]:
        """The time of every operator of each candidate; empty where the engine does not tell.

        runs_of: by label, how many runs a turn has.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """A graph of the package. assignment: the widths of its layers.

    is_weight_only: whether it multiplies floats by weights in INT4, for which there are kernels of their own.
    """

    label: str
    entry: FileEntry
    assignment: WidthAssignment
    is_weight_only: bool = False

    @property
    def bits(self) -> int | None:
        """The uniform width, None for a mixed one."""
        return None if self.assignment.overrides else self.assignment.default


def package_widths(package: Path, manifest: Manifest, wanted: Sequence[str] | None) -> tuple[Width, ...]:
    """The graphs of a package, or those of the labels in `wanted`, in the order of the package.

    Raises:
        UsageError: a label that the package has not.
        GraphError: a graph does not say what it was made from.
    """
    entries = {entry.name: entry for entry in manifest.graphs}
    unknown = [label for label in wanted or () if label not in entries]
    if unknown or not entries:
        raise UsageError(
            where="--widths",
            got=f"{', '.join(unknown) or 'nothing'}, which {package} has not",
            allowed=", ".join(entries) or "a package with at least one width",
            do="name one of these, or export the package with this width",
        )
    widths = []
    for label, entry in entries.items():
        if wanted is None or label in wanted:
            path = package / entry.path
            model = read_model(path)
            assignment = read_stamp(model, where=str(path)).assignment
            is_weight_only = multiplies_floats_by_int4(model.graph)
            widths.append(Width(label=label, entry=entry, assignment=assignment, is_weight_only=is_weight_only))
    return tuple(sorted(widths, key=lambda width: (width.bits is None, -(width.bits or 0), width.label)))


def multiplies_floats_by_int4(graph: onnx.GraphProto) -> bool:
    """Whether a product has a weight in INT4 and an activation in float.

    Beside an activation in codes TensorRT for RTX makes int8 of the weight in every run, and multiplies as at 8 bits.
    """
    narrow = {each.name for each in graph.initializer if each.data_type == onnx.TensorProto.INT4}
    dequantized = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    return any(
        dequantized.get(node.input[1]) in narrow and node.input[0] not in dequantized
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm")
    )
