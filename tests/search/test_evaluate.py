"""Scores: the same in any order and with any number of workers, kept on disk, and never computed twice."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bitswitch_deploy.errors import DataError, UnavailableError
from bitswitch_deploy.master import assemble_master, write_master
from bitswitch_deploy.search import evaluate
from bitswitch_deploy.search.batchnorm import BatchNormAdapter
from bitswitch_deploy.search.evaluate import Evaluator, Workers, open_session, run_batches
from bitswitch_deploy.search.samples import SearchSamples, store_samples
from bitswitch_deploy.search.score import Scores, score_against, score_labelled
from bitswitch_deploy.search.store import ScoreStore
from bitswitch_deploy.tensors import WidthAssignment
from tests.graph.masters import build, layer
from tests.search.masters import two_blocks

N = 300  # two pieces, the second one short
MIXED = WidthAssignment(default=8, overrides=(("a", 2), ("b", 4)))
UNIFORM = [WidthAssignment(default=bits) for bits in (8, 6, 4, 2)]


@pytest.fixture
def master(tmp_path: Path) -> Path:
    write_master(two_blocks(), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def samples(folder: Path, *, labelled: bool = True, seed: int = 0) -> SearchSamples:
    random = np.random.default_rng(seed)
    x = random.normal(size=(N, 2, 6, 6)).astype(np.float32)
    return store_samples(folder, x, random.integers(0, 3, N) if labelled else None)


def evaluator(master: Path, folder: Path, *, labelled: bool = True, **more: object) -> Evaluator:
    arguments = {"workers": Workers(), **more}
    return Evaluator(master, samples(folder, labelled=labelled), ScoreStore(folder=folder), **arguments)  # type: ignore[arg-type]


def test_scores_are_those_of_the_canonical_graph(master: Path, tmp_path: Path) -> None:
    (scores,) = evaluator(master, tmp_path, criterion="cross_entropy").measure([MIXED])
    x, y = samples(tmp_path).read(0, N)
    assert y is not None
    expected = score_labelled(run_batches(open_session(two_blocks(), MIXED), x), y, where="")
    assert (scores.loss == expected.loss).all()
    assert (scores.right == expected.right).all()


def test_labels_say_what_is_right_and_the_loss_is_the_divergence(master: Path, tmp_path: Path) -> None:
    by_labels, by_outputs = (
        evaluator(master, tmp_path, labelled=labelled).measure([MIXED])[0] for labelled in (True, False)
    )
    x, y = samples(tmp_path).read(0, N)
    outputs = run_batches(open_session(two_blocks(), MIXED), x)
    assert (by_labels.loss == by_outputs.loss).all()
    assert (by_labels.right == (outputs.argmax(axis=1) == y)).all()
    assert (by_labels.right != by_outputs.right).any()


@pytest.mark.parametrize("criterion", ["divergence", "cross_entropy"])
def test_without_labels_it_is_the_divergence_from_the_highest_width(
    master: Path, tmp_path: Path, criterion: str
) -> None:
    by_width = evaluator(master, tmp_path, labelled=False, criterion=criterion).measure([UNIFORM[0], MIXED])
    assert (by_width[0].loss == 0).all()
    x, _ = samples(tmp_path).read(0, N)
    mixed, highest = (run_batches(open_session(two_blocks(), each), x) for each in (MIXED, UNIFORM[0]))
    assert (by_width[1].loss == score_against(mixed, highest, where="").loss).all()
    assert by_width[1].mean_loss > 0


@pytest.mark.parametrize(("jobs", "backend"), [(2, "threading"), (4, "threading"), (2, "loky")])
def test_workers_and_order_change_no_bit(master: Path, tmp_path: Path, jobs: int, backend: str) -> None:
    alone = evaluator(master, tmp_path / "1").measure([MIXED, *UNIFORM])
    together = evaluator(master, tmp_path / "2", workers=Workers(jobs=jobs, backend=backend))
    for a, b in zip(alone, reversed(together.measure([*reversed(UNIFORM), MIXED]))):
        assert (a.loss == b.loss).all()


def test_a_worker_that_was_started_in_another_folder(
    master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line hands in relative paths: the master as it was typed, and a cache beside the output."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    cache = Path(".cache")
    here = evaluator(Path(master.name), cache, statistics=samples(cache, labelled=False, seed=2))
    sent = pickle.dumps(list(here._tasks([MIXED], N)))
    (expected,) = here.measure([MIXED])
    for cached in (evaluate._loaded, evaluate._adapter, evaluate._reference):
        cached.cache_clear()
    monkeypatch.chdir("elsewhere")
    (task,) = pickle.loads(sent)
    loss = np.concatenate([scores.loss for scores in evaluate._compute(task)])
    assert (loss == expected.loss).all()


def test_an_interrupted_search_goes_on(master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def interrupt(n: int) -> None:
        done.append(n)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator(master, tmp_path, computed=interrupt).measure(UNIFORM)
    again = evaluator(master, tmp_path)
    assert again.missing(UNIFORM, N) == 4 * N - sum(done)
    scores = again.measure(UNIFORM)
    monkeypatch.setattr(evaluate, "_compute", lambda task: pytest.fail("computed twice"))
    cached = evaluator(master, tmp_path).measure(UNIFORM)
    assert all((a.loss == b.loss).all() for a, b in zip(scores, cached))


@pytest.mark.parametrize("fails_in", ["a worker", "the caller"])
def test_no_thread_is_left_at_work(
    master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_in: str
) -> None:
    """One that comes back from onnxruntime after Python has ended would abort the process, exit code and all."""
    entered = threading.Event()

    def compute(task: evaluate._Task) -> list[Scores]:
        if task.assignment != UNIFORM[0]:
            entered.set()
            for _ in range(500):
                evaluate._BUSY.check()
                time.sleep(0.01)
        assert entered.wait(5)
        if fails_in == "a worker":
            raise DataError(where="here", got="a failure", allowed="none", do="nothing")
        return [Scores(loss=np.zeros(b - a), right=np.zeros(b - a, bool)) for a, b in task.pieces]

    def interrupt(n: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "_scores", compute)
    with pytest.raises((DataError, KeyboardInterrupt)):
        evaluator(master, tmp_path, workers=Workers(jobs=2), computed=interrupt).measure(UNIFORM)
    assert evaluate._BUSY.n == 0


def test_a_damaged_file_is_computed_again(master: Path, tmp_path: Path) -> None:
    (before,) = evaluator(master, tmp_path).measure([MIXED])
    files = sorted(tmp_path.glob("??/*.npz"))
    assert len(files) == 2
    files[0].write_bytes(b"PK nothing")
    np.savez(files[1], loss=np.zeros(3), right=np.array([None, 1, 2], object))
    assert evaluator(master, tmp_path).missing([MIXED], N) == N
    (after,) = evaluator(master, tmp_path).measure([MIXED])
    assert (before.loss == after.loss).all()


def test_another_master_other_samples_and_other_statistics_share_nothing(master: Path, tmp_path: Path) -> None:
    evaluator(master, tmp_path).measure([MIXED])
    store = ScoreStore(folder=tmp_path)
    given = two_blocks()
    tensors = {**given.tensors, "b.weight": given.tensors["b.weight"] // 2}
    changed = assemble_master(spec=given.spec, tensors=tensors, skeleton=given.skeleton)
    write_master(changed, tmp_path / "other.safetensors")
    another = evaluator(tmp_path / "other.safetensors", tmp_path)
    other = Evaluator(master, samples(tmp_path, seed=1), store, workers=Workers())
    fitted = evaluator(master, tmp_path, statistics=samples(tmp_path, labelled=False, seed=2))
    unlabelled = evaluator(master, tmp_path, labelled=False)
    assert [each.missing([MIXED], N) for each in (another, other, fitted, unlabelled)] == [N, N, N, N]


def test_both_criteria_share_nothing(master: Path, tmp_path: Path) -> None:
    (divergence,) = evaluator(master, tmp_path).measure([MIXED])
    by_labels = evaluator(master, tmp_path, criterion="cross_entropy")
    assert by_labels.missing([MIXED], N) == N
    (cross_entropy,) = by_labels.measure([MIXED])
    assert (divergence.loss != cross_entropy.loss).any()
    assert evaluator(master, tmp_path).missing([MIXED], N) == 0


@pytest.mark.parametrize("what", ["host_text", "_SOFTWARE"])
def test_another_host_and_another_release_measure_again(
    master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    evaluator(master, tmp_path).measure([MIXED])
    monkeypatch.setattr(evaluate, what, {"host_text": lambda: "another", "_SOFTWARE": ("4", "9.9.9")}[what])
    assert evaluator(master, tmp_path).missing([MIXED], N) == N


def test_fitted_statistics_leave_the_master_alone(master: Path, tmp_path: Path) -> None:
    before = master.read_bytes()
    statistics = samples(tmp_path, labelled=False, seed=2)
    (scores,) = evaluator(master, tmp_path, statistics=statistics, criterion="cross_entropy").measure([MIXED])
    x, y = samples(tmp_path).read(0, N)
    adapted = BatchNormAdapter(two_blocks(), statistics.read(0, N)[0]).adapted(MIXED)
    assert y is not None
    expected = score_labelled(run_batches(open_session(adapted, MIXED), x), y, where="")
    assert (scores.loss == expected.loss).all()
    assert master.read_bytes() == before


def test_a_network_with_a_fixed_batch_size() -> None:
    text = 'net (float[4, 2] x, float[2, 3] "fc.weight") => (float[4, 3] logits) { logits = MatMul (x, "fc.weight") }'
    session = open_session(build(text, [layer("fc", "MatMul", activation="signed")]), WidthAssignment(default=8))
    x = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    assert run_batches(session, x).shape == (7, 3)
    assert (run_batches(session, x)[4:] == run_batches(session, x[4:])).all()


def test_outputs_that_are_no_class_scores() -> None:
    text = 'net (float[n, 5, 2] x, float[2, 3] "fc.weight") => (float[n, 5, 3] y) { y = MatMul (x, "fc.weight") }'
    session = open_session(build(text, [layer("fc", "MatMul", activation="signed")]), WidthAssignment(default=8))
    with pytest.raises(DataError, match="one row of class scores"):
        run_batches(session, np.zeros((3, 5, 2), np.float32))


def test_workers_of_a_cluster_are_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    fake = SimpleNamespace(Client=lambda: started.append("client"))
    monkeypatch.setitem(sys.modules, "distributed", fake)
    evaluate._connect.cache_clear()
    for _ in range(3):
        evaluate._connect("dask")
    evaluate._connect.cache_clear()
    assert started == ["client"]


_CLUSTERS = {
    "ray": """
import ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
""",
    "dask": """
import dask
from distributed import LocalCluster
cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
dask.config.set(scheduler_address=cluster.scheduler_address)  # as DASK_SCHEDULER_ADDRESS does
""",
}
_ON_A_CLUSTER = """
import sys
from pathlib import Path
from bitswitch_deploy.catalogue import bundled_master, sample_set
from bitswitch_deploy.master import read_master
from bitswitch_deploy.pipeline.inputs import load_samples
from bitswitch_deploy.search import evaluate
from bitswitch_deploy.search.evaluate import Evaluator, Workers
from bitswitch_deploy.search.samples import store_samples
from bitswitch_deploy.search.store import ScoreStore
from bitswitch_deploy.tensors import WidthAssignment
folder = Path(sys.argv[1])
pool = load_samples(read_master(bundled_master()), sample_set("digits").test, limit=None)
samples = store_samples(folder, pool.source.read(0, 300), pool.y[:300])
mixed = WidthAssignment(default=8, overrides=(("blocks.0.conv1", 2), ("blocks.2.conv2", 4)))
wanted = [mixed, *(WidthAssignment(default=bits) for bits in (8, 6, 4, 2))]
evaluate._TASKS_PER_PART = 1  # so five tasks go in three parts
backend = sys.argv[2]
for name, workers in (("serial", Workers()), (backend, Workers(jobs=2, backend=backend))):
    computed = []
    store = ScoreStore(folder=folder / name)
    found = Evaluator(bundled_master(), samples, store, workers=workers, computed=computed.append).measure(wanted)
    print(name, [each.mean_loss for each in found], sum(computed))
