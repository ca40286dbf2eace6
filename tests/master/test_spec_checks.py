"""A spec that contradicts itself is refused; each rule once, and once through the reader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitswitch_deploy.errors import MasterError
from bitswitch_deploy.master import read_master
from bitswitch_deploy.master.spec import MasterSpec
from bitswitch_deploy.master.spec_checks import check_spec
from tests.master.files import changed, tiny_document, write_file
from tests.master.tiny import tiny_spec

INPUT = tiny_document()["inputs"][0]
ACCURACY = tiny_document()["accuracy"][0]

CONTRADICTIONS = [
    ("bits", 9, r"file: bits: 9\n  allowed: 2\.\.8"),
    ("bits", 1, r"file: bits: 1\n"),
    ("bits", 6, r"file: widths: \[8, 6, 4, \.\.\.\]"),
    ("widths", [], r"file: widths: \[\]\n  allowed: at least one width, highest first"),
    ("widths", [2, 4, 6, 8], "file: widths"),
    ("widths", [8, 4, 4, 2], "file: widths"),
    ("widths", [9, 8], "file: widths"),
    ("widths", [8, 1], "file: widths"),
    ("layers.1.name", "stem", r"file: layers: 'stem' 2 times\n  allowed: each name once"),
    ("layers.1.name", "", r"file: layers: ''\n  allowed: a name"),
    ("layers.1.name", "a\nb", r"file: layers: 'a\\nb'\n  allowed: a name"),
    ("layers.1.weight", "stem.weight", r"tensor names: 'stem\.weight' 2 times"),
    ("layers.1.weight", "skeleton", r"tensor names: 'skeleton' 2 times"),
    ("parameters.0", "__metadata__", r"tensor names: '__metadata__' 2 times"),
    ("parameters.0", "conv.weight.scale", r"'conv\.weight\.scale' 2 times"),
    ("parameters.0", "conv.input.scale", r"'conv\.input\.scale' 2 times"),
    ("parameters.0", "bn.var", r"'bn\.var' 2 times"),
    ("inputs.0.name", "fc.bias", r"'fc\.bias' 2 times"),
    ("inputs", [], "at least one input and one output"),
    ("outputs", [], "at least one input and one output"),
    ("provenance.0.0", "seed", r"file: provenance: 'seed' 2 times"),
    ("partners", [["bn.var", "conv"], ["bn.var", "conv"]], r"file: partners: 'bn\.var' 2 times"),
    ("partners", [["fc.bias", "conv"]], r"file: partners: 'fc\.bias'\n  allowed: names that switchable lists"),
    (
        "partners",
        [["bn.var", "stem"]],
        r"file: partners\[bn\.var\]: 'stem'\n  allowed: the name of a layer that is not",
    ),
    ("layers.0.activation", "unsigned", r"file: layer stem: pinned with unsigned activation"),
    ("layers.1.pinned", True, r"file: layer conv: pinned with unsigned activation"),
    ("inputs.0.dtype", "FLOAT", r"file: x: dtype: 'FLOAT'\n  allowed: an ONNX element type in lower case"),
    ("inputs.0.dtype", "undefined", r"file: x: dtype"),
    ("inputs.0.shape", ["n", 3, 8, 0], r"file: x: shape"),
    ("inputs.0.shape", ["", 3, 8, 8], r"file: x: shape"),
    ("outputs.0.shape", [-1, 10], r"file: logits: shape"),
    (
        "preprocessing.colour",
        "L",
        r"preprocessing: 3 means and 3 standard deviations\n  allowed: 1 of each for colour L",
    ),
    ("preprocessing.mean", [0.5], "1 means and 3 standard deviations"),
    ("preprocessing.std", [0.5, 0.5], "3 means and 2 standard deviations"),
    ("preprocessing.size", [0, 8], "height and width of at least 1"),
    ("preprocessing.divide_by", 0, r"preprocessing: divide_by 0\.0, .*\n  allowed: positive numbers"),
    ("preprocessing.std", [0.5, 0.0, 0.5], "positive numbers"),
    ("preprocessing.std", [0.5, 1e-50, 0.5], "positive numbers"),
    ("preprocessing.std", [0.5, 1e-39, 0.5], "finite inputs in float32"),
    ("preprocessing.std", [0.5, 1e300, 0.5], "positive numbers"),
    ("preprocessing.divide_by", 1e-50, "positive numbers"),
    ("preprocessing.divide_by", 1e-40, "finite inputs"),
    ("preprocessing.divide_by", 1e300, "positive numbers"),
    ("preprocessing.mean", [0.5, 1e300, 0.5], "finite inputs"),
    (
        "preprocessing.size",
        [8, 9],
        r"preprocessing: images \[3, 8, 9\] for the input x of shape \['n', 3, 8, \.\.\.\]\n  allowed: images of",
    ),
    ("preprocessing.size", [9, 8], r"images \[3, 9, 8\] for the input x"),
    ("inputs.0.shape", ["n", 4, 8, 8], r"images \[3, 8, 8\] for the input x"),
    ("accuracy.0.bits", 9, r"file: accuracy\[0\]: bits: 9\n  allowed: 2\.\.8"),
    ("accuracy.3.bits", 1, r"file: accuracy\[3\]: bits: 1"),
    ("accuracy.0.value", 100.5, r"accuracy\[0\]: value: 100\.5\n  allowed: percent"),
    ("accuracy.0.value", -1, r"accuracy\[0\]: value"),
    ("accuracy.0.n", 0, r"accuracy\[0\]: n: 0"),
    ("accuracy.0.dataset_sha256", "0" * 63, "64 hexadecimal digits"),
    ("accuracy.0.dataset_sha256", "A" * 64, "64 hexadecimal digits"),
]


def test_the_tiny_spec_is_consistent() -> None:
    check_spec(tiny_spec(), "file")


@pytest.mark.parametrize(("path", "value", "message"), CONTRADICTIONS)
def test_contradictions_are_refused(path: str, value: object, message: str, tmp_path: Path) -> None:
    document = changed(tiny_document(), path, value)
    with pytest.raises(MasterError, match=message):
        check_spec(MasterSpec.from_json(json.dumps(document)), "file")
    stored = write_file(tmp_path / "bad.safetensors", document=document)
    with pytest.raises(MasterError, match=message.replace("file", r".*bad\.safetensors")):
        read_master(stored)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("widths", [8]),
        ("widths", [7, 3]),
        ("widths", [2]),
        ("accuracy", [{**ACCURACY, "bits": 5, "value": 0, "n": 1}, {**ACCURACY, "value": 100}]),
        ("preprocessing", None),
        ("layers.1.activation", "none"),
        ("layers", []),
        ("inputs.0.shape", []),
        ("inputs.0.shape", ["n", 3, "height", "width"]),
        ("inputs.0.shape", ["n", 192]),
        ("inputs", [{**INPUT, "shape": ["n", 4, 8, 8]}, {**INPUT, "name": "mask"}]),
    ],
)
def test_unusual_specs_are_consistent(path: str, value: object) -> None:
    check_spec(MasterSpec.from_json(json.dumps(changed(tiny_document(), path, value))), "file")
