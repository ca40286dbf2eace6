"""The summary of the tiny master, by hand."""

from __future__ import annotations

import json
from dataclasses import asdict

from bitswitch_deploy.master import describe_master
from bitswitch_deploy.master.summary import LayerSummary
from bitswitch_deploy.tensors import PER_TENSOR, Granularity, Rounding
from tests.graph.masters import build, layer
from tests.master.tiny import tiny_master, tiny_skeleton, tiny_spec, tiny_tensors


def test_counts_and_sizes() -> None:
    summary = describe_master(tiny_master())
    weights = {"stem": 4 * 3 * 9, "conv": 6 * 4 * 9, "fc": 10 * 6}
    assert summary.n_quantized == weights["conv"]
    assert summary.n_parameters == sum(weights.values()) + 4 * 4 + 6 + 10
    assert summary.code_size_bytes == weights["conv"]
    assert summary.scale_size_bytes == 4 * (6 + 4)
    assert summary.float_size_bytes == 4 * (weights["stem"] + weights["fc"] + 4 * 4 * 4 + 6 + 10)
    assert summary.skeleton_size_bytes == len(tiny_skeleton().SerializeToString())
    pinned = 4 * (weights["stem"] + weights["fc"])
    assert [(width.bits, width.weight_size_bytes) for width in summary.widths] == [
        (8, pinned + 216),
        (6, pinned + 162),
        (4, pinned + 108),
        (2, pinned + 54),
    ]


def test_codes_that_fill_no_whole_bytes() -> None:
    text = 'g (float[n, 1] x, float[1, 3] "a.weight") => (float[n, 3] y) { y = MatMul (x, "a.weight") }'
    summary = describe_master(build(text, (layer("a", "MatMul"),)))
    assert [(width.bits, width.weight_size_bytes) for width in summary.widths] == [(8, 3), (6, 3), (4, 2), (2, 1)]


def test_facts_of_the_spec() -> None:
    spec, summary = tiny_spec(), describe_master(tiny_master())
    assert summary.sha256 == tiny_master().sha256
    assert (summary.bits, summary.rounding, summary.activation_container) == (8, Rounding.HALF_UP, "uint8")
    assert summary.opset == 21
    assert summary.inputs == spec.inputs
    assert summary.outputs == spec.outputs
    assert summary.preprocessing == spec.preprocessing
    assert summary.accuracy == spec.accuracy
    assert summary.provenance == spec.provenance
    assert [[entry.value for entry in width.accuracy] for width in summary.widths] == [[98.0], [96.0], [94.0], [92.0]]


def test_layers() -> None:
    stem, conv, fc = describe_master(tiny_master()).layers
    codes = tiny_tensors()["conv.weight"]
    assert conv == LayerSummary(
        name="conv",
        operator="Conv",
        weight_shape=(6, 4, 3, 3),
        n_weights=216,
        n_scales=6,
        granularity=Granularity(kind="per_channel", axis=0),
        activation="unsigned",
        pinned=False,
        code_min=min(codes.flat),
        code_max=max(codes.flat),
    )
    assert (stem.name, stem.pinned, stem.code_min, stem.code_max, stem.n_scales) == ("stem", True, None, None, 0)
    assert (fc.operator, fc.weight_shape, fc.granularity) == ("Gemm", (10, 6), PER_TENSOR)


def test_it_becomes_json() -> None:
    document = json.loads(json.dumps(asdict(describe_master(tiny_master()))))
    assert document["rounding"] == "half_up"
    assert document["layers"][1]["granularity"] == {"kind": "per_channel", "axis": 0, "block_size": None}
    assert document["layers"][1]["weight_shape"] == [6, 4, 3, 3]
