"""Run a graph with onnxruntime on the CPU. The only file that imports onnxruntime, and it does not need onnx."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# Releases from 1.32 on keep a file of events for their maker, with a number of this machine, from the import on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from bitswitch_deploy.engines.cpu_features import cpu_features
from bitswitch_deploy.engines.input_signature import InputSignature, check_feeds
from bitswitch_deploy.engines.timed_calls import time_calls
from bitswitch_deploy.errors import BitswitchError, GraphError, InputFileError, UnavailableError, UsageError
from bitswitch_deploy.model_file import is_compressed, read_model_bytes

VERSION = str(ort.__version__)

Optimisation = Literal["all", "off"]

_LEVELS: dict[str, str] = {"all": "ORT_ENABLE_ALL", "off": "ORT_DISABLE_ALL"}
# Everything that is raised reaches the user as an error of ours: no second copy on stderr.
_LOG_FATAL_ONLY = 4
# onnxruntime has no common base for its errors, and the list differs between releases (1.23: 10, 1.31: 15).
_ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    value for value in vars(ort_state).values() if isinstance(value, type) and issubclass(value, Exception)
)
# where a graph that is given as bytes has its external data
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
# what it says of them for want of memory
_NO_MEMORY = ("bad_alloc", "Failed to allocate memory", "bad allocation")
_DTYPES = {
    f"tensor({name})": np.dtype(numpy_name)
    for name, numpy_name in (
        ("float", "float32"),
        ("float16", "float16"),
        ("double", "float64"),
        ("bool", "bool"),
        *((f"{sign}int{bits}", f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)),
    )
}


def host_text() -> str:
    """Processor, its instruction sets and the onnxruntime release: what results on this host depend on."""
    return f"{platform.machine()}, {' '.join(cpu_features()) or 'features unknown'}, onnxruntime {VERSION}"


class OnnxRuntimeSession:
    """A graph loaded for the CPU with everything pinned that can change its results.

    Args:
        model: the graph, serialized or as a file, which may be compressed; external data is found next to a file only.
        optimisation: `all` is what a user gets, `off` runs the nodes as they are written.
        threads: worker threads inside one operator; operators run one after the other.
        session_options: onnxruntime session configuration entries, `session.…`.
        initializers: values of tensors whose data the graph says to be in a file, by name; onnxruntime copies them.
        profile_to: beginning of the path of a file that takes the time of every operator, which slows them down;
            `end_profile` completes it.

    Raises:
        GraphError: onnxruntime refuses the graph.
        InputFileError: the path of the graph is not UTF-8.
        UsageError: `threads` is below 1 or `optimisation` is unknown.
    """

    def __init__(
        self,
        model: bytes | Path,
        *,
        optimisation: Optimisation,
        threads: int,
        session_options: Mapping[str, str],
        initializers: Mapping[str, np.ndarray] | None = None,
        profile_to: Path | None = None,
    ) -> None:
        self._where = _place(model)
        options = _session_options(optimisation, threads, session_options)
        if profile_to is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile_to)
        # the values refer to the arrays: both live until the session is there
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in (initializers or {}).items()}
        if values:
            options.add_external_initializers(list(values), list(values.values()))
        self._session = _create(model, options)
        self.inputs = tuple(_signature(value, self._where) for value in self._session.get_inputs())
        self.output_names = tuple(str(value.name) for value in self._session.get_outputs())

    def run(self, x: np.ndarray) -> np.ndarray:
        """The first output for `x`, which feeds the only input; shapes are the graph's.

        Raises:
            DataError: shape or type of `x` do not fit.
            UsageError: the graph has more than one input.
            GraphError: onnxruntime fails while it runs.
        """
        if len(self.inputs) != 1:
            names = ", ".join(value.name for value in self.inputs)
            raise UsageError(
                where=self._where, got=f"{len(self.inputs)} inputs: {names}", allowed="one input", do="use run_all"
            )
        return self.run_all({self.inputs[0].name: x})[self.output_names[0]]

    def run_all(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name.

        Raises:
            DataError: shape or type of an array do not fit its input.
            UsageError: an input is missing or unknown.
            GraphError: onnxruntime fails while it runs.
        """
        check_feeds(self.inputs, feeds, where=self._where)
        try:
            results = self._session.run(None, dict(feeds))
        except _ORT_ERRORS as exc:
            raise self._failure(exc) from exc
        return {name: np.asarray(result) for name, result in zip(self.output_names, results, strict=True)}

    def time_runs(self, feeds: Mapping[str, np.ndarray], runs: int) -> NDArray[np.float64]:
        """Wall time of each of `runs` calls in ms, [runs]: what an application waits for, arrays in to arrays out.

        Raises:
            DataError, UsageError, GraphError: as `run_all`.
        """
        check_feeds(self.inputs, feeds, where=self._where)
        try:
            return time_calls(partial(self._session.run, None), dict(feeds), runs)
        except _ORT_ERRORS as exc:
            raise self._failure(exc) from exc

    def end_profile(self) -> Path:
        """The file that `profile_to` began, complete: a JSON list of Chrome trace events, times in microseconds."""
        return Path(self._session.end_profiling())

    def _failure(self, exc: Exception) -> BitswitchError:
        if any(sign in str(exc) for sign in _NO_MEMORY):
            return UnavailableError(
                where=self._where,
                got=f"memory ran out in onnxruntime: {str(exc).strip()}",
                allowed="as much as the graph takes for this input",
                do="run fewer samples at a time, or free some memory",
            )
        return GraphError(
            where=self._where,
            got=f"onnxruntime {ort.__version__} failed while running: {exc}",
            allowed="a graph that runs on every input of its signature",
            do="check the node that the message names",
        )


