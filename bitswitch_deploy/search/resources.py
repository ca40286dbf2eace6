"""What each width of each layer uses, in whole numbers.

    avg_bits          mean width over the quantized layers, each counted once
    avg_weight_bits   the same over their weights
    bytes             codes as they are stored, float32 scales, and the float32 weights of pinned layers, all layers.
                      Without a target the codes are packed without gaps, ceil(n * b / 8); on a target they take what
                      its graphs really have: int8 for most operators at most widths, 4 bits in blocks, each with a
                      scale, for narrow weights of float inputs in onnxruntime; and a zero-point beside each scale
                      where DequantizeLinear reads the codes, which has their type
    bops              sum of b_w * b_a * MACs over the quantized layers, for one sample; a float input counts 32 bits
    latency_p50_ms    sum of the measured times of a latency table without their noise (`search.latency`), in ns here

Float parameters that every width has alike (biases, BatchNorm) are in none of them, pinned layers in bytes only. Where
FoldBatchNorm folds a BatchNormalization into a layer with one scale, that becomes one for each channel; that values may
forbid it is not foreseen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.graph.model_io import node_names
from bitswitch_deploy.latency_table import LatencyTable
from bitswitch_deploy.lowering.fold_batchnorm import FoldBatchNorm
from bitswitch_deploy.lowering.halve_float_layers import has_half_scales, is_halved
from bitswitch_deploy.lowering.rewrite_weight_only import RewriteWeightOnly
from bitswitch_deploy.lowering.store_float_weights import StoreFloatWeights
from bitswitch_deploy.lowering.weight_storage import (
    block_size_of,
    code_blocks,
    is_packable,
    is_plain_product,
    is_transposed,
)
from bitswitch_deploy.master import Master
from bitswitch_deploy.master.spec import LayerSpec
from bitswitch_deploy.search.budget import Budget
from bitswitch_deploy.search.latency import NS_PER_MS, checked_table
from bitswitch_deploy.search.problem import Row
from bitswitch_deploy.target import Target

FLOAT_BITS, FLOAT_BYTES, HALF_BYTES, INDEX_BYTES = 32, 4, 2, 4

LayerUse = Callable[[LayerSpec, int], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """The groups of layers and their widths, as every row is laid out."""

    groups: tuple[tuple[str, ...], ...]
    widths: tuple[tuple[int, ...], ...]

    def row(
        self, layers: Mapping[str, LayerSpec], use: LayerUse, *, name: str, base: int, cap: int | None, per_unit: int
    ) -> Row:
        """A row whose groups use the sum of their layers."""
        table = tuple(
            tuple(sum(use(layers[layer], width) for layer in group) for width in widths)
            for group, widths in zip(self.groups, self.widths)
        )
        return Row(name=name, use=table, base=base, cap=cap, per_unit=per_unit)


class Resources:
    """Rows of one master.

    Args:
        master: the network. choices: how rows are laid out. macs: multiplications of one sample, by layer.
        targets: by the names that budgets use. tables: latency tables, by the name of their target.
    """

    def __init__(
        self,
        master: Master,
        choices: Choices,
        *,
        macs: Mapping[str, int],
        targets: Mapping[str, Target],
        tables: Sequence[LatencyTable],
    ) -> None:
        self._master, self._choices, self._macs, self._targets = master, choices, macs, targets
        self._layers = {layer.name: layer for layer in master.spec.layers if not layer.pinned}
        self._attributes = {node.input[1]: _attributes(node) for _, node in layer_nodes(master)}
        self._normalised = _normalised_channels(master)
        searched = {width for widths in choices.widths for width in widths}
        known = {
            table.target: checked_table(table, master, layers=list(self._layers), widths=searched) for table in tables
        }
        self._tables = {target: table for target, (table, _) in known.items()}
        self.checks = tuple(check for _, check in known.values())

    def row(self, budget: Budget) -> Row:
        """The row of one budget.

        Raises:
            UsageError: no latency table for the budget's target.
        """
        return self._row(budget.resource, budget.text, budget.limit, budget.target)

    def counted(self) -> tuple[Row, ...]:
        """Rows without a limit of everything that needs no target, and of every latency table."""
        plain = tuple(self._row(name, name, None, None) for name in ("avg_bits", "avg_weight_bits", "bytes", "bops"))
        times = (self._row("latency_p50_ms", f"latency_p50_ms@{target}", None, target) for target in self._tables)
        return (*plain, *times)

    def _row(self, resource: str, name: str, limit: object, target: str | None) -> Row:
        use, base, per_unit = self._measure(resource, target, name)
        # a Fraction, so that 0.9 ms are 900,000 ns and not one less
        cap = None if limit is None else math.floor(limit * per_unit)  # type: ignore[operator]
        return self._choices.row(self._layers, use, name=name, base=base, cap=cap, per_unit=per_unit)

    def _measure(self, resource: str, target: str | None, text: str) -> tuple[LayerUse, int, int]:
        """(use of a layer at a width, use of everything else, units in one of the user's units)."""
        if resource == "avg_bits":
            return (lambda layer, bits: bits), 0, len(self._layers)
        if resource == "avg_weight_bits":
            sizes = {name: self._n_weights(layer) for name, layer in self._layers.items()}
            return (lambda layer, bits: bits * sizes[layer.name]), 0, sum(sizes.values())
        if resource == "bops":
            return (lambda layer, bits: bits * _input_bits(layer, bits) * self._macs[layer.name]), 0, 1
        if resource == "latency_p50_ms":
            return self._latency(target or "", text)
        stored = self._targets[target] if target is not None else None
        return (lambda layer, bits: self._size_bytes(layer, bits, stored)), self._pinned_bytes(stored), 1

    def _n_weights(self, layer: LayerSpec) -> int:
        return int(self._master.tensors[layer.weight].size)

    def _pinned_bytes(self, target: Target | None) -> int:
        pinned = [self._master.tensors[layer.weight] for layer in self._master.spec.layers if layer.pinned]
        size_bytes = HALF_BYTES if target is not None and is_halved(target) else FLOAT_BYTES
        return sum(size_bytes * int(weight.size) for weight in pinned)

    def _size_bytes(self, layer: LayerSpec, bits: int, target: Target | None) -> int:
        shape = self._master.tensors[layer.weight].shape
        n_weights, n_scales = math.prod(shape), int(self._master.tensors[layer.weight_scale].size)
        if target is None:
            return FLOAT_BYTES * n_scales + math.ceil(n_weights * bits / 8)
        if FoldBatchNorm.__name__ in target.lowering and n_scales == 1:
            n_scales = self._normalised.get(layer.weight, 1)
        if _is_float(layer, target):
            return FLOAT_BYTES * n_weights + _scales_bytes(n_scales, 8)
        attributes = self._attributes[layer.weight]
        if not _is_rewritten(layer, attributes, shape, target):
            container_bits = _container_bits(layer, bits, shape, target)
            steps = np.asarray(self._master.tensors[layer.weight_scale]) * np.float32(
                2 ** (self._master.spec.bits - bits)
            )
            is_half = layer.activation == "none" and is_halved(target) and has_half_scales(steps)
            scale_bytes = HALF_BYTES if is_half else FLOAT_BYTES
            block_size = block_size_of(shape) if layer.operator == "MatMul" and container_bits < 8 else None
            if block_size is not None and layer.granularity.kind != "per_block":
                n_scales = n_weights // block_size
            return math.ceil(n_weights * container_bits / 8) + _scales_bytes(n_scales, container_bits, scale_bytes)
        block_size = layer.granularity.block_size
        blocks = code_blocks(shape, transposed=is_transposed(attributes), bits=bits, block_size=block_size)
        if blocks is not None:
            return blocks.size_bytes
        # codes, scales, and with blocks the int32 index of its block for each input
        indices = 0 if block_size is None else shape[int(is_transposed(attributes))]
        return n_weights + FLOAT_BYTES * n_scales + INDEX_BYTES * indices

    def _latency(self, target: str, text: str) -> tuple[LayerUse, int, int]:
        if target not in self._tables:
            raise UsageError(
                where=f"--budget {text}",
                got=f"no latency table of target {target!r}",
                allowed=f"a target of the tables given: {', '.join(sorted(self._tables)) or 'none'}",
                do="measure one on the device: bitswitch-deploy profile PACKAGE --latency-table FILE",
            )
        table = self._tables[target]
        times = {layer.name: dict(layer.latency_ms) for layer in table.layers}
        margin_ns = next(check.margin_ns for check in self.checks if check.target == target)
        # rounded up each, so that the sum is never below the true one
        return (
            lambda layer, bits: math.ceil(times[layer.name][bits] * NS_PER_MS),
            math.ceil(table.overhead_ms * NS_PER_MS) + margin_ns,
            NS_PER_MS,
        )


def _is_float(layer: LayerSpec, target: Target) -> bool:
    """Whether the target's graphs have the weight as floats in front of a quantizer (StoreFloatWeights)."""
    wanted = target.stack.weight_form == "float_q_dq" and StoreFloatWeights.__name__ in target.lowering
    return wanted and layer.granularity.block_size is None


def _is_rewritten(layer: LayerSpec, attributes: Mapping[str, Any], shape: tuple[int, ...], target: Target) -> bool:
    """Whether the target's graphs have the weight in the form of RewriteWeightOnly.

    That pass leaves alone a Gemm whose signs a folded BatchNormalization flips, which the statistics of each width
    decide: that is not foreseen.
    """
    is_weight_only = layer.activation == "none" and is_plain_product(layer.operator, attributes, shape)
    return is_weight_only and RewriteWeightOnly.__name__ in target.lowering


def _container_bits(layer: LayerSpec, bits: int, shape: tuple[int, ...], target: Target) -> int:
    """Bits that one code takes in a graph of the target, as PackWeights stores it."""
    container = int(target.quantization.weight_container(layer.operator, bits).removeprefix("int"))
    return container if is_packable(shape) and layer.activation == "none" else 8


def _scales_bytes(n_scales: int, container_bits: int, scale_bytes: int = FLOAT_BYTES) -> int:
    """Of scales, and of the zero-point that stands beside each of them in the type of the codes."""
    return scale_bytes * n_scales + math.ceil(n_scales * container_bits / 8)


def _normalised_channels(master: Master) -> dict[str, int]:
    """Channels of the BatchNormalization that FoldBatchNorm folds into a layer, by the weight of the layer."""
    graph = master.skeleton.graph
    readers = Counter([*(name for node in graph.node for name in node.input), *(each.name for each in graph.output)])
    norms = {node.input[0]: node for node in graph.node if node.op_type == "BatchNormalization"}
    found = {}
    for _, node in layer_nodes(master):
        norm, attributes = norms.get(node.output[0]), _attributes(node)
        is_grouped = node.op_type == "ConvTranspose" and attributes.get("group", 1) != 1
        is_scaled = any(attributes.get(name, 1.0) != 1.0 for name in ("alpha", "beta"))
        is_alone = readers[node.output[0]] == readers[node.input[1]] == 1
        if norm is not None and node.op_type != "MatMul" and is_alone and not (is_grouped or is_scaled):
            found[node.input[1]] = int(master.tensors[norm.input[1]].shape[-1])
    return found


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _input_bits(layer: LayerSpec, bits: int) -> int:
    return FLOAT_BITS if layer.activation == "none" else bits


def count_macs(master: Master, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Multiplications of each quantized layer for one sample; a layer that runs several times counts each run.

    shapes: of every tensor that enters or leaves a quantized layer, by its name in the skeleton, batch size 1.
    """
    by_weight = {layer.weight: layer for layer in master.spec.layers if not layer.pinned}
    macs = dict.fromkeys((layer.name for layer in by_weight.values()), 0)
    for _, node in layer_nodes(master):
        layer = by_weight[node.input[1]]
        macs[layer.name] += _macs(node, master.tensors[layer.weight].shape, shapes)
    return macs


def layer_nodes(master: Master) -> list[tuple[str, onnx.NodeProto]]:
    """Names and nodes of the skeleton that compute with a quantized weight."""
    weights = {layer.weight for layer in master.spec.layers if not layer.pinned}
    named = zip(node_names(master.skeleton), master.skeleton.graph.node, strict=True)
    return [(name, node) for name, node in named if len(node.input) > 1 and node.input[1] in weights]


def _macs(node: onnx.NodeProto, weight: tuple[int, ...], shapes: Mapping[str, Sequence[int]]) -> int:
    if node.op_type == "ConvTranspose":  # weight [in, out / groups, ...]: each input value meets all of the rest
        return math.prod(shapes[node.input[0]]) * math.prod(weight[1:])
    outputs = math.prod(shapes[node.output[0]])
    if node.op_type == "Conv":  # weight [out, in / groups, ...]
        return outputs * math.prod(weight[1:])
    if node.op_type == "Gemm":
        return outputs // int(shapes[node.output[0]][-1]) * math.prod(weight)
    return outputs * weight[-2]
