"""The spec to text and back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bitswitch_deploy.errors import MasterError
from bitswitch_deploy.master.spec import MasterSpec
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.tensors import Rounding
from tests.master.files import REMOVE, changed, tiny_document
from tests.master.tiny import tiny_spec


def test_the_text_gives_the_spec_back() -> None:
    spec = tiny_spec()
    assert MasterSpec.from_json(spec.to_json()) == spec
    other = replace(spec, preprocessing=None, rounding=Rounding.HALF_EVEN, accuracy=(), provenance=())
    assert MasterSpec.from_json(other.to_json()) == other
    paired = replace(spec, partners=(("bn.var", "conv"), ("bn.mean", "conv")))
    assert MasterSpec.from_json(paired.to_json()) == paired


def test_a_spec_without_partners_has_the_text_of_older_files() -> None:
    assert "partners" not in tiny_spec().to_json()
    assert json.loads(replace(tiny_spec(), partners=()).to_json())["partners"] == []


def test_the_text_has_the_names_of_the_fields_and_format_and_version() -> None:
    document = json.loads(tiny_spec().to_json())
    assert list(document)[:4] == ["format", "version", "bits", "widths"]
    assert (document["format"], document["version"]) == ("bitswitch-master", 1)
    assert document["layers"][1] == {
        "name": "conv",
        "operator": "Conv",
        "weight": "conv.weight",
        "granularity": {"kind": "per_channel", "axis": 0, "block_size": None},
        "activation": "unsigned",
        "pinned": False,
    }


def test_whole_numbers_in_float_fields_give_the_same_text() -> None:
    whole = Preprocessing(colour="L", size=(4, 4), divide_by=255, mean=(0,), std=(1,))
    real = Preprocessing(colour="L", size=(4, 4), divide_by=255.0, mean=(0.0,), std=(1.0,))
    texts = {replace(tiny_spec(), preprocessing=steps).to_json() for steps in (whole, real)}
    assert len(texts) == 1


def test_a_spec_of_wrong_types_is_not_written() -> None:
    with pytest.raises(MasterError, match=r"spec: bits: '8'\n  allowed: a whole number"):
        replace(tiny_spec(), bits="8").to_json()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "other", r"file: format: 'other'\n  allowed: bitswitch-master"),
        ("format", REMOVE, r"file: format: None"),
        ("version", 2, r"file: version: 2\n  allowed: 1 \(the only version that this release reads\)\n  do: install"),
        ("version", 0, r"file: version: 0"),
        ("version", True, r"file: version: True"),
        ("version", 1.0, r"file: version: 1\.0"),
        ("version", REMOVE, r"file: version: None"),
        ("colour", 1, r"file: unknown key: 'colour'"),
        ("bits", REMOVE, r"file: no key bits"),
        ("widths", 8, r"file: widths: 8\n  allowed: a list"),
        (
            "layers.1.operator",
            "LSTM",
            r"file: layers\[1\]\.operator: 'LSTM'\n  allowed: Conv, ConvTranspose, Gemm, MatMul",
        ),
        ("layers.1.granularity.kind", "per_tensor", r"layers\[1\]\.granularity: per_tensor does not go with axis=0"),
        ("layers.1.granularity.axis", -1, r"axis must not be negative"),
        ("preprocessing.size", [8], r"file: preprocessing\.size: \[8\]\n  allowed: a list of 2"),
        ("provenance.0", ["recipe"], r"file: provenance\[0\]"),
    ],
)
def test_a_wrong_spec_is_refused_with_its_place(path: str, value: object, message: str) -> None:
    text = json.dumps(changed(tiny_document(), path, value))
    with pytest.raises(MasterError, match=message):
        MasterSpec.from_json(text, source="file")


def test_fields_with_defaults_may_be_left_out() -> None:
    document = changed(tiny_document(), "layers.1.pinned", REMOVE)
    document = changed(document, "layers.1.granularity.block_size", REMOVE)
    assert MasterSpec.from_json(json.dumps(document)) == tiny_spec()
