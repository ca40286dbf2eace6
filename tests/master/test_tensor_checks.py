"""Tensors that do not fit the spec, or hold unusable values, are refused through the reader."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.errors import MasterError
from bitswitch_deploy.master import read_master
from bitswitch_deploy.master.tensor_checks import check_tensors
from tests.master.files import changed, tiny_document, write_file
from tests.master.tiny import Array, tiny_spec, tiny_tensors

SMALLEST = 2.0**-126
LARGEST = (2 - 2.0**-23) * 2.0**119


def refused(tmp_path: Path, message: str, tensors: dict[str, Array], document: dict[str, object] | None = None) -> None:
    stored = write_file(tmp_path / "bad.safetensors", tensors=tensors, document=document)
    with pytest.raises(MasterError, match=message):
        read_master(stored)


@pytest.mark.parametrize("name", list(tiny_tensors()))
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    tensors = tiny_tensors()
    del tensors[name]
    refused(tmp_path, rf"bad\.safetensors: tensors: none named '{name}'\n", tensors)


def test_several_missing_tensors_are_listed_shortly(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in tiny_tensors().items() if name.startswith("fc")}
    refused(tmp_path, r"none named 'stem\.weight', .* and 4 more\n", tensors)


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    refused(tmp_path, r"tensors: unknown: 'spy'\n", {**tiny_tensors(), "spy": np.ones(3, np.float32)})


def test_a_pinned_layer_has_no_scale(tmp_path: Path) -> None:
    refused(tmp_path, r"unknown: 'fc\.weight\.scale'", {**tiny_tensors(), "fc.weight.scale": np.ones((), np.float32)})


@pytest.mark.parametrize("lowest", [-1.0, -1e-5])
def test_a_batch_normalization_with_a_negative_variance_is_refused(lowest: float, tmp_path: Path) -> None:
    tensors = tiny_tensors()
    tensors["bn.var"] = np.full_like(tensors["bn.var"], 0.5)
    tensors["bn.var"].flat[-1] = lowest
    refused(tmp_path, rf"tensor bn\.var: a running variance of {lowest:g}\n  allowed: above -1e-05", tensors)


@pytest.mark.parametrize("name", list(tiny_tensors()))
def test_another_dtype_is_refused(name: str, tmp_path: Path) -> None:
    tensors = tiny_tensors()
    tensors[name] = tensors[name].astype(np.float32 if name == "conv.weight" else np.int8)
    refused(tmp_path, rf"tensor {name}: (float32|int8) of shape .*\n  allowed: (int8|float32) of shape", tensors)


@pytest.mark.parametrize("name", list(tiny_tensors()))
def test_another_shape_is_refused(name: str, tmp_path: Path) -> None:
    tensors = tiny_tensors()
    tensors[name] = tensors[name][..., :-1]
    refused(tmp_path, rf"tensor {name}: .* of shape \[.*\]\n  allowed: .* of shape \[", tensors)
    tensors[name] = tiny_tensors()[name].reshape(-1, 1)
    refused(tmp_path, rf"tensor {name}: .* of shape \[\d+, 1\]\n", tensors)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [name for name in tiny_tensors() if name != "conv.weight"])
def test_values_that_are_not_finite_are_refused(name: str, value: float, tmp_path: Path) -> None:
    tensors = tiny_tensors()
    tensors[name].reshape(-1)[-1] = value
    refused(tmp_path, rf"tensor {name}: (a value that is NaN or infinite|scales)", tensors)


@pytest.mark.parametrize(
    "value",
    [0.0, -0.0, -1.0, 1e-40, np.nextafter(np.float32(SMALLEST), np.float32(0)), np.float32(LARGEST) * 1.0001],
)
@pytest.mark.parametrize("name", ["conv.weight.scale", "conv.input.scale"])
def test_unusable_scales_are_refused(name: str, value: float, tmp_path: Path) -> None:
    tensors = tiny_tensors()
    tensors[name][1] = value
    refused(
        tmp_path, rf"tensor {name}: scales .*\n  allowed: positive numbers from 1\.17549e-38 to 1\.32923e\+36", tensors
    )


@pytest.mark.parametrize("value", [SMALLEST, LARGEST])
def test_the_extreme_scales_are_taken(value: float, tmp_path: Path) -> None:
    tensors = tiny_tensors()
    tensors["conv.weight.scale"][1] = value
    tensors["conv.input.scale"][1] = value
    master = read_master(write_file(tmp_path / "good.safetensors", tensors=tensors))
    assert master.tensors["conv.weight.scale"][1] == value
    assert np.isfinite(np.float32(value) * np.float32(255))


@pytest.mark.parametrize(("bits", "low", "high"), [(6, -32, 31), (4, -8, 7), (2, -2, 1)])
def test_codes_beyond_the_width_are_refused(bits: int, low: int, high: int, tmp_path: Path) -> None:
    document = changed(changed(tiny_document(), "bits", bits), "widths", [bits])
    document["accuracy"] = []
    tensors = tiny_tensors()
    for name in ("bn.weight", "bn.bias", "bn.mean", "bn.var", "conv.input.scale"):
        tensors[name] = tensors[name][:1]
    codes = tensors["conv.weight"]
    codes[:] = low
    codes[0, 0] = high
    read_master(write_file(tmp_path / "good.safetensors", tensors=tensors, document=document))
    for beyond in (low - 1, high + 1):
        codes[-1, -1, -1, -1] = beyond
        refused(
            tmp_path, rf"tensor conv\.weight: codes .*\n  allowed: {low}\.\.{high} \({bits} bits\)", tensors, document
        )


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [
        ({"kind": "per_tensor"}, ()),
        ({"kind": "per_channel", "axis": 3}, (3,)),
        ({"kind": "per_block", "axis": 1, "block_size": 3}, (6, 2, 3, 3)),
        ({"kind": "per_block", "axis": 1, "block_size": 2**62}, (6, 1, 3, 3)),
    ],
)
def test_every_granularity_has_its_scale_shape(
    granularity: dict[str, object], shape: tuple[int, ...], tmp_path: Path
) -> None:
    document = changed(tiny_document(), "layers.1.granularity", granularity)
    tensors = {**tiny_tensors(), "conv.weight.scale": np.ones(shape, np.float32)}
    assert read_master(write_file(tmp_path / "good.safetensors", tensors=tensors, document=document))
    tensors["conv.weight.scale"] = np.ones((*shape, 1), np.float32)
    refused(tmp_path, r"tensor conv\.weight\.scale: float32 of shape", tensors, document)


def test_an_axis_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    document = changed(tiny_document(), "layers.1.granularity.axis", 4)
    refused(tmp_path, r"layer conv: granularity: axis 4 does not exist in a tensor of shape", tiny_tensors(), document)


def test_checks_allocate_no_masks() -> None:
    shape = (64, 64, 64, 64)
    codes, floats = np.zeros(shape, np.int8), np.zeros(shape, np.float32)
    spec = tiny_spec()
    tensors = {**tiny_tensors(), "conv.weight": codes, "stem.weight": floats}
    tensors["conv.weight.scale"] = np.ones(64, np.float32)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    shapes.update({name: tensors[name].shape[1:] for name in spec.switchable})
    tracemalloc.start()
    try:
        check_tensors(tensors, spec, shapes, "file")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**18
