"""The bundled master was written by the recipe of its name and is as accurate as it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.master import Master, read_master
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.batches import preprocess
from bitswitch_deploy.training.datasets import ImageSet, load_npz_dataset
from bitswitch_deploy.training.recipe import load_recipe

ort = pytest.importorskip("onnxruntime")

FOLDER = Path(__file__).resolve().parents[2] / "calibration" / "digits"


@pytest.fixture(scope="module")
def master() -> Master:
    return read_master(FOLDER / "digits.safetensors")


@pytest.fixture(scope="module")
def held_out() -> ImageSet:
    return load_npz_dataset(FOLDER).test


def test_is_of_the_recipe(master: Master, held_out: ImageSet) -> None:
    recipe = load_recipe("digits")
    options = recipe.quantization
    assert master.spec.widths == options.widths
    assert (master.spec.rounding, master.spec.activation_container) == (options.rounding, options.activation_container)
    assert master.spec.preprocessing == recipe.preprocessing
    assert dict(master.spec.provenance)["seed"] == str(recipe.seed)
    assert {entry.dataset_sha256 for entry in master.spec.accuracy} == {held_out.sha256}


@pytest.mark.parametrize(("bits", "points_lost"), [(8, 0.5), (6, 0.5), (4, 1.0), (2, 3.0)])
def test_loses_no_more_than_promised(master: Master, bits: int, points_lost: float) -> None:
    measured = next(entry.value for entry in master.spec.accuracy if entry.bits == bits)
    assert measured >= float(dict(master.spec.provenance)["float_top1"]) - points_lost


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_the_canonical_graph_has_the_accuracy_that_training_measured(
    master: Master, held_out: ImageSet, bits: int
) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    model = canonical_graph(master, WidthAssignment(default=bits)).model.SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    assert master.spec.preprocessing is not None
    inputs = preprocess(held_out.images, master.spec.preprocessing).numpy()
    predicted = session.run(None, {"input": inputs})[0].argmax(1)
    measured = next(entry.value for entry in master.spec.accuracy if entry.bits == bits)
    # two float implementations may disagree on a rounding tie: at most one image of 600
    assert 100 * np.mean(predicted == held_out.labels) == pytest.approx(measured, abs=100 / 600 + 1e-9)
