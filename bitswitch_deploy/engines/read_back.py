"""What became of a Q/DQ graph in an engine: which layers compute in integers, which fell back, which Q and DQ cost.

An engine that builds is not an engine that runs in int8. This compares the nodes of the ONNX graph with the layers of
the engine (engine_layers.py), by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import onnx

from bitswitch_deploy.engines.engine_layers import EngineLayer, Precision

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Through these TensorRT moves Q and DQ.
_MOVING = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Identity")
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
SCHEMA: Literal["bitswitch-layers/1"] = "bitswitch-layers/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePrecision:
    """A convolution or matrix product of the graph, and the type that the engine reads its input in."""

    node: str
    operator: str
    precision: Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfusedQuantizer:
    """A Q or DQ of an activation that no convolution or matrix product took in.

    layer: the engine's layer that does its work. alone: whether that layer does nothing else.
    """

    node: str
    operator: str
    layer: str
    alone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBack:
    """int8: quantized layers that compute in integers. fell_back: quantized in the graph, and not in the engine.
    in_float: layers that the graph leaves in float. unfused: see there. unseen: nodes that no engine layer names.
    """

    schema: Literal["bitswitch-layers/1"] = SCHEMA
    engine_layers: int
    int8: tuple[NodePrecision, ...]
    fell_back: tuple[NodePrecision, ...]
    in_float: tuple[NodePrecision, ...]
    unfused: tuple[UnfusedQuantizer, ...]
    unseen: tuple[str, ...]


def read_back(model: onnx.ModelProto, layers: Iterable[EngineLayer]) -> ReadBack:
    """Compare a graph with the layers of the engine that was built from it."""
    engine = tuple(layers)
    # how TensorRT's parser calls a node that has no name
    names = [node.name or f"node_of_{node.output[0]}" for node in model.graph.node]
    operators = {name: node.op_type for name, node in zip(names, model.graph.node, strict=True)}
    holders: dict[str, list[EngineLayer]] = {}
    for layer in engine:
        for name in layer.nodes:
            holders.setdefault(name, []).append(layer)
    quantized, floating, quantizers = _nodes_by_kind(model, names)
    main = {name: _main_layer(holders[name]) for name in (*quantized, *floating) if name in holders}
    found = {
        name: NodePrecision(node=name, operator=operators[name], precision=_precision(layer))
        for name, layer in main.items()
    }
    return ReadBack(
        engine_layers=len(engine),
        int8=tuple(found[name] for name in quantized if name in found and found[name].precision == "int8"),
        fell_back=tuple(found[name] for name in quantized if name in found and found[name].precision != "int8"),
        in_float=tuple(found[name] for name in floating if name in found),
        unfused=tuple(_unfused(quantizers, operators, holders, list(main.values()))),
        unseen=tuple(name for name in (*quantized, *floating, *quantizers) if name not in holders),
    )


def _nodes_by_kind(model: onnx.ModelProto, names: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Names of the layers with quantized inputs, of the other layers, and of the quantizers of activations."""
    constants = {tensor.name for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}

    def is_of_weight(tensor: str) -> bool:
        maker = makers.get(tensor)
        return tensor in constants or (
            maker is not None and maker.op_type in _QUANTIZERS and is_of_weight(maker.input[0])
        )

    def is_dequantized(tensor: str) -> bool:
        maker = makers.get(tensor)
        while maker is not None and maker.op_type in _MOVING:
            maker = makers.get(maker.input[0])
        return maker is not None and maker.op_type == "DequantizeLinear"

    quantized: list[str] = []
    floating: list[str] = []
    quantizers: list[str] = []
    for name, node in zip(names, model.graph.node, strict=True):
        if node.op_type in WEIGHTED:
            (quantized if all(map(is_dequantized, node.input[:2])) else floating).append(name)
        elif node.op_type in _QUANTIZERS and not is_of_weight(node.input[0]):
            quantizers.append(name)
    return quantized, floating, quantizers


def _main_layer(layers: list[EngineLayer]) -> EngineLayer:
    """The layer that computes a convolution or product, where kernels that prepare its input name it as well: one that
    holds weights and reads integers, else one that holds weights. One that reads nothing prepares weights.
    """
    reading = [layer for layer in layers if layer.inputs] or layers
    holding = [layer for layer in reading if layer.weights] or reading
    return next((layer for layer in holding if "int8" in layer.inputs), holding[0])


def _precision(layer: EngineLayer) -> Precision:
    return "int8" if "int8" in layer.inputs else next(iter(layer.inputs), "other")


def _unfused(
    quantizers: list[str], operators: dict[str, str], holders: dict[str, list[EngineLayer]], main: list[EngineLayer]
) -> Iterable[UnfusedQuantizer]:
    for name in quantizers:
        layers = holders.get(name, [])
        if not layers or any(layer in main for layer in layers):
            continue
        alone = all(operators.get(node) in _QUANTIZERS for layer in layers for node in layer.nodes)
        yield UnfusedQuantizer(node=name, operator=operators[name], layer=layers[0].name, alone=alone)
