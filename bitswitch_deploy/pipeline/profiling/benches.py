"""What is profiled: the widths of a package and the float reference, opened in one engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from bitswitch_deploy.engines.device_facts import device_facts
from bitswitch_deploy.engines.input_signature import InputSignature
from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession
from bitswitch_deploy.engines.onnxruntime_profile import read_profile
from bitswitch_deploy.engines.optimized_operators import OptimizedNode, graph_nodes, optimized_nodes
from bitswitch_deploy.engines.read_back import ReadBack
from bitswitch_deploy.engines.tensorrt_module import Module, load_module
from bitswitch_deploy.engines.tensorrt_session import TensorRtDevice, TensorRtSession
from bitswitch_deploy.engines.timed_calls import time_calls
from bitswitch_deploy.errors import UnavailableError, UsageError
from bitswitch_deploy.graph.external_data import runnable
from bitswitch_deploy.graph.float_reference import float_graph
from bitswitch_deploy.graph.stamp import read_stamp
from bitswitch_deploy.master import Master
from bitswitch_deploy.package.manifest import FileEntry, Manifest
from bitswitch_deploy.pipeline.building.kept_layers import kept_layers
from bitswitch_deploy.pipeline.profiling.engine_files import Loader, engine_file, reference_graphs
from bitswitch_deploy.pipeline.profiling.tensorrt_layers import graph_of, layer_run
from bitswitch_deploy.profiling.interleave import TURN_MS
from bitswitch_deploy.profiling.layers import ProfiledRuns
from bitswitch_deploy.runtime.load import RuntimeOptions, load
from bitswitch_deploy.runtime.switcher import Switcher
from bitswitch_deploy.tensors import WidthAssignment

REFERENCE = "float32"
_PROFILE_TURNS = 10

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

    name, version: of the engine. timed: what a latency covers. threads: inside one operator, None where that says
    nothing. turn_ms: of one turn. reference: label of the float network, None where there is none. sessions: by label.
    """

    name: str
    version: str
    timed: str
    threads: int | None
    turn_ms: float
    reference: str | None
    sessions: Mapping[str, TimedSession]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the numbers need beside them, once everything is measured."""

    def nodes(self, label: str) -> tuple[OptimizedNode, ...]:
        """What really runs; empty where the engine does not tell."""

    def read_back(self, label: str) -> ReadBack | None:
        """What became of its graph in a TensorRT engine, where that is known."""

    def profile(self, feeds: Feeds, runs_of: Mapping[str, int]) -> dict[str, ProfiledRuns]:
        """The time of every operator of each candidate; empty where the engine does not tell.

        runs_of: by label, how many runs a turn has.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """A graph of the package. assignment: the widths of its layers."""

    label: str
    entry: FileEntry
    assignment: WidthAssignment

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
    entries = {entry.label or entry.path: entry for entry in manifest.files if entry.role == "graph"}
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
            made_from = read_stamp(onnx.load(str(path), load_external_data=False), where=str(path))
            widths.append(Width(label=label, entry=entry, assignment=made_from.assignment))
    return tuple(sorted(widths, key=lambda width: (width.bits is None, -(width.bits or 0), width.label)))


class OnnxRuntimeBench:
    """The graphs of a package, and the float network of its master, in onnxruntime on the CPU.

    Args:
        package: the folder, checked. manifest: of it. widths: what to open. master: None where it is not at hand.
        threads: inside one operator. stack: closes temporary files at the end.
    """

    name: str = "onnxruntime"
    timed: str = "arrays in to arrays out, wall time of each call"
    turn_ms: float = TURN_MS
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        package: Path,
        manifest: Manifest,
        widths: Sequence[Width],
        *,
        master: Master | None,
        threads: int,
        stack: ExitStack,
    ) -> None:
        self.threads: int | None = threads
        self._options = {key: value for key, value in manifest.stack if key.startswith("session.")}
        self._graphs: dict[str, bytes | Path] = {width.label: package / width.entry.path for width in widths}
        self.reference = REFERENCE if master is not None else None
        if master is not None:
            floats = float_graph(master)
            self._graphs[REFERENCE] = stack.enter_context(runnable(floats.model, floats.large))
        opened = {label: self._open(label) for label in self._graphs}
        self.sessions: Mapping[str, TimedSession] = opened
        self.version = next(iter(opened.values())).environment.onnxruntime

    def nodes(self, label: str) -> tuple[OptimizedNode, ...]:
        """What really runs."""
        return optimized_nodes(self._graphs[label], session_options=self._options)

    def read_back(self, label: str) -> None:
        """Nothing: its nodes tell."""

    def profile(self, feeds: Feeds, runs_of: Mapping[str, int]) -> dict[str, ProfiledRuns]:
        """The time of every operator of all candidates, in turns, and of whole runs without profiler next to them.

        The first run of each turn is left out.

        runs_of: by label, how many runs a turn has.
        """
        with TemporaryDirectory(prefix="bitswitch-") as folder:
            sessions = {label: self._open(label, Path(folder, str(index))) for index, label in enumerate(self._graphs)}
            plain: dict[str, list[NDArray[np.float64]]] = {label: [] for label in sessions}
            for _ in range(_PROFILE_TURNS):
                for label, session in sessions.items():
                    session.time_runs(feeds, runs_of[label] + 1)
                    plain[label].append(self.sessions[label].time_runs(feeds, runs_of[label] + 1)[1:])
            profiles = {label: read_profile(session.end_profile()) for label, session in sessions.items()}
        return {
            label: ProfiledRuns(
                runs=tuple(run for index, run in enumerate(runs) if index % (runs_of[label] + 1)),
                plain_ms=np.concatenate(plain[label]),
            )
            for label, runs in profiles.items()
        }

    def _open(self, label: str, profile_to: Path | None = None) -> OnnxRuntimeSession:
        return OnnxRuntimeSession(
            self._graphs[label],
            optimisation="all",
            threads=self.threads or 1,
            session_options=self._options,
            profile_to=profile_to,
        )


