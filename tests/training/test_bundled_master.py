"""The bundled masters were written by the recipes of their names and are as accurate as they say."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.master import Master, read_master
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.batches import preprocess
from bitswitch_deploy.training.datasets import ImageSet, load_cifar10, load_npz_dataset
from bitswitch_deploy.training.master_import import import_master
from bitswitch_deploy.training.networks import build_network
from bitswitch_deploy.training.prepare import prepare
from bitswitch_deploy.training.recipe import load_recipe

ort = pytest.importorskip("onnxruntime")

CALIBRATION = Path(__file__).resolve().parents[2] / "calibration"
FOLDER = CALIBRATION / "digits"
CIFAR = Path(os.environ.get("BITSWITCH_TEST_DATA", CALIBRATION.parents[1] / "shared" / "data")) / "cifar10"


@pytest.fixture(scope="module")
def master() -> Master:
    return read_master(FOLDER / "digits.safetensors")


@pytest.fixture(scope="module")
def held_out() -> ImageSet:
    return load_npz_dataset(FOLDER).test


# file -> recipe, and points that a width may have lost against the float network
OF_CIFAR = {
    "resnet20-8642": ("cifar10-resnet20-widened", {8: 0.3, 6: 0.3, 4: 0.8, 2: 5.0}),
    "resnet20-432": ("cifar10-resnet20-432", {4: 0.6, 3: 1.0, 2: 3.5}),
}
WIDTHS_OF_CIFAR = [(name, bits) for name, (_, lost) in OF_CIFAR.items() for bits in lost]


def cifar_master(name: str) -> Master:
    return read_master(CALIBRATION / "cifar10" / f"{name}.safetensors")


@pytest.fixture(scope="module")
def cifar_test() -> ImageSet:
    if not CIFAR.is_dir():
        pytest.skip(f"no CIFAR-10 in {CIFAR.parent}")
    return load_cifar10(CIFAR).test


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
    # two float implementations may disagree on a rounding tie: at most one image of 600
    assert canonical_top1(master, held_out, bits) == pytest.approx(recorded_top1(master, bits), abs=100 / 600 + 1e-9)


def canonical_top1(master: Master, data: ImageSet, bits: int) -> float:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    model = canonical_graph(master, WidthAssignment(default=bits)).model.SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    assert master.spec.preprocessing is not None
    inputs = preprocess(data.images, master.spec.preprocessing).numpy()
    predicted = np.concatenate(
        [session.run(None, {"input": part})[0].argmax(1) for part in np.array_split(inputs, -(-len(inputs) // 600))]
    )
    return float(100 * np.mean(predicted == data.labels))


def recorded_top1(master: Master, bits: int) -> float:
    return next(entry.value for entry in master.spec.accuracy if entry.bits == bits)


@pytest.mark.parametrize(
    ("file", "recipe"),
    [("digits/digits", "digits"), *((f"cifar10/{name}", recipe) for name, (recipe, _) in OF_CIFAR.items())],
)
def test_is_a_beginning_for_its_recipe(file: str, recipe: str) -> None:
    settings = load_recipe(recipe)
    example = (torch.zeros(2, settings.preprocessing.channels, *settings.preprocessing.size),)
    network = prepare(build_network(settings.network), example, settings.quantization, check_export=False)
    import_master(CALIBRATION / f"{file}.safetensors", network, example)


@pytest.mark.parametrize("name", OF_CIFAR)
def test_a_cifar_master_is_of_its_recipe(name: str) -> None:
    recipe_name, points_lost = OF_CIFAR[name]
    recipe, spec = load_recipe(recipe_name), cifar_master(name).spec
    options = recipe.quantization
    assert spec.widths == options.widths == tuple(points_lost)
    assert (spec.rounding, spec.activation_container) == (options.rounding, options.activation_container)
    assert spec.preprocessing == recipe.preprocessing
    assert dict(spec.provenance)["recipe"].endswith(recipe_name)


@pytest.mark.parametrize(("name", "bits"), WIDTHS_OF_CIFAR)
def test_a_cifar_master_loses_no_more_than_this(name: str, bits: int) -> None:
    master = cifar_master(name)
    float_top1 = float(dict(master.spec.provenance)["float_top1"])
    assert recorded_top1(master, bits) >= float_top1 - OF_CIFAR[name][1][bits]


@pytest.mark.parametrize(("name", "bits"), WIDTHS_OF_CIFAR)
def test_a_cifar_master_has_the_accuracy_that_training_measured(cifar_test: ImageSet, name: str, bits: int) -> None:
    master = cifar_master(name)
    assert cifar_test.sha256 == master.spec.accuracy[0].dataset_sha256
    # measured in an other order of sums: a few of the 10,000 images fall on the other side of a rounding tie
    assert canonical_top1(master, cifar_test, bits) == pytest.approx(recorded_top1(master, bits), abs=0.1)
