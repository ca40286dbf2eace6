"""Small masters from ONNX text: what a test does not name is filled with seeded random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser

from bitswitch_deploy.master import Master, assemble_master
from bitswitch_deploy.master.spec import Container, LayerSpec, MasterSpec, Operator, ValueSpec
from bitswitch_deploy.tensors import PER_TENSOR, Granularity, Rounding, code_range

Array = np.ndarray[Any, np.dtype[Any]]

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
BATCH_NORM = ("gamma", "beta", "mean", "var")


def per_channel(axis: int) -> Granularity:
    return Granularity(kind="per_channel", axis=axis)


def per_block(axis: int, size: int) -> Granularity:
    return Granularity(kind="per_block", axis=axis, block_size=size)


def layer(
    name: str, operator: Operator = "Conv", granularity: Granularity = PER_TENSOR, activation: str = "unsigned"
) -> LayerSpec:
    """Build a quantized layer whose weight is `<name>.weight`, or a pinned one with activation "pinned"."""
    pinned = activation == "pinned"
    return LayerSpec(
        name=name,
        operator=operator,
        weight=f"{name}.weight",
        granularity=granularity,
        activation="none" if pinned else activation,  # type: ignore[arg-type]
        pinned=pinned,
    )


def build(
    text: str,
    layers: Sequence[LayerSpec],
    *,
    tensors: Mapping[str, Any] | None = None,
    switchable: Sequence[str] = (),
    **changes: Any,
) -> Master:
    """Build the master of the network `text`, ONNX text without a header whose parameters are the inputs with a dot.

    `changes` are fields of MasterSpec.
    """
    skeleton = onnx.parser.parse_model(HEADER + text)
    inputs = [value for value in skeleton.graph.input if "." not in value.name]
    weights = {each.weight for each in layers}
    names = [value.name for value in skeleton.graph.input if "." in value.name and value.name not in weights]
    fields: dict[str, Any] = {
        "bits": 8,
        "widths": (8, 6, 4, 2),
        "rounding": Rounding.HALF_UP,
        "activation_container": "uint8",
        "layers": tuple(layers),
        "switchable": tuple(switchable),
        "parameters": tuple(name for name in names if name not in switchable),
        "inputs": tuple(_value(value) for value in inputs),
        "outputs": tuple(_value(value) for value in skeleton.graph.output),
        "preprocessing": None,
        "accuracy": (),
        "provenance": (),
    }
    spec = MasterSpec(**{**fields, **changes})
    return assemble_master(spec=spec, tensors=_filled(spec, skeleton, tensors or {}), skeleton=skeleton)


def _value(value: onnx.ValueInfoProto) -> ValueSpec:
    shape = tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
    dtype = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    return ValueSpec(name=value.name, dtype=dtype, shape=shape)


def _filled(spec: MasterSpec, skeleton: onnx.ModelProto, given: Mapping[str, Any]) -> dict[str, Array]:
    random = np.random.default_rng(20)
    shapes = {v.name: tuple(dim.dim_value for dim in v.type.tensor_type.shape.dim) for v in skeleton.graph.input}
    allowed = code_range(spec.bits, signed=True)
    tensors: dict[str, Array] = {}
    for each in spec.layers:
        shape = shapes[each.weight]
        if each.pinned:
            tensors[each.weight] = random.normal(0, 0.3, shape).astype(np.float32)
            continue
        tensors[each.weight] = random.integers(allowed.low, allowed.high, shape, dtype=np.int8, endpoint=True)
        scale_shape = each.granularity.scale_shape(shape)
        tensors[each.weight_scale] = random.uniform(0.002, 0.01, scale_shape).astype(np.float32)
        if each.activation != "none":
            ends = [activation_end(spec.activation_container, bits, each.activation) for bits in spec.widths]
            tensors[each.input_scale] = (random.uniform(2, 3, len(spec.widths)) / ends).astype(np.float32)
    for name in (*spec.parameters, *spec.switchable):
        shape = (len(spec.widths), *shapes[name]) if name in spec.switchable else shapes[name]
        positive = name.endswith((".gamma", ".var"))
        tensors[name] = (random.uniform(0.5, 1.5, shape) if positive else random.normal(0, 0.3, shape)).astype(
            np.float32
        )
    for name, value in given.items():
        tensors[name] = np.asarray(value, tensors[name].dtype)
    return tensors


def activation_end(container: Container, bits: int, activation: str) -> int:
    """Highest code, by hand: 2^b - 1, or 127 for eight unsigned bits in int8, or 2^(b-1) - 1 when signed."""
    if activation == "signed":
        return int(2 ** (bits - 1)) - 1
    return 127 if container == "int8" and bits == 8 else int(2**bits) - 1