class _AtWidth:
    """A switcher that goes to one width before it is timed."""

    def __init__(self, switcher: Switcher, label: str) -> None:
        self._switcher, self._label = switcher, label
        self.inputs = switcher.inputs

    def time_runs(self, feeds: Feeds, runs: int) -> NDArray[np.float64]:
        """Wall time of each of `runs` calls in ms."""
        self._switcher.switch(self._label)
        return time_calls(self._switcher.run_all, feeds, runs)


class _Timed:
    """A session of an engine that no switcher holds."""

    def __init__(self, session: TensorRtSession) -> None:
        self._session = session
        self.inputs = session.inputs

    def time_runs(self, feeds: Feeds, runs: int) -> NDArray[np.float64]:
        """Wall time of each of `runs` calls in ms."""
        return time_calls(self._session.run_all, feeds, runs)


class TensorRtBench:
    """The engines of a package, as an application runs them. Unproven on hardware: see engines/tensorrt_session.py.

    Raises:
        UnavailableError: TensorRT, a GPU or an engine is not here.
        UsageError: the package has no engines.
    """

    timed: str = "arrays in to arrays out, copies to and from the device included"
    threads: int | None = None
    turn_ms: float = TURN_MS
    reference: str | None
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        package: Path,
        manifest: Manifest,
        widths: Sequence[Width],
        module: Module,
        *,
        stack: ExitStack,
        trust: bool,
    ) -> None:
        self.reference = None
        self.name: str = module
        try:
            self.version = str(load_module(module).__version__)
        except UnavailableError as exc:
            raise UnavailableError(
                where=f"--engine {module}",
                got=f"no {module} on this machine: {exc.got}",
                allowed=f"a machine that runs {module}",
                do=f"copy the package to the board, and there: bitswitch-deploy profile {package.name}"
                " (or time the graphs on this processor: --engine onnxruntime)",
            ) from exc
        labels = tuple(width.label for width in widths)
        options = RuntimeOptions(warm=labels, trust_engines=trust)
        switcher = stack.enter_context(load(package, provider="tensorrt", width=labels[0], options=options))
        sessions: dict[str, TimedSession] = {label: _AtWidth(switcher, label) for label in labels}
        loader = Loader(device=device_facts(), module=module, version=self.version, trust=trust)
        entries = {width.label: width.entry for width in widths}
        for entry in reference_graphs(manifest):
            self.reference = entry.label or entry.path
            entries[self.reference] = entry
        self._models = {label: graph_of(package / entry.path) for label, entry in entries.items()}
        self._engines = {label: engine_file(package, manifest, entry, loader) for label, entry in entries.items()}
        self._device = TensorRtDevice(module)
        if self.reference is not None:
            sessions[self.reference] = _Timed(self._open(self.reference))
        self.sessions: Mapping[str, TimedSession] = sessions

    def nodes(self, label: str) -> tuple[OptimizedNode, ...]:
        """The nodes of the ONNX graph, each under the name of the TensorRT layer that holds it."""
        return graph_nodes(self._models[label].graph)

    def read_back(self, label: str) -> ReadBack | None:
        """What `build` found out."""
        return kept_layers(self._engines[label], self._models[label])

    def profile(self, feeds: Feeds, runs_of: Mapping[str, int]) -> dict[str, ProfiledRuns]:
        """The time of every TensorRT layer by IProfiler, in runs of their own, and whole runs without it."""
        profiles = {}
        for label, model in self._models.items():
            runs = tuple(layer_run(layers, model) for layers in self._open(label).profile(feeds, runs_of[label]))
            profiles[label] = ProfiledRuns(runs=runs, plain_ms=self.sessions[label].time_runs(feeds, runs_of[label]))
        return profiles

    def _open(self, label: str) -> TensorRtSession:
        return TensorRtSession(self._engines[label].read_bytes(), self._device)
