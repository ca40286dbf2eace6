from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.errors import OutputError, UnavailableError
from bitswitch_deploy.gate.evaluation import Evaluation, evaluate
from bitswitch_deploy.gate.executors import local_executor, ray_executor
from bitswitch_deploy.gate.metrics.metric import Rows
from bitswitch_deploy.gate.outcome_cache import RANGE_SAMPLES, Evaluated, Executor, evaluate_all
from tests.gate.networks import evaluation

N = 3 * RANGE_SAMPLES + 50


class OneByOne:
    """Runs at once, in this thread; killed before the range number `dies`."""

    slots = 1

    def __init__(self, dies: int | None = None) -> None:
        self.ran: list[Any] = []
        self._dies = dies

    def submit(self, function: Callable[..., Rows], *arguments: Any) -> Future[Rows]:
        if len(self.ran) == self._dies:
            raise KeyboardInterrupt
        self.ran.append(arguments[1:])
        future: Future[Rows] = Future()
        future.set_result(function(*arguments))
        return future


def _all(task: Evaluation, executor: Executor, folder: Path) -> Evaluated:
    return evaluate_all(task, N, executor=executor, cache=folder / "cache", advance=lambda _: None)


def test_threads_give_what_one_pass_gives(tmp_path: Path) -> None:
    task = evaluation(tmp_path, N)
    seen: list[int] = []
    with local_executor() as executor:
        result = evaluate_all(task, N, executor=executor, cache=tmp_path / "cache", advance=seen.append)
    assert np.array_equal(result.rows, evaluate(task, 0, N))
    assert (result.computed, sum(seen)) == (N, N)
    assert (tmp_path / "cache" / ".gitignore").read_text() == "*\n"


def test_a_folder_that_is_there_keeps_what_git_ignores_in_it(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    task = evaluation(tmp_path, N)
    _all(task, OneByOne(), tmp_path)
    assert not (tmp_path / "cache" / ".gitignore").exists()
    (tmp_path / "cache" / ".gitignore").write_text("build/\n")
    _all(task, OneByOne(), tmp_path)
    assert (tmp_path / "cache" / ".gitignore").read_text() == "build/\n"


def test_what_is_known_is_not_computed_again(tmp_path: Path) -> None:
    task = evaluation(tmp_path, N)
    first = _all(task, OneByOne(), tmp_path)
    again, executor = _all(task, untouched := OneByOne(), tmp_path), OneByOne()
    assert (again.computed, untouched.ran) == (0, [])
    assert np.array_equal(first.rows, again.rows)
    other = _all(evaluation(tmp_path, N, metric="recall"), executor, tmp_path)
    assert other.computed == N


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    task = evaluation(tmp_path, N)
    with pytest.raises(KeyboardInterrupt):
        _all(task, OneByOne(dies=3), tmp_path)
    kept = len(list((tmp_path / "cache").rglob("*.npy")))
    assert kept >= 1
    second = OneByOne()
    result = _all(task, second, tmp_path)
    assert len(second.ran) == 4 - kept
    assert np.array_equal(result.rows, evaluate(task, 0, N))


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"not an array", b"PK\x03\x04 no archive"])
def test_a_damaged_file_is_computed_again(tmp_path: Path, damage: bytes) -> None:
    task = evaluation(tmp_path, N)
    first = _all(task, OneByOne(), tmp_path)
    broken = sorted((tmp_path / "cache").rglob("*.npy"))[1]
    broken.write_bytes(damage)
    executor = OneByOne()
    assert np.array_equal(_all(task, executor, tmp_path).rows, first.rows)
    assert executor.ran == [(RANGE_SAMPLES, 2 * RANGE_SAMPLES)]


@pytest.mark.parametrize("place", [b"(", b"|b1", b"\n\x01"], ids=["header", "type", "outcome"])
def test_a_changed_byte_is_seen(tmp_path: Path, place: bytes) -> None:
    task = evaluation(tmp_path, N)
    first = _all(task, OneByOne(), tmp_path)
    broken = sorted((tmp_path / "cache").rglob("*.npy"))[0]
    content = bytearray(broken.read_bytes())
    content[content.index(place) + len(place) - 1] ^= 1
    broken.write_bytes(content)
    executor = OneByOne()
    assert np.array_equal(_all(task, executor, tmp_path).rows, first.rows)
    assert executor.ran == [(0, RANGE_SAMPLES)]


def test_pickled_objects_in_the_cache_are_not_loaded(tmp_path: Path) -> None:
    task = evaluation(tmp_path, N)
    _all(task, OneByOne(), tmp_path)
    hostile = sorted((tmp_path / "cache").rglob("*.npy"))[0]
    np.save(hostile, np.array([[print]] * RANGE_SAMPLES, dtype=object), allow_pickle=True)
    hostile.write_bytes(hostile.read_bytes() + hashlib.sha256(hostile.read_bytes()).digest())
    executor = OneByOne()
    _all(task, executor, tmp_path)
    assert executor.ran == [(0, RANGE_SAMPLES)]


def test_an_error_ends_the_run_before_everything_is_tried(tmp_path: Path) -> None:
    task = evaluation(tmp_path, N, metric="top-5")
    executor = OneByOne()
    with pytest.raises(Exception, match="metric top-5"):
        _all(task, executor, tmp_path)
    assert len(executor.ran) <= 2


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match="cannot be made"):
        _all(evaluation(tmp_path, N), OneByOne(), tmp_path)


_ON_RAY = """
import sys
from pathlib import Path
import numpy as np, ray
from bitswitch_deploy.errors import DataError
from bitswitch_deploy.gate.evaluation import evaluate
from bitswitch_deploy.gate.executors import ray_executor
from bitswitch_deploy.gate.outcome_cache import evaluate_all
from tests.gate.networks import evaluation
folder, n = Path(sys.argv[1]), int(sys.argv[2])
options = {"include_dashboard": False, "log_to_driver": False, "_node_ip_address": "127.0.0.1"}
ray.init(address="local", num_cpus=2, **options)
with ray_executor("auto") as executor:
    assert executor.slots == 2, executor.slots
    task = evaluation(folder, n)
    result = evaluate_all(task, n, executor=executor, cache=folder / "cache", advance=lambda _: None)
    assert np.array_equal(result.rows, evaluate(task, 0, n))
    try:
        task = evaluation(folder, n, metric="top-5")
        evaluate_all(task, n, executor=executor, cache=folder / "cache", advance=lambda _: None)
    except DataError as exc:
        print("ours:", exc.where)
"""


def test_two_workers_of_ray_give_the_same_rows_and_errors(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="extra `ray` is not installed")
    # in a process of its own: Ray leaves threads and sockets behind that warn, and warnings are errors here
    command = [sys.executable, "-c", _ON_RAY, str(tmp_path), str(N)]
    root, patient = Path(__file__).parents[2], {**os.environ, "RAY_raylet_start_wait_time_s": "120"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=patient)
    assert run.returncode == 0, run.stderr
    assert "ours: metric top-5" in run.stdout


def test_a_cluster_that_is_not_there_is_said_at_once() -> None:
    pytest.importorskip("ray", reason="extra `ray` is not installed")
    with pytest.raises(UnavailableError, match=r"127.0.0.1:1: no cluster there") as info, ray_executor("127.0.0.1:1"):
        pass
    assert "ray start --head" in info.value.do


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UnavailableError, match="Ray is not installed") as info, ray_executor("auto"):
        pass
    assert "bitswitch-deploy[ray]" in info.value.do
