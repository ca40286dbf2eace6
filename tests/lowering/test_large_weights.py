"""Every target makes of a large graph what it makes of a small one."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from bitswitch_deploy.catalogue import load_target
from bitswitch_deploy.graph import large_tensors
from bitswitch_deploy.graph.external_data import runnable
from bitswitch_deploy.master import Master
from bitswitch_deploy.target import Target
from tests.graph.masters import BATCH_NORM, build, layer, per_channel
from tests.lowering.lowered import lowered, profile

TEXT = """
net (float[n, 3, 8, 8] x, float[16, 3, 3, 3] "a.weight", float[16] "bn.gamma", float[16] "bn.beta",
     float[16] "bn.mean", float[16] "bn.var", float[16, 16, 3, 3] "b.weight", float[16] "b.bias",
     float[1024, 24] "c.weight", float[24, 48] "d.weight") => (float[n, 48] y) {
    a = Conv (x, "a.weight")
    normal = BatchNormalization (a, "bn.gamma", "bn.beta", "bn.mean", "bn.var")
    rectified = Relu (normal)
    b = Conv <pads: ints = [2, 2, 2, 2]> (rectified, "b.weight", "b.bias")
    again = Relu (b)
    flat = Flatten (again)
    c = MatMul (flat, "c.weight")
    y = MatMul (c, "d.weight")
}"""
INT2 = {"MatMul": {8: "int8", 4: "int4", 2: "int2"}, "Conv": "int8", "ConvTranspose": "int8", "Gemm": "int8"}
TARGETS: dict[str, Target] = {
    name: load_target(name).target
    for name in ("x86-cpu", "arm64-cpu", "jetson", "jetson-xavier-nx@4.6", "jetson-thor", "rtx")
}
TARGETS["int2"] = profile(
    "x86-cpu",
    {
        "stack.ir_version": 13,
        "stack.opset": 25,
        "quantization.weight_containers": INT2,
        "lowering": ["FoldBatchNorm", "QuantizeBias", "PackWeights", "SetOpset"],
    },
)


@pytest.fixture(scope="module")
def master() -> Master:
    layers = (
        layer("a", "Conv", per_channel(0)),
        layer("b", "Conv"),
        layer("c", "MatMul", per_channel(1), "signed"),
        layer("d", "MatMul", activation="none"),
    )
    gamma: Any = [[0.5 - 0.1 * channel for channel in range(16)]] * 4
    switchable = tuple(f"bn.{name}" for name in BATCH_NORM)
    return build(TEXT, layers, switchable=switchable, tensors={"bn.gamma": gamma})


@pytest.mark.parametrize("bits", [8, 5, 4, 2])
@pytest.mark.parametrize("target", TARGETS)
def test_with_its_data_it_is_the_same_model(
    target: str, bits: int, master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, small = lowered(master, bits, TARGETS[target])
    monkeypatch.setattr(large_tensors, "EMBEDDED_LIMIT_BYTES", 0)
    monkeypatch.setattr(large_tensors, "_CHUNK", 64)
    _, large = lowered(master, bits, TARGETS[target])
    packed = target in ("x86-cpu", "arm64-cpu") and bits <= 4
    assert {"b.weight", "c.weight", "d.weight.blocks" if packed else "d.weight"} <= set(large.large)
    assert (large.passes, large.changes) == (small.passes, small.changes)
    with runnable(large.model, large.large) as source:
        loaded = onnx.load(str(source))
        for tensor in large.large.values():
            assert tensor.size_bytes == sum(chunk.nbytes for chunk in tensor.chunks())
    for entry in loaded.graph.initializer:
        entry.ClearField("data_location")
    assert loaded == small.model