def save_optimized(model: bytes | Path, path: Path, *, session_options: Mapping[str, str]) -> None:
    """Write what onnxruntime makes of a graph with every optimisation to `path`.

    Raises:
        GraphError: onnxruntime refuses the graph.
    """
    options = _session_options("all", 1, session_options)
    options.optimized_model_filepath = str(path)
    _create(model, options)


def _session_options(optimisation: str, threads: int, entries: Mapping[str, str]) -> Any:
    if optimisation not in _LEVELS:
        allowed = " or ".join(_LEVELS)
        raise UsageError(where="optimisation", got=repr(optimisation), allowed=allowed, do="choose one of these")
    if threads < 1:
        raise UsageError(where="threads", got=str(threads), allowed="1 or more", do="state how many cores to use")
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[optimisation])
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = _LOG_FATAL_ONLY
    for key, value in entries.items():
        _add_entry(options, key, value)
    return options


def _add_entry(options: Any, key: str, value: str) -> None:
    try:
        options.add_session_config_entry(key, value)
    except RuntimeError as exc:
        raise UsageError(
            where=f"session entry {key[:60]!r}",
            got=f"onnxruntime {ort.__version__} refuses it: {exc}",
            allowed="keys of at most 1024 and values of at most 2048 characters",
            do="correct engine.session of the target",
        ) from exc


def _is_utf8(path: str) -> bool:
    """False for names of files that are bytes of another encoding."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _create(model: bytes | Path, options: Any) -> Any:
    path = "" if isinstance(model, bytes) else str(model)
    if not _is_utf8(path):
        raise InputFileError(
            where=path.encode("utf-8", "backslashreplace").decode(),
            got="a path that is not UTF-8",
            allowed="a path that onnxruntime can be told",
            do="rename the file or its folders",
        )
    source: str | bytes = model if isinstance(model, bytes) else path
    if isinstance(model, Path) and is_compressed(model):
        source = read_model_bytes(model)
        _add_entry(options, _DATA_FOLDER, str(model.parent))
    try:
        return ort.InferenceSession(source, sess_options=options, providers=["CPUExecutionProvider"])
    except _ORT_ERRORS as exc:
        raise GraphError(
            where=_place(model),
            got=f"onnxruntime {ort.__version__} refuses it: {exc}",
            allowed="an ONNX file whose operators, types and opset this release has",
            do="export for a stack that matches the installed onnxruntime",
        ) from exc


def _signature(value: Any, where: str) -> InputSignature:
    if value.type not in _DTYPES:
        where = f"{where}: input {value.name!r}"
        raise GraphError(where=where, got=value.type, allowed=", ".join(_DTYPES), do="add a Cast to the graph")
    return InputSignature(name=value.name, dtype=_DTYPES[value.type].name, shape=tuple(value.shape))


def _place(model: bytes | Path) -> str:
    return "graph in memory" if isinstance(model, bytes) else str(model)
