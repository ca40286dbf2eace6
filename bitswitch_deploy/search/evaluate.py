"""Scores of assignments by inference only: each is computed from its canonical graph, as it would be exported.

With BatchNorm statistics of its own that is the graph of the copy of the master that `BatchNormAdapter` makes.

The unit of work is one assignment on one piece of the samples, a pure function of both and of the master. Units are
kept on disk, so nothing is computed twice, and neither the order nor the number of workers changes a bit of a result.
joblib spreads the units: over threads here, over machines with its Dask and Ray backends, which must see the folders.
"""

from __future__ import annotations

import importlib
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import joblib
import numpy as np
import onnx

from bitswitch_deploy import __version__
from bitswitch_deploy.engines.onnxruntime_engine import host_text
from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.errors import DataError, MasterError, UnavailableError
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.graph.external_data import runnable
from bitswitch_deploy.master import Master, read_master
from bitswitch_deploy.search.batchnorm import BatchNormAdapter
from bitswitch_deploy.search.busy import Busy
from bitswitch_deploy.search.costs import widths_text
from bitswitch_deploy.search.samples import Inputs, SearchSamples, at_a_time
from bitswitch_deploy.search.score import Criterion, Outputs, Scores, score_against, score_labelled
from bitswitch_deploy.search.store import ScoreStore, key_of
from bitswitch_deploy.tensors import WidthAssignment