"""


@pytest.mark.parametrize(("backend", "module"), [("dask", "distributed"), ("ray", "ray")])
def test_two_workers_of_a_cluster_give_the_same_scores(tmp_path: Path, backend: str, module: str) -> None:
    pytest.importorskip(module, reason=f"extra `{backend}` is not installed")
    # in a process of its own: a cluster leaves threads and sockets behind that warn, and warnings are errors here
    root, patient = Path(__file__).parents[2], {**os.environ, "RAY_raylet_start_wait_time_s": "120"}
    command = [sys.executable, "-c", _CLUSTERS[backend] + _ON_A_CLUSTER, str(tmp_path), backend]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=patient)
    assert run.returncode == 0, run.stderr
    lines = dict(line.split(" ", 1) for line in run.stdout.splitlines() if line.startswith(("serial", f"{backend} ")))
    serial, on_cluster = lines["serial"], lines[backend]
    assert on_cluster == serial
    assert serial.endswith("] 1500")
    files = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).glob("??/*.npz")}
        for name in ("serial", backend)
    ]
    assert len(files[0]) == 5 * 2
    assert files[0] == files[1]


@pytest.mark.parametrize(("backend", "module"), [("dask", "distributed"), ("ray", "ray.util.joblib")])
def test_a_backend_that_is_not_installed_is_named(
    master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnavailableError, match=f"the backend {backend} needs .*, which is not installed"):
        evaluator(master, tmp_path, workers=Workers(jobs=2, backend=backend)).measure(UNIFORM)
