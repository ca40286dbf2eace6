"""Shared weights on other kinds of networks: attention, groups, transposed convolutions, depthwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitswitch_deploy.tensors import WidthAssignment
from tests.graph.optimised import optimised
from tests.lowering.test_share_weights import Weights, lowered, share
from tests.networks.zoo import ZOO, make


@pytest.mark.parametrize("name", ["vit-explicit", "excite", "decoder-groups", "grouped", "mlp", "vit-weight-only"])
def test_onnxruntime_makes_the_same_graph_of_both_forms(name: str, tmp_path: Path) -> None:
    master = make(ZOO[name]).master
    quantized = {layer.weight for layer in master.spec.layers if not layer.pinned}
    for bits in (8, 3):
        folder = tmp_path / str(bits)
        folder.mkdir()
        canonical, model = lowered(master, WidthAssignment(default=bits))
        (folder / "own.onnx").write_bytes(model.SerializeToString())
        shared = share(master, canonical, model, Weights(folder))
        (folder / "shared.onnx").write_bytes(shared.data)
        # what MatMulNBits reads, no graph derives from the master
        packed = {node.input[1].removesuffix(".blocks") for node in model.graph.node if node.op_type == "MatMulNBits"}
        assert bool(packed) == (name == "vit-weight-only" and bits == 3)
        assert quantized - packed <= shared.tensors.keys()
        assert optimised(folder / "shared.onnx") == optimised(folder / "own.onnx")
