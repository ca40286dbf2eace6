"""What a graph says about itself comes back, and nothing else is believed."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.stamp import MadeFrom, read_stamp, stamp
from bitswitch_deploy.tensors import WidthAssignment

MIXED = WidthAssignment(default=8, overrides=(("layer1.0.conv1", 4), ("schräg\n\"'", 2)))
KEYS = ("bitswitch.master_sha256", "bitswitch.target", "bitswitch.widths")


def model() -> onnx.ModelProto:
    return onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> net (float[n] x) => (float[n] y) { y = Relu (x) }'
    )


def stamped(assignment: WidthAssignment = MIXED) -> onnx.ModelProto:
    return stamp(model(), MadeFrom(master_sha256="ab" * 32, target="rtx", assignment=assignment))


@pytest.mark.parametrize("assignment", [WidthAssignment(default=2), MIXED])
def test_round_trip(assignment: WidthAssignment) -> None:
    read = onnx.load_from_string(stamped(assignment).SerializeToString())
    assert read_stamp(read, where="w4.onnx") == MadeFrom(master_sha256="ab" * 32, target="rtx", assignment=assignment)
    onnx.checker.check_model(read)


def test_order_of_the_layers_does_not_matter() -> None:
    other = WidthAssignment(default=8, overrides=tuple(reversed(MIXED.overrides)))
    assert stamped(other).SerializeToString() == stamped().SerializeToString()
    assert read_stamp(stamped(other), where="w4.onnx").assignment == MIXED


def test_stamping_twice_keeps_the_last() -> None:
    again = stamp(stamped(), MadeFrom(master_sha256="cd" * 32, target="x86-cpu", assignment=MIXED))
    assert read_stamp(again, where="w4.onnx").target == "x86-cpu"
    assert sorted(entry.key for entry in again.metadata_props) == sorted(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_missing_entry(key: str) -> None:
    kept = {entry.key: entry.value for entry in stamped().metadata_props if entry.key != key}
    bad = model()
    onnx.helper.set_model_props(bad, kept)
    with pytest.raises(GraphError, match=rf"^w4\.onnx: no readable bitswitch\.\* metadata: KeyError\('{key}'\)"):
        read_stamp(bad, where="w4.onnx")


@pytest.mark.parametrize(
    "widths",
    [
        "",
        "4",
        "[]",
        "null",
        "{}",
        '{"default": 4}',
        '{"default": 4, "layers": []}',
        '{"default": 4, "layers": null}',
        '{"default": "4", "layers": {}}',
        '{"default": 9, "layers": {}}',
        '{"default": 1, "layers": {}}',
        '{"default": NaN, "layers": {}}',
        '{"default": true, "layers": {}}',
        '{"default": 4.5, "layers": {}}',
        '{"default": 4.0, "layers": {}}',
        '{"default": 4, "layers": {"a": 9}}',
        '{"default": 4, "layers": {"a": "4"}}',
        '{"default": 4, "layers": {"a": 2.5}}',
        "[" * 100_000,
        "9" * 10_000,
    ],
)
def test_widths_that_are_none(widths: str) -> None:
    bad = stamped()
    next(entry for entry in bad.metadata_props if entry.key == "bitswitch.widths").value = widths
    with pytest.raises(GraphError, match="no readable bitswitch"):
        read_stamp(bad, where="w4.onnx")
