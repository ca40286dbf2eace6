from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.errors import CheckFailedError, DataError
from bitswitch_deploy.gate.evaluation import evaluate, library_versions
from bitswitch_deploy.preprocessing import Preprocessing
from tests.gate.networks import data_ref, evaluation, graph_ref


def test_rows_are_those_of_the_samples_in_order(tmp_path: Path) -> None:
    task = evaluation(tmp_path, 100)
    stored = np.load(task.data.path)
    expected = stored["x"].argmax(axis=1) == stored["y"]
    assert np.array_equal(evaluate(task, 0, 100)[:, 0], expected)
    assert np.array_equal(evaluate(task, 33, 70)[:, 0], expected[33:70])


def test_the_reference_is_run_beside_it(tmp_path: Path) -> None:
    task = evaluation(tmp_path, 10, metric="cosine", reference=graph_ref(-1.0))
    assert evaluate(task, 0, 10)[:, 0] == pytest.approx(-np.ones(10))


def test_outputs_that_are_not_finite_are_named_with_their_sample(tmp_path: Path) -> None:
    task = evaluation(tmp_path, 100, graph=graph_ref(1e38))
    x = np.ones((100, 3))
    x[77] = 1e3
    task = replace(task, data=data_ref(tmp_path / "other.npz", x, np.zeros(100, np.int64)))
    with pytest.raises(CheckFailedError, match=r"net w4 output: 3 of \d+ values are not finite, first in sample 77"):
        evaluate(task, 0, 100)


def test_data_that_changed_meanwhile_are_seen(tmp_path: Path) -> None:
    task = evaluation(tmp_path, 10)
    with pytest.raises(DataError, match="the data that the run began with, sha256 000000000000"):
        evaluate(replace(task, data=replace(task.data, sha256="0" * 64)), 0, 10)


def test_the_key_names_everything_that_outcomes_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = evaluation(tmp_path, 10)
    grey = Preprocessing(colour="L", size=(1, 3), divide_by=255.0, mean=(0.0,), std=(1.0,))
    keys = {
        replace(task, data=replace(task.data, preprocessing=grey)).key(),
        replace(task, data=replace(task.data, preprocessing=replace(grey, mean=(0.5,)))).key(),
        task.key(),
        replace(task, graph=graph_ref(2.0)).key(),
        replace(task, graph=replace(task.graph, optimisation="all")).key(),
        replace(task, graph=replace(task.graph, session_options=(("session.a", "1"),))).key(),
        replace(task, reference=graph_ref()).key(),
        replace(task, metric="recall").key(),
        replace(task, data=replace(task.data, sha256="1" * 64)).key(),
    }
    assert len(keys) == 9
    elsewhere = replace(task, label="other", data=replace(task.data, path=tmp_path / "moved.npz"))
    assert elsewhere.key() == task.key()
    with monkeypatch.context() as patch:
        patch.setattr("bitswitch_deploy.gate.evaluation.host_text", lambda: "another processor")
        assert task.key() not in keys
    assert {"numpy", "pillow"} <= dict(library_versions()).keys()
    real = metadata.version
    for name in ("numpy", "pillow"):  # another one may resize an image otherwise
        with monkeypatch.context() as patch:
            patch.setattr(metadata, "version", lambda each, name=name: "0.0.1" if each == name else real(each))
            assert task.key() not in keys
