"""The index of shared weights: what is written is read back, what contradicts itself is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bitswitch_deploy.errors import PackageError
from bitswitch_deploy.package.weights_index import Factors, Packed, SharedGraph, StoredTensor, WeightsIndex
from bitswitch_deploy.quantization import BlockPacking
from bitswitch_deploy.tensors import Rounding

TENSORS = (
    StoredTensor(name="a.weight", dtype="int8", shape=(3, 2), offset=0),
    StoredTensor(name="b.weight", dtype="float32", shape=(5,), offset=64),
)
FACTORS = (Factors(tensors=(0,), shape=(3, 1), offset=128),)
PACKED = (Packed(tensors=(0,), packing=BlockPacking(bits=4, block_size=16, transposes=True)),)
INDEX = WeightsIndex(
    file="net.weights",
    bits=8,
    rounding=Rounding.HALF_EVEN,
    tensors=TENSORS,
    graphs=(SharedGraph(path="net-w4.onnx", derivation_bytes=12, bits=(4, 8), factors=FACTORS, packed=PACKED),),
)


def test_what_is_written_is_read_back() -> None:
    assert WeightsIndex.from_json(INDEX.to_json(), where="net.weights.json") == INDEX


def test_sizes_follow_from_type_and_shape() -> None:
    assert [each.size_bytes for each in (*TENSORS, *FACTORS)] == [6, 20, 3]
    assert INDEX.end_bytes == 131


def test_a_graph_is_found_by_its_path() -> None:
    assert INDEX.graph("net-w4.onnx") == INDEX.graphs[0]
    assert INDEX.graph("net-w2.onnx") is None


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        (("graphs", 0), "bits", [4], "net-w4.onnx needs a width of 0 or 2..8 for each tensor"),
        (("graphs", 0), "bits", [9, 8], "net-w4.onnx needs a width of 0 or 2..8 for each tensor"),
        (("graphs", 0), "bits", [1, 8], "net-w4.onnx needs a width of 0 or 2..8 for each tensor"),
        (("graphs", 0, "factors", 0), "shape", [2, 1], r"net-w4.onnx has factors \(2, 1\) for a.weight \(3, 2\)"),
        (("graphs", 0, "factors", 0), "shape", [1, 3, 2], r"factors \(1, 3, 2\) for a.weight"),
        (("graphs", 0, "factors", 0), "tensors", [0, 1], "has factors .* for b.weight"),
        (("graphs", 0), "derivation_bytes", -1, "net-w4.onnx has a derivation of -1 bytes"),
        (("graphs", 0, "factors", 0), "tensors", [2], "net-w4.onnx has factors of a tensor that is not in the index"),
        (("graphs", 0, "factors", 0), "tensors", [0, 0], "net-w4.onnx has factors of one tensor twice"),
        (("graphs", 0, "factors", 0), "offset", -4, "a tensor with a negative offset or size"),
        (("graphs", 0, "packed", 0), "tensors", [2], "net-w4.onnx packs a tensor that is not in the index"),
        (("graphs", 0, "packed", 0), "tensors", [0, 0], "net-w4.onnx packs one tensor twice"),
        (("graphs", 0, "packed", 0), "tensors", [1], r"net-w4.onnx packs b.weight \(5,\) of 8 bits"),
        (("graphs", 0, "packed", 0, "packing"), "bits", 3, "net-w4.onnx packs 3 bits in blocks of 16"),
        (("graphs", 0, "packed", 0, "packing"), "bits", 2, r"net-w4.onnx packs a.weight \(3, 2\) of 4 bits"),
        (("graphs", 0, "packed", 0, "packing"), "block_size", 0, "net-w4.onnx packs 4 bits in blocks of 0"),
        (("tensors", 1), "offset", 65, "a tensor that does not begin at a multiple of 64 bytes"),
        (("tensors", 0), "offset", -1, "a tensor with a negative offset or size"),
        (("tensors", 0), "dtype", "int4", "int8, float32"),
        ((), "schema", "bitswitch-weights/3", "bitswitch-weights/4"),
        ((), "bits", 2**40, "a master of 1099511627776 bits"),
        ((), "surprise", 1, "unknown key"),
    ],
)
def test_contradictions_are_refused(place: tuple[Any, ...], key: str, value: object, message: str) -> None:
    document = json.loads(INDEX.to_json())
    inner = document
    for step in place:
        inner = inner[step]
    inner[key] = value
    with pytest.raises(PackageError, match=message):
        WeightsIndex.from_json(json.dumps(document), where="net.weights.json")
