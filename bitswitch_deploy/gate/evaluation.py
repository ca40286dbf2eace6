"""One graph on a range of samples: the unit of work that is spread over cores, cached, and resumed after a kill.

Everything a worker needs is in an `Evaluation`: plain values and paths, so that it can be sent to another machine.
Whoever runs it reads the data set again, once per process, and sees that it is the same one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np

from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession, Optimisation, host_text
from bitswitch_deploy.errors import DataError
from bitswitch_deploy.gate.metrics import find_metric
from bitswitch_deploy.gate.metrics.metric import Rows
from bitswitch_deploy.master.spec import ValueSpec
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.validation.dataset import Dataset, load_dataset
from bitswitch_deploy.validation.hops import run_batch
from bitswitch_deploy.validation.metrics import require_finite

T = TypeVar("T")

BATCH = 32
# Part of the cache's keys: a change of what is kept of a sample must not meet what an older release kept.
_FORMAT = "bitswitch-outcomes/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRef:
    """A data set that every worker can open: its path, how a network reads it, and the digest it must have."""

    path: Path
    sha256: str
    preprocessing: Preprocessing | None
    input_spec: ValueSpec
    classes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRef:
    """A graph that every worker can load, as bytes, or as a file where its weights stand beside it.

    sha256: of everything that the graph consists of.
    """

    source: bytes | Path
    sha256: str
    optimisation: Optimisation
    session_options: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A graph, a data set and a metric. reference: run beside it where the metric compares outputs.

    metric_folder: where a metric of the user's own is looked for.
    """

    label: str
    graph: GraphRef
    data: DataRef
    metric: str
    metric_folder: Path
    reference: GraphRef | None = None

    def key(self) -> str:
        """SHA-256 of everything that the outcomes depend on: equal keys, equal outcomes."""
        graphs = [self.graph, *((self.reference,) if self.reference is not None else ())]
        values = {
            "format": _FORMAT,
            "graphs": [(each.sha256, each.optimisation, each.session_options) for each in graphs],
            "data": self.data.sha256,
            "preprocessing": asdict(self.data.preprocessing) if self.data.preprocessing else None,
            "metric": find_metric(self.metric, folder=self.metric_folder).identity,
            "host": host_text(),
            "versions": library_versions(),
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def library_versions() -> tuple[tuple[str, str], ...]:
    """Versions of what outcomes depend on beside onnxruntime, as far as it is here: (distribution, version)."""
    here = []
    for name in ("numpy", "pillow", "pycocotools"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            here.append((name, metadata.version(name)))
    return tuple(here)


def evaluate(evaluation: Evaluation, start: int, stop: int) -> Rows:
    """What the metric keeps of samples start..stop-1, [stop - start, k].

    Raises:
        CheckFailedError: an output is not finite.
        DataError: the metric does not fit, an image cannot be decoded, or the data set is another one here.
        GraphError: onnxruntime refuses the graph.
    """
    dataset = open_data(evaluation.data)
    metric = find_metric(evaluation.metric, folder=evaluation.metric_folder)
    session = _open_graph(evaluation.graph)
    reference = _open_graph(evaluation.reference) if evaluation.reference is not None else None
    size, rows = dataset.fixed_batch or BATCH, []
    for first in range(start, stop, size):
        last = min(first + size, stop)
        x, y = dataset.source.read(first, last), None if dataset.y is None else dataset.y[first:last]
        outputs = run_batch(session, x, dataset.fixed_batch, evaluation.label)
        require_finite(outputs, f"{evaluation.label} output", first)
        metric.check_fit(outputs, y)
        compared = None if reference is None else run_batch(reference, x, dataset.fixed_batch, "reference")
        rows.append(metric.measure(outputs, y, compared))
    return np.concatenate(rows)


def open_data(ref: DataRef) -> Dataset:
    """The data set, read once per process.

    Raises:
        DataError: it is not the one that was meant.
    """

    def load() -> Dataset:
        dataset = load_dataset(
            ref.path, preprocessing=ref.preprocessing, input_spec=ref.input_spec, classes=ref.classes
        )
        if dataset.sha256 != ref.sha256:
            raise DataError(
                where=str(ref.path),
                got=f"data of sha256 {dataset.sha256[:12]}",
                allowed=f"the data that the run began with, sha256 {ref.sha256[:12]}",
                do="leave the data alone while they are read, and let every machine see the same files",
            )
        return dataset

    return _DATA.get(ref, load)


def remember_data(ref: DataRef, dataset: Dataset) -> None:
    """Let this process use a data set that it has read already."""
    _DATA.get(ref, lambda: dataset)


def _open_graph(ref: GraphRef) -> OnnxRuntimeSession:
    # one thread each: the cores are busy with other samples
    return _GRAPHS.get(
        (ref.sha256, ref.optimisation, ref.session_options),
        lambda: OnnxRuntimeSession(
            ref.source, optimisation=ref.optimisation, threads=1, session_options=dict(ref.session_options)
        ),
    )


class _Kept:
    """The last few things that were opened, each opened once however many threads ask for it."""

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, Lock()
        self._things: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            if key not in self._things:
                self._things[key] = make()
                while len(self._things) > self._size:
                    self._things.popitem(last=False)
            self._things.move_to_end(key)
            return self._things[key]  # type: ignore[no-any-return]


# a graph and its reference; more would hold the weights of widths that are done
_GRAPHS = _Kept(2)
_DATA = _Kept(2)
