"""The engines of a package in TensorRT's Python package."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitswitch_deploy.engines.device_facts import device_facts
from bitswitch_deploy.engines.tensorrt_module import Module, load_module
from bitswitch_deploy.engines.tensorrt_session import TensorRtDevice, TensorRtSession
from bitswitch_deploy.engines.timed_calls import time_calls
from bitswitch_deploy.errors import UnavailableError
from bitswitch_deploy.package.engine_files import Loader
from bitswitch_deploy.package.manifest import Manifest
from bitswitch_deploy.pipeline.profiling.bench import Feeds, TimedSession, Width
from bitswitch_deploy.pipeline.profiling.engine_bench import EngineBench, layer_run
from bitswitch_deploy.profiling.interleave import TURN_MS
from bitswitch_deploy.profiling.layers import ProfiledRuns
from bitswitch_deploy.runtime.load import RuntimeOptions, load
from bitswitch_deploy.runtime.switcher import Switcher


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


class TensorRtBench(EngineBench):
    """The engines of a package, as an application runs them. Unproven on hardware: see engines/tensorrt_session.py.

    Raises:
        UnavailableError: TensorRT, a GPU or an engine is not here.
        UsageError: the package has no engines.
    """

    timed: str = "arrays in to arrays out, copies to and from the device included"
    turn_ms: float = TURN_MS
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
        self.name: str = module
        version = _version(module, package)
        labels = tuple(width.label for width in widths)
        options = RuntimeOptions(warm=labels, trust_engines=trust)
        switcher = stack.enter_context(load(package, provider="tensorrt", width=labels[0], options=options))
        loader = Loader(device=device_facts(), module=module, version=version, trust=trust)
        super().__init__(package, manifest, widths, loader)
        sessions: dict[str, TimedSession] = {label: _AtWidth(switcher, label) for label in labels}
        self._device = TensorRtDevice(module)
        if self.reference is not None:
            sessions[self.reference] = _Timed(self._open(self.reference))
        self.sessions: Mapping[str, TimedSession] = sessions

    def profile(self, feeds: Feeds, runs_of: Mapping[str, int]) -> dict[str, ProfiledRuns]:
        """The time of every TensorRT layer by IProfiler, in runs of their own, and whole runs without it."""
        profiles = {}
        for label in self._engines:
            session = self._open(label)
            self._inspected[label] = session.layer_information()
            runs = tuple(layer_run(layers) for layers in session.profile(feeds, runs_of[label]))
            profiles[label] = ProfiledRuns(runs=runs, plain_ms=self.sessions[label].time_runs(feeds, runs_of[label]))
        return profiles

    def _open(self, label: str) -> TensorRtSession:
        return TensorRtSession(self._engines[label].read_bytes(), self._device)


def _version(module: Module, package: Path) -> str:
    try:
        return str(load_module(module).__version__)
    except UnavailableError as exc:
        raise UnavailableError(
            where=f"--engine {module}",
            got=f"no {module} on this machine: {exc.got}",
            allowed=f"a machine that runs {module}",
            do=f"copy the package to the board, and there: bitswitch-deploy profile {shlex.quote(package.name)}"
            " (or time the graphs on this processor: --engine onnxruntime)",
        ) from exc
