"""The engines of a package, timed by trtexec: for a board that has TensorRT and no Python package of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from bitswitch_deploy.engines.device_facts import DeviceFacts, device_facts
from bitswitch_deploy.engines.input_signature import InputSignature
from bitswitch_deploy.engines.trtexec import LocalTrtexec, Trtexec, TrtexecSession, parse_version, timing_flags
from bitswitch_deploy.errors import UnavailableError
from bitswitch_deploy.package.engine_files import Loader
from bitswitch_deploy.package.manifest import Manifest
from bitswitch_deploy.pipeline.profiling.bench import Feeds, TimedSession, Width
from bitswitch_deploy.pipeline.profiling.engine_bench import EngineBench, layer_run
from bitswitch_deploy.profiling.layers import ProfiledRuns
from bitswitch_deploy.target import Target, version_matches

# TensorRT 11.0 turned the default around
_CAPTURES_UNASKED = ">=11"

# trtexec starts anew for each turn, which takes seconds.
TURN_MS = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """Where trtexec runs, and the facts that say which engines are for it."""

    trtexec: Trtexec
    facts: DeviceFacts


def this_board() -> Board:
    """This machine.

    Raises:
        UnavailableError: there is no trtexec.
    """
    return Board(trtexec=LocalTrtexec(), facts=device_facts())


class TrtexecBench(EngineBench):
    """One trtexec for each turn of each width. Unproven on hardware: see engines/trtexec.py.

    Args:
        package: the folder, checked. manifest: of it. widths: what to open. target: has the flags.
        board: what it runs on. trust: see `Loader`.

    Raises:
        UnavailableError: an engine is not built, or not for this device.
        CheckFailedError: an engine was not built by us, without `trust`; or it is not the engine of its record.
    """

    name: str = "trtexec"
    timed: str = "GPU time of an inference by trtexec, without copies, in a CUDA graph"
    turn_ms: float = TURN_MS

    def __init__(
        self,
        package: Path,
        manifest: Manifest,
        widths: Sequence[Width],
        target: Target,
        board: Board,
        *,
        trust: bool,
    ) -> None:
        version = parse_version(board.trtexec.run(("--help",)).log) or "of unknown version"
        flags = _flags(target, version)
        loader = Loader(device=board.facts, module="tensorrt", version=version, trust=trust)
        super().__init__(package, manifest, widths, loader)
        self._opened = {
            label: TrtexecSession(
                board.trtexec,
                engine,
                _inputs(self._models[label]),
                flags=flags,
                captures=version_matches(_CAPTURES_UNASKED, version) and "--noCudaGraph" not in flags,
            )
            for label, engine in self._engines.items()
        }
        self.sessions: Mapping[str, TimedSession] = dict(self._opened)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the log said that the numbers need beside them."""
        lost = [label for label, session in self._opened.items() if session.is_graph_captured is False]
        return (f"{', '.join(lost)}: no CUDA graph was captured, so launches count as well",) if lost else ()

    def profile(self, feeds: Feeds, runs_of: Mapping[str, int]) -> dict[str, ProfiledRuns]:
        """The median time of each TensorRT layer, as one run, and whole runs without the profiler."""
        profiles = {}
        for label, session in self._opened.items():
            run = layer_run([(layer.name, layer.median_ms) for layer in session.layer_times(feeds, runs_of[label])])
            plain = session.time_runs(feeds, runs_of[label])
            profiles[label] = ProfiledRuns(runs=(run,), plain_ms=plain)
            if label not in self._inspected:  # which takes seconds
                self._inspected[label] = session.layer_information(feeds)
        return profiles


def _flags(target: Target, version: str) -> tuple[str, ...]:
    for rule, flags in target.measure.trtexec:
        if version[0].isdigit() and version_matches(rule, version):
            return timing_flags(flags)
    raise UnavailableError(
        where="--engine trtexec",
        got=f"trtexec {version}",
        allowed=", ".join(rule for rule, _ in target.measure.trtexec) or f"no trtexec: {target.name} does not use it",
        do="use --engine tensorrt, or add its flags to measure.trtexec of the target's YAML",
    )


def _inputs(model: onnx.ModelProto) -> tuple[InputSignature, ...]:
    types = {value.name: value.type.tensor_type for value in model.graph.input}
    return tuple(
        InputSignature(
            name=name,
            dtype=np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name,
            shape=tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim),
        )
        for name, kind in types.items()
    )
