"""What a master holds, as frozen values for text and JSON reports."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bitswitch_deploy.master.master import Master
from bitswitch_deploy.master.spec import (
    Container,
    LayerSpec,
    MeasuredAccuracy,
    Operator,
    ValueSpec,
)
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.tensors import Granularity, Rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSummary:
    """One layer: shape of its weight, and the codes in use (None when pinned to floating point)."""

    name: str
    operator: Operator
    weight_shape: tuple[int, ...]
    n_weights: int
    n_scales: int
    granularity: Granularity
    activation: str
    pinned: bool
    code_min: int | None
    code_max: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthSummary:
    """One trained width: bytes of all layers' weights with codes packed without gaps, pinned ones in float32."""

    bits: int
    weight_size_bytes: int
    accuracy: tuple[MeasuredAccuracy, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterSummary:
    """One master.

    n_quantized: weights stored as codes. n_parameters: all numbers that the network computes with at one width
    (weights, biases, one copy of switchable parameters), without scales.
    """

    sha256: str
    bits: int
    widths: tuple[WidthSummary, ...]
    rounding: Rounding
    activation_container: Container
    opset: int
    n_parameters: int
    n_quantized: int
    code_size_bytes: int
    scale_size_bytes: int
    float_size_bytes: int
    skeleton_size_bytes: int
    inputs: tuple[ValueSpec, ...]
    outputs: tuple[ValueSpec, ...]
    preprocessing: Preprocessing | None
    accuracy: tuple[MeasuredAccuracy, ...]
    provenance: tuple[tuple[str, str], ...]
    layers: tuple[LayerSummary, ...]


def describe_master(master: Master) -> MasterSummary:
    """Summarise a master; reads every code once."""
    spec, tensors = master.spec, master.tensors
    layers = tuple(_describe_layer(master, layer) for layer in spec.layers)
    codes = [tensors[layer.weight] for layer in spec.layers if not layer.pinned]
    scales = [tensors[layer.weight_scale] for layer in spec.layers if not layer.pinned]
    scales += [tensors[layer.input_scale] for layer in spec.layers if layer.activation != "none"]
    pinned = [tensors[layer.weight] for layer in spec.layers if layer.pinned]
    switchable = [tensors[name] for name in spec.switchable]
    floats = pinned + switchable + [tensors[name] for name in spec.parameters]
    n_copies = sum(tensor.size for tensor in switchable) // len(spec.widths) * (len(spec.widths) - 1)
    return MasterSummary(
        sha256=master.sha256,
        bits=spec.bits,
        widths=tuple(_describe_width(master, bits) for bits in spec.widths),
        rounding=spec.rounding,
        activation_container=spec.activation_container,
        opset=master.skeleton.opset_import[0].version,
        n_parameters=sum(tensor.size for tensor in codes + floats) - n_copies,
        n_quantized=sum(tensor.size for tensor in codes),
        code_size_bytes=sum(tensor.nbytes for tensor in codes),
        scale_size_bytes=sum(tensor.nbytes for tensor in scales),
        float_size_bytes=sum(tensor.nbytes for tensor in floats),
        skeleton_size_bytes=master.skeleton.ByteSize(),
        inputs=spec.inputs,
        outputs=spec.outputs,
        preprocessing=spec.preprocessing,
        accuracy=spec.accuracy,
        provenance=spec.provenance,
        layers=layers,
    )


def _describe_layer(master: Master, layer: LayerSpec) -> LayerSummary:
    weight = master.tensors[layer.weight]
    return LayerSummary(
        name=layer.name,
        operator=layer.operator,
        weight_shape=weight.shape,
        n_weights=weight.size,
        n_scales=0 if layer.pinned else master.tensors[layer.weight_scale].size,
        granularity=layer.granularity,
        activation=layer.activation,
        pinned=layer.pinned,
        code_min=None if layer.pinned else int(weight.min()),
        code_max=None if layer.pinned else int(weight.max()),
    )


def _describe_width(master: Master, bits: int) -> WidthSummary:
    size_bytes = 0
    for layer in master.spec.layers:
        size = master.tensors[layer.weight].size
        size_bytes += size * 4 if layer.pinned else math.ceil(size * bits / 8)
    accuracy = tuple(entry for entry in master.spec.accuracy if entry.bits == bits)
    return WidthSummary(bits=bits, weight_size_bytes=size_bytes, accuracy=accuracy)
