"""Every hop of one width that can run on this host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.engines.cpu_features import usable_cores
from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession, Optimisation
from bitswitch_deploy.engines.reference import PATIENT, ReferenceSession
from bitswitch_deploy.graph.canonical import CanonicalGraph
from bitswitch_deploy.graph.external_data import runnable
from bitswitch_deploy.master import Master
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.target import Target
from bitswitch_deploy.validation.dataset import Dataset
from bitswitch_deploy.validation.hops import Hop, Runner, WidthResult, WidthUnderTest, recorded_accuracy, validate_hops

# Class scores of a hundred thousand ImageNet samples fit; dense outputs are computed again.
_MAX_REMEMBERED_BYTES = 512 << 20


class WidthValidator:
    """Measures lowered graphs of one width on one data set, each hop that can run on this host.

    The canonical graph runs once, however many lowered graphs are measured.

    Args:
        master: what the trainer recorded is taken from it.
        canonical: the reference of every comparison.
        target: decides what else can run here.
        samples: the data set.
        progress: told how far it is.
    """

    def __init__(
        self, master: Master, canonical: CanonicalGraph, target: Target, samples: Dataset, progress: Progress
    ) -> None:
        assignment = canonical.plan.assignment
        bits = None if assignment.overrides else assignment.default
        recorded = recorded_accuracy(master.spec.accuracy, bits, samples.summary)
        self._width = WidthUnderTest(label=assignment.label, bits=bits, recorded=recorded)
        with runnable(canonical.model, canonical.large) as model:
            self._reference = _Remembered(ReferenceSession(model, threads=usable_cores()))
        self._target, self._samples, self._progress = target, samples, progress

    def validate(self, lowered: bytes | Path) -> WidthResult:
        """Run every sample through the canonical and the lowered graph, and the engine where that is onnxruntime.

        Raises:
            CheckFailedError: an output is not finite.
            GraphError: onnxruntime refuses a graph.
            DataError: an image cannot be decoded, or a label is no class.
        """
        self._progress.start(f"{self._width.label}: validating", self._samples.n)
        self._reference.rewind()
        runners: dict[Hop, Runner] = {"canonical": self._reference, "lowered": self._session(lowered, "off")}
        not_run: dict[Hop, str] = {"trained": "not recorded in the master"}
        if self._target.engine.name == "onnxruntime":
            runners["engine"] = self._session(lowered, "all")
        else:
            not_run["engine"] = f"the accuracy of {self._target.engine.name} engines is not measured"
        return validate_hops(
            runners, self._samples, width=self._width, not_run=not_run, progress=self._progress.advance
        )

    def _session(self, lowered: bytes | Path, optimisation: Optimisation) -> OnnxRuntimeSession:
        options = {**PATIENT, **dict(self._target.engine.session)}
        return OnnxRuntimeSession(lowered, optimisation=optimisation, threads=usable_cores(), session_options=options)


class _Remembered:
    """A runner whose outputs are computed once; batches come in the same order after each `rewind`."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._outputs: list[npt.NDArray[Any]] = []
        self._bytes = self._next = 0

    def rewind(self) -> None:
        self._next = 0

    def run(self, x: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        index, self._next = self._next, self._next + 1
        if index < len(self._outputs):
            return self._outputs[index]
        output = self._runner.run(x)
        if index == len(self._outputs) and self._bytes < _MAX_REMEMBERED_BYTES:
            self._outputs.append(output)
            self._bytes += output.nbytes
        return output
