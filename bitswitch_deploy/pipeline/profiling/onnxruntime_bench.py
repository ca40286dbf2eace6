"""The graphs of a package in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray

from bitswitch_deploy.engines.cpu_features import cpu_features
from bitswitch_deploy.engines.onnxruntime_engine import VERSION, OnnxRuntimeSession
from bitswitch_deploy.engines.onnxruntime_profile import read_profile
from bitswitch_deploy.engines.optimized_operators import graph_nodes, optimized_nodes
from bitswitch_deploy.graph.external_data import runnable
from bitswitch_deploy.graph.float_reference import float_graph
from bitswitch_deploy.graph.lint.reading import read_model
from bitswitch_deploy.master import Master
from bitswitch_deploy.package.manifest import Manifest
from bitswitch_deploy.pipeline.profiling.bench import Feeds, TimedSession, Width
from bitswitch_deploy.profiling.interleave import TURN_MS
from bitswitch_deploy.profiling.layers import LayerName, Ownership, ProfiledRuns, owners

REFERENCE = "float32"
_PROFILE_TURNS = 10


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
    device: tuple[tuple[str, str], ...]

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
        self.device = (("cpu features", " ".join(cpu_features())),)
        self._options = {key: value for key, value in manifest.stack if key.startswith("session.")}
        self._graphs: dict[str, bytes | Path] = {width.label: package / width.entry.path for width in widths}
        self.reference = REFERENCE if master is not None else None
        if master is not None:
            floats = float_graph(master)
            self._graphs[REFERENCE] = stack.enter_context(runnable(floats.model, floats.large))
        self.sessions: Mapping[str, TimedSession] = {label: self._open(label) for label in self._graphs}
        self.version = VERSION

    def ownership(self, label: str, layers: Sequence[LayerName], profile: ProfiledRuns) -> Ownership:
        """By the graph that really runs."""
        graph = self._graphs[label]
        nodes = optimized_nodes(graph, session_options=self._options)
        model = onnx.load_model_from_string(graph) if isinstance(graph, bytes) else read_model(graph)
        arithmetic = {node.name: node.arithmetic for node in nodes if node.arithmetic is not None}
        return Ownership(owner_of=owners(nodes, layers, graph_nodes(model.graph)), arithmetic=arithmetic)

    def read_back(self, label: str) -> None:
        """Nothing: it is for TensorRT."""

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
