"""Where evaluations run: threads of this process, or workers of Ray (extra `ray`). One code path for both.

Threads are enough on one machine: onnxruntime, the decoding of images and most of NumPy run outside Python's lock,
and all threads share one session and one copy of the data.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bitswitch_deploy.engines.cpu_features import usable_cores
from bitswitch_deploy.errors import BitswitchError, UnavailableError
from bitswitch_deploy.gate.metrics.metric import Rows
from bitswitch_deploy.gate.outcome_cache import Executor

_KNOCK_S = 10


class _Threads:
    """A thread for each core."""

    def __init__(self) -> None:
        self.slots = usable_cores()
        self._pool = ThreadPoolExecutor(self.slots, thread_name_prefix="evaluate")

    def submit(self, function: Callable[..., Rows], *arguments: Any) -> Future[Rows]:
        return self._pool.submit(function, *arguments)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class _Ray:
    """Tasks of a Ray cluster. Arguments travel once: what is large in them is kept in its object store."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._stored: tuple[Any, Any] = (None, None)
        self.slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._task = ray.remote(num_cpus=1, max_retries=2)(_call)

    def submit(self, function: Callable[..., Rows], *arguments: Any) -> Future[Rows]:
        evaluation, *rest = arguments
        if self._stored[0] is not evaluation:
            self._stored = (evaluation, self._ray.put(evaluation))
        future: Future[Rows] = self._task.remote(function, self._stored[1], *rest).future()
        return _unwrapped(future, self._ray.exceptions)


@contextmanager
def local_executor() -> Iterator[Executor]:
    """All cores of this machine."""
    executor = _Threads()
    try:
        yield executor
    finally:
        executor.close()


@contextmanager
def ray_executor(address: str) -> Iterator[Executor]:
    """A Ray cluster: `auto`, `HOST:PORT`, or `local` for one that is started here and ends with the block.

    Every node needs this package, and sees the data and the folder of the configuration under the same paths.

    Raises:
        UnavailableError: Ray is not installed, or nobody answers at `address`.
    """
    try:
        import ray
    except ImportError as exc:
        raise UnavailableError(
            where="--ray-address",
            got="Ray is not installed",
            allowed="Ray, or a run on this machine alone",
            do="pip install 'bitswitch-deploy[ray]', or leave out --ray-address",
        ) from exc
    started_here = not ray.is_initialized()
    try:
        if started_here:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (OSError, RuntimeError, ValueError) as exc:
        do = "start it with `ray start --head`, or correct the address"
        got = f"no cluster there: {exc}"
        raise UnavailableError(where=f"--ray-address {address}", got=got, allowed="auto, HOST:PORT", do=do) from exc
    try:
        yield _Ray(ray)
    finally:
        if started_here:
            ray.shutdown()


def _knock(address: str) -> None:
    """See within seconds that somebody listens at HOST:PORT: Ray itself tries for minutes.

    Raises:
        OSError: nobody does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """An error of ours on its way back: Ray would wrap it in a class of its own."""

    kind: type[BitswitchError]
    where: str
    got: str
    allowed: str
    do: str

    def error(self) -> BitswitchError:
        return self.kind(where=self.where, got=self.got, allowed=self.allowed, do=self.do)


def _call(function: Callable[..., Rows], *arguments: Any) -> Rows | _Failure:
    """What a worker of Ray does."""
    try:
        return function(*arguments)
    except BitswitchError as exc:
        return _Failure(kind=type(exc), where=exc.where, got=exc.got, allowed=exc.allowed, do=exc.do)


def _unwrapped(future: Future[Any], exceptions: Any) -> Future[Rows]:
    """A future that raises what the worker returned as an error."""
    result: Future[Rows] = Future()

    def copy(done: Future[Any]) -> None:
        try:
            value = done.result()
        except exceptions.RayError as exc:
            do = "look at the log of the worker; run it without --ray-address to see whether it is the cluster"
            error = UnavailableError(where="--ray-address", got=f"a worker failed: {exc}", allowed="a result", do=do)
            result.set_exception(error)
            return
        if isinstance(value, _Failure):
            result.set_exception(value.error())
        else:
            result.set_result(value)

    future.add_done_callback(copy)
    return result
