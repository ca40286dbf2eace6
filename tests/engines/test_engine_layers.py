"""Layers of engines, in the words of three releases; the JSON is of the form in the vendor's documentation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bitswitch_deploy.engines.engine_layers import EngineLayer, layers_of_json, layers_of_log
from bitswitch_deploy.errors import GraphError

INT8 = "Thirty-two wide channel vectorized row major Int8 format"
OLD = {
    "Name": "w_dq + conv + relu",
    "LayerType": "CaskConvolution",
    "Inputs": [{"Name": "x", "Dimensions": [1, 3, 8, 8], "Format/Datatype": INT8}],
    "Outputs": [{"Name": "y", "Dimensions": [1, 4, 6, 6], "Format/Datatype": "Row major linear FP16 format"}],
    "Weights": {"Type": "Int8", "Count": 108},
}
NEW = {
    "Name": "conv_myl0_2",
    "LayerType": "kgen",
    "Inputs": [{"Name": "x", "Datatype": "Half", "Format": "Row major linear"}],
    "Constants": [{"Name": "c", "Datatype": "BFloat16"}, {"Name": "d", "Datatype": "FP8"}],
    "Outputs": [{"Name": "y", "Datatype": "Float"}, {"Name": "n", "Datatype": "Int32"}],
    "Metadata": "[ONNX Layer: blocks.0/conv]\x1f[ONNX Layer: relu]\x1f[ONNX Layer: relu]",
}
# of TensorRT for RTX 1.7.1, shortened
LOG = """Layers:
Name: __mye990_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: 
Name: node_Conv_119_myl0_4, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [-1,16,8,8], Strides: [1024,1,128,16], Datatype: Int8, Format: (NHWC) Channel major format }], Constants: [ { Name: w, Dimensions: [16,16,3,3], Datatype: Int8, Format: (NHWC) Channel major format }, { Name: s, Dimensions: [1,16,1,1], Datatype: Float, Format: (Linear) }], Outputs: [ { Name: y, Dimensions: [-1,16,8,8], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: __myelin, StreamId: 0, Metadata: [ONNX Layer: node_Conv_119][ONNX Layer: conv1.weight/DequantizeLinear]

I/O Tensors:
 Name: input, IOMode: Input, DataType: Float, Dimensions: [-1,1,8,8]"""  # noqa: E501 - as the builder writes it


def layers(*entries: Any) -> tuple[EngineLayer, ...]:
    return layers_of_json(json.dumps({"Layers": entries, "Bindings": ["x"]}), where="engine")


def test_names_are_the_nodes_where_there_is_no_metadata() -> None:
    (layer,) = layers(OLD)
    assert layer == EngineLayer(
        name="w_dq + conv + relu",
        kind="CaskConvolution",
        nodes=("w_dq", "conv", "relu"),
        inputs=("int8",),
        outputs=("fp16",),
        weights=("int8",),
    )


def test_two_convolutions_of_one_tensor_in_one_kernel_are_both_named() -> None:
    (layer,) = layers(OLD | {"Name": "conv + relu || shortcut"})
    assert layer.nodes == ("conv", "relu", "shortcut")


def test_metadata_name_the_nodes_once() -> None:
    (layer,) = layers(NEW)
    assert layer.nodes == ("blocks.0/conv", "relu")
    assert (layer.inputs, layer.weights, layer.outputs) == (("fp16",), ("bf16", "fp8"), ("fp32", "other"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not JSON", "engine: Expecting value"),
        ("{}", "engine: no list Layers"),
        ('{"Layers": ["conv + relu"]}', "engine: layers without details"),
    ],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        layers_of_json(text, where="engine")


def test_the_builder_of_rtx_lists_layers_in_its_log() -> None:
    first, conv = layers_of_log(["Graph optimization time", "Layers:\nan older list", LOG])
    assert first == EngineLayer(
        name="__mye990_0_myl0_0", kind="shape_call", nodes=("__mye990_0_myl0_0",), inputs=(), outputs=()
    )
    assert conv == EngineLayer(
        name="node_Conv_119_myl0_4",
        kind="correlation",
        nodes=("node_Conv_119", "conv1.weight/DequantizeLinear"),
        inputs=("int8",),
        outputs=("fp16",),
        weights=("int8", "fp32"),
    )
    assert layers_of_log(["nothing of this kind"]) == ()
