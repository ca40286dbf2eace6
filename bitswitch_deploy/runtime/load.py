"""From a package folder to a `Switcher`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from bitswitch_deploy.engines.cpu_features import usable_cores
from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession
from bitswitch_deploy.errors import PackageError, UnavailableError, UsageError
from bitswitch_deploy.package.manifest import Manifest
from bitswitch_deploy.package.verify import read_manifest
from bitswitch_deploy.runtime.free_memory import return_free_memory
from bitswitch_deploy.runtime.package_graphs import OwnGraphs, SharedGraphs
from bitswitch_deploy.runtime.session_cache import SessionCache
from bitswitch_deploy.runtime.switcher import Policy, Session, Switcher, width_label
from bitswitch_deploy.runtime.tensorrt_sessions import tensorrt_sessions

Provider = Literal["cpu", "tensorrt"]
_BITS = re.compile(r"w(\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """How a package is held.

    threads: worker threads inside one operator; None takes every core that the process may use. CPU only.
    max_sessions: widths that are kept open at a time, the one in use included. A switch to one of them takes
        microseconds, to another one as long as onnxruntime needs to load it. CPU only.
    memory_budget_mb: device memory for the engines that are kept loaded; None keeps all. While an engine is loaded that
        does not fit beside the one in use, both are in memory. TensorRT only.
    warm: widths to open, and to run once, before `load` returns. There must be room for all of them and the first one.
    release_memory: give memory that is free after a width was opened back to the system, which takes the switch some ms
        more and leaves a process with large networks about half as large. Linux with glibc, CPU only.
    trust_files: do not hash the files; their sizes are compared with the manifest all the same.
    trust_engines: load engines that bitswitch-deploy has no record of. TensorRT only.
    """

    threads: int | None = None
    max_sessions: int = 2
    memory_budget_mb: int | None = None
    warm: tuple[int | str, ...] = ()
    release_memory: bool = False
    trust_files: bool = False
    trust_engines: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.warm, (tuple, list)):
            allowed, do = "several widths, such as (8, 4)", "write one width as (4,)"
            raise UsageError(where="RuntimeOptions: warm", got=repr(self.warm), allowed=allowed, do=do)
        for name in ("threads", "max_sessions", "memory_budget_mb"):
            value = getattr(self, name)
            if value is None and name != "max_sessions":
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                allowed = "a whole number, 1 or more"
                raise UsageError(
                    where=f"RuntimeOptions: {name}", got=repr(value), allowed=allowed, do="correct the number"
                )


def load(
    package: str | os.PathLike[str],
    *,
    provider: Provider = "cpu",
    width: int | str | None = None,
    policy: Policy | None = None,
    options: RuntimeOptions | None = None,
) -> Switcher:
    """Open a package that `bitswitch-deploy export` wrote, with `--shared-weights` or without.

    Args:
        package: the folder.
        provider: `cpu` runs the graphs with onnxruntime, `tensorrt` the engines that were built from them.
        width: the first one, as for `Switcher.switch`; None takes the highest.
        policy: chooses the width of each request from then on.
        options: threads, memory, warm widths.

    Raises:
        PackageError: the folder is no package, or its parts contradict each other.
        CheckFailedError: a file is not as it was exported.
        UsageError: there is no such width or provider, or no room for all that is to be open.
        GraphError: onnxruntime refuses a graph.
        InputFileError: the folder's name is not UTF-8, and onnxruntime is to read a graph in it.
        UnavailableError: the provider is not on this machine, or memory ran out.
    """
    options = RuntimeOptions() if options is None else options
    _check_arguments(package, options, policy)
    folder = Path(os.path.abspath(package))  # an application may change its folder later
    manifest = read_manifest(folder)
    widths = _widths(manifest, folder)
    sessions = _sessions(folder, manifest, provider, widths, options)
    first = widths[0] if width is None else width_label(width, widths)
    warm = dict.fromkeys(width_label(each, widths) for each in options.warm)
    sessions.get_all(tuple(dict.fromkeys((first, *warm))))
    for label in warm:
        _run_once(sessions.get(label))
    return Switcher(widths, sessions, width=first, policy=policy, preprocessing=manifest.preprocessing)


def _check_arguments(package: object, options: object, policy: object) -> None:
    if not isinstance(package, (str, os.PathLike)):
        allowed, do = "the path of a folder", "name a folder that `bitswitch-deploy export` wrote"
        raise UsageError(where="load: package", got=repr(package), allowed=allowed, do=do)
    if not isinstance(options, RuntimeOptions):
        allowed, do = "RuntimeOptions or None", "write options=RuntimeOptions(threads=2)"
        raise UsageError(where="load: options", got=repr(options), allowed=allowed, do=do)
    methods = [getattr(policy, name, None) for name in ("choose", "observe")]
    if policy is not None and (isinstance(policy, type) or not all(map(callable, methods))):
        allowed, do = (
            "an object with the methods choose and observe, or None",
            "write policy=LatencyBudget(budget_ms=5)",
        )
        raise UsageError(where="load: policy", got=repr(policy), allowed=allowed, do=do)


def _widths(manifest: Manifest, folder: Path) -> tuple[str, ...]:
    labels = [entry.name for entry in manifest.graphs]
    if not labels:
        do = "name a folder that `bitswitch-deploy export` wrote"
        raise PackageError(where=str(folder), got="no graph", allowed="a package with at least one width", do=do)
    return tuple(sorted(labels, key=lambda label: (-int(match[1]) if (match := _BITS.fullmatch(label)) else 0, label)))


def _sessions(
    folder: Path, manifest: Manifest, provider: Provider, widths: tuple[str, ...], options: RuntimeOptions
) -> SessionCache[Session]:
    if provider not in get_args(Provider):
        known = ", ".join(get_args(Provider))
        raise UsageError(where="provider", got=repr(provider), allowed=known, do="choose one of these")
    if provider == "tensorrt":
        return tensorrt_sessions(
            folder,
            manifest,
            memory_budget_mb=options.memory_budget_mb,
            trust=options.trust_files,
            trust_engines=options.trust_engines,
        )
    return SessionCache(_cpu_opener(folder, manifest, options), dict.fromkeys(widths, 1), options.max_sessions)


def _cpu_opener(folder: Path, manifest: Manifest, options: RuntimeOptions) -> Callable[[str], Session]:
    index = next((entry for entry in manifest.files if entry.role == "index"), None)
    trust = options.trust_files
    graphs = SharedGraphs(folder, manifest, index, trust=trust) if index else OwnGraphs(folder, manifest, trust=trust)
    # those that the graphs were validated with
    entries = {key: value for key, value in manifest.stack if key.startswith("session.")}
    threads = options.threads if options.threads is not None else usable_cores()

    def open_session(label: str) -> Session:
        graph = graphs.get(label)
        session = OnnxRuntimeSession(
            graph.model, optimisation="all", threads=threads, session_options=entries, initializers=graph.initializers
        )
        graphs.check(label)  # what onnxruntime read by itself meanwhile
        if options.release_memory:
            del graph  # the weights that onnxruntime has copied
            return_free_memory()
        return session

    return lambda label: _with_memory(open_session, label, folder)


def _with_memory(open_session: Callable[[str], Session], label: str, folder: Path) -> Session:
    try:
        return open_session(label)
    except MemoryError as exc:
        raise UnavailableError(
            where=f"{folder}: width {label}",
            got="not enough memory to open it",
            allowed="room for its weights and its session",
            do="free memory, or keep fewer widths open: lower max_sessions",
        ) from exc


def _run_once(session: Session) -> None:
    """Let the session take its memory and start its threads; open dimensions are one."""
    feeds: Mapping[str, np.ndarray] = {
        value.name: np.zeros([size if isinstance(size, int) else 1 for size in value.shape], value.dtype)
        for value in session.inputs
    }
    session.run_all(feeds)