PIECE = 256
BATCH = 64
# Of one batch of inputs: a session keeps the memory of its activations, 60 times as much for ResNet-50.
_BATCH_BYTES = 2**22
BACKENDS = ("threading", "loky", "dask", "ray")
_TASKS_PER_PART = 4
# Of what is computed here, for changes between two releases; onnxruntime's version is part of `host_text`.
_VERSION = 4
_SOFTWARE = (_VERSION, __version__, np.__version__, onnx.__version__)
# The other workers wait for the adapter that the first one builds, instead of building the same.
_ONE_BUILDS = threading.Lock()
_BUSY = Busy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Who computes. jobs: units at a time. backend: of joblib."""

    jobs: int = 1
    backend: str = "threading"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """Pieces of one assignment that are missing. reference: the width to diverge from, None for cross entropy.

    statistics: samples to adapt BatchNorm statistics on, None where the master's are used.
    """

    master: Path
    master_sha256: str
    assignment: WidthAssignment
    samples: SearchSamples
    pieces: tuple[tuple[int, int], ...]
    reference: int | None
    statistics: SearchSamples | None


def circumstances() -> tuple[object, ...]:
    """What scores depend on beside master and samples: releases and this machine."""
    return (_SOFTWARE, host_text())


class Evaluator:
    """Measures assignments of one master on one set of samples.

    Args:
        master: the file. sha256: of it. samples: what to measure on.
        store: where scores are kept. workers: who computes them.
        criterion: the loss; without labels it is the divergence.
        statistics: samples to adapt the BatchNorm statistics of each assignment on; None takes those of the master.
        computed: called with the number of samples that were computed just now.
    """

    def __init__(
        self,
        master: Path,
        samples: SearchSamples,
        store: ScoreStore,
        *,
        workers: Workers,
        criterion: Criterion = "divergence",
        statistics: SearchSamples | None = None,
        computed: Callable[[int], object] = lambda n: None,
    ) -> None:
        loaded = read_master(master)
        self._master, self._sha256 = master.absolute(), loaded.sha256  # workers may have been started elsewhere
        self._samples, self._store, self._workers, self._computed = samples, store, workers, computed
        by_labels = samples.labelled and criterion == "cross_entropy"
        self._reference = None if by_labels else loaded.spec.widths[0]
        self._statistics = statistics
        self._made_by = circumstances()

    @property
    def n(self) -> int:
        """Samples there are."""
        return self._samples.n

    def missing(self, assignments: Iterable[WidthAssignment], n: int) -> int:
        """Samples that `measure` would have to compute, over all assignments."""
        return sum(stop - start for task in self._tasks(assignments, n) for start, stop in task.pieces)

    def measure(self, assignments: Sequence[WidthAssignment], n: int | None = None) -> tuple[Scores, ...]:
        """Scores of each assignment on the first `n` samples, all when None.

        Raises:
            CheckFailedError: an output is not finite.
            DataError: the output is no row of class scores.
            GraphError: the network cannot be run.
            OutputError: the scores cannot be kept.
            UnavailableError: the backend is not installed.
        """
        n = self.n if n is None else min(n, self.n)
        tasks = list(self._tasks(assignments, n))
        with closing(self._run(tasks)) as computed:
            for task, results in zip(tasks, computed):
                for (start, stop), scores in zip(task.pieces, results):
                    self._store.save(self._key(task.assignment, start, stop), scores)
                    self._computed(stop - start)
        return tuple(self._load(assignment, n) for assignment in assignments)

    def _tasks(self, assignments: Iterable[WidthAssignment], n: int) -> Iterator[_Task]:
        for assignment in dict.fromkeys(assignments):
            pieces = tuple(piece for piece in self._pieces(n) if self._stored(assignment, piece) is None)
            if pieces:
                yield _Task(
                    master=self._master,
                    master_sha256=self._sha256,
                    assignment=assignment,
                    samples=self._samples,
                    pieces=pieces,
                    reference=self._reference,
                    statistics=self._statistics,
                )

    def _pieces(self, n: int) -> list[tuple[int, int]]:
        return [(start, min(start + PIECE, self.n)) for start in range(0, n, PIECE)]

    def _stored(self, assignment: WidthAssignment, piece: tuple[int, int]) -> Scores | None:
        return self._store.load(self._key(assignment, *piece), piece[1] - piece[0])

    def _key(self, assignment: WidthAssignment, start: int, stop: int) -> str:
        made_of = (self._sha256, self._samples.sha256, self._statistics and self._statistics.sha256)
        widths = (assignment.default, assignment.overrides)
        return key_of(*self._made_by, *made_of, self._reference, widths, start, stop)

    def _load(self, assignment: WidthAssignment, n: int) -> Scores:
        parts = [self._stored(assignment, piece) for piece in self._pieces(n)]
        found = [part for part in parts if part is not None]
        if len(found) != len(parts):  # somebody emptied the folder while we worked
            raise DataError(
                where=str(self._store.folder),
                got="scores that were written a moment ago are gone",
                allowed="a folder that nothing else changes",
                do="start the same command again",
            )
        return Scores(
            loss=np.concatenate([part.loss for part in found])[:n],
            right=np.concatenate([part.right for part in found])[:n],
        )

    def _run(self, tasks: Sequence[_Task]) -> Generator[list[Scores]]:
        if self._workers.jobs == 1 or len(tasks) < 2:
            yield from map(_compute, tasks)
            return
        if self._workers.backend == "ray":
            yield from self._run_in_parts(tasks)
            return
        with _configured(self._workers):
            parallel = joblib.Parallel(return_as="generator")
            results = parallel(joblib.delayed(_compute)(task) for task in tasks)
        try:
            for result in results:  # noqa: UP028 - `yield from` would close it, and joblib warns about that
                yield result
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results.close()
            _BUSY.stop()

    def _run_in_parts(self, tasks: Sequence[_Task]) -> Generator[list[Scores]]:
        """For Ray, whose backend (2.60) hands out no result before all are there: an interrupt loses one part only."""
        size = _TASKS_PER_PART * self._workers.jobs
        with _configured(self._workers), joblib.Parallel() as parallel:
            for start in range(0, len(tasks), size):
                yield from parallel(joblib.delayed(_compute)(task) for task in tasks[start : start + size])


def _compute(task: _Task) -> list[Scores]:
    with _BUSY.working():
        return _scores(task)


def _scores(task: _Task) -> list[Scores]:
    master = _loaded(str(task.master), task.master_sha256)
    if task.statistics is not None:
        with _ONE_BUILDS:
            adapter = _adapter(str(task.master), task.master_sha256, task.statistics)
        master = adapter.adapted(task.assignment)
    runner = open_session(master, task.assignment)
    where = f"assignment {widths_text(task.assignment)}"
    results = []
    for start, stop in task.pieces:
        x, y = task.samples.read(start, stop)
        outputs = run_batches(runner, x)
        if task.reference is not None:
            reference = _reference(str(task.master), task.master_sha256, task.reference, task.samples, start, stop)
            results.append(score_against(outputs, reference, y, where=where))
        elif y is not None:
            results.append(score_labelled(outputs, y, where=where))
    return results


@lru_cache(maxsize=256)
def _reference(path: str, sha256: str, width: int, samples: SearchSamples, start: int, stop: int) -> Outputs:
    x, _ = samples.read(start, stop)
    return run_batches(open_session(_loaded(path, sha256), WidthAssignment(default=width)), x)


@lru_cache(maxsize=1)
def _adapter(path: str, sha256: str, statistics: SearchSamples) -> BatchNormAdapter:
    x, _ = statistics.read(0, statistics.n)
    return BatchNormAdapter(_loaded(path, sha256), x)


@lru_cache(maxsize=1)
def _loaded(path: str, sha256: str) -> Master:
    master = read_master(path)
    if master.sha256 != sha256:
        raise MasterError(
            where=path,
            got="the file changed during the search",
            allowed=f"sha256 {sha256[:12]}",
            do="leave the master alone, or start again",
        )
    return master


def open_session(master: Master, assignment: WidthAssignment, *, threads: int = 1) -> ReferenceSession:
    """The canonical graph of an assignment. threads: one, where results must not depend on the number of cores."""
    canonical = canonical_graph(master, assignment)
    with runnable(canonical.model, canonical.large) as model:
        return ReferenceSession(model, threads=threads)


def run_batches(session: ReferenceSession, x: Inputs) -> Outputs:
    """Class scores [n, classes] of inputs [n, ...], some at a time.

    Raises:
        DataError: the output is no row of class scores.
    """
    fixed = session.inputs[0].shape[0] if session.inputs[0].shape else None
    size = fixed if isinstance(fixed, int) else at_a_time(x, most=BATCH, most_bytes=_BATCH_BYTES)
    parts = []
    for start in range(0, len(x), size):
        _BUSY.check()
        part = fed = x[start : start + size]
        if isinstance(fixed, int) and len(part) < size:  # filled up with the last sample
            fed = np.concatenate([part, part[-1:].repeat(size - len(part), axis=0)])
        outputs = np.asarray(session.run(np.ascontiguousarray(fed)))[: len(part)]
        if outputs.ndim != 2 or len(outputs) != len(part):
            raise DataError(
                where="output of the network",
                got=f"shape {list(outputs.shape)} for {len(part)} samples",
                allowed="[n, classes], one row of class scores for each sample",
                do="search on a network that classifies; others have no loss that is known here",
            )
        parts.append(outputs)
    return np.concatenate(parts)


def _configured(workers: Workers) -> AbstractContextManager[object]:
    _connect(workers.backend)
    context: AbstractContextManager[object] = joblib.parallel_config(backend=workers.backend, n_jobs=workers.jobs)
    return context


@lru_cache
def _connect(backend: str) -> None:
    """Once for each backend: without a scheduler to connect to, every `Client()` starts workers of its own."""
    if backend == "ray":
        _wanted("ray.util.joblib", "the backend ray needs ray").register_ray()
    if backend == "dask":
        # finds the scheduler as Dask does, DASK_SCHEDULER_ADDRESS for one; without one it starts workers here
        _wanted("distributed", "the backend dask needs distributed").Client()


def _wanted(module: str, reason: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise UnavailableError(
            where="search",
            got=f"{reason}, which is not installed",
            allowed=f"{module.partition('.')[0]}, or another --backend",
            do=f"pip install {module.partition('.')[0]}",
        ) from exc
