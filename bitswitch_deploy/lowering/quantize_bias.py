"""QuantizeBias: biases become int32 behind a DequantizeLinear, as onnxruntime's integer kernels want them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from bitswitch_deploy.graph.channel_axis import along, channel_axis
from bitswitch_deploy.graph.qdq import (
    ActivationCodes,
    ActivationPattern,
    WeightPattern,
    activation_patterns,
    hand_out_copy,
    is_known,
    match_activation,
    match_weight,
    multiply_codes,
    output_before_codes,
    producer_of,
    refine_activation,
    sole_reader,
    way_to_codes,
)
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.lowering.bias_codes import LARGEST_CODE, Accumulator, BiasFit, fit_bias, largest_shift
from bitswitch_deploy.lowering.free_products import free_products
from bitswitch_deploy.lowering.lowering_pass import LoweringPass

_BIAS_INPUT = 2
# A bias of more steps than this has sums beside it that do not count, if they change no code.
_LARGE_BIAS = 2.0**20
# Of a channel that is its bias only, where input codes are not shifted (by six bits, and it still fits int16); its
# smallest bias that is not taken for nothing.
_BIAS_CODE, _SMALLEST_BIAS = 2.0**8, 2.0**-60
_REFINING = frozenset({Approximation.FULL_RESOLUTION, Approximation.FULL_RESOLUTION_SIGNED})
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A layer that reads codes.

    adder: reads the bias as input `bias_input`: `node` itself, or the Add behind a MatMul.
    bias: [channels], zeros when it is computed.
    thresholds: outputs at which a code behind the layer changes [n]; None where the output stays float.
    """

    node: gs.Node
    adder: gs.Node
    bias_input: int
    bias: NDArray[np.float64]
    data: ActivationPattern
    weight: WeightPattern
    thresholds: NDArray[np.float64] | None


class QuantizeBias(LoweringPass):
    """Round the bias of a layer from codes to codes to int32 in steps of s_x * s_w, its accumulator's unit.

    Not for TensorRT, whose parser refuses a DequantizeLinear on int32. onnxruntime does the same behind the scenes to a
    float bias, rounding to nearest (weight_bias_quantization.cc), and also to layers that it then runs in float; here
    steps and bias are chosen so that no output code changes (see bias_codes.py). Where finer steps of the weights are
    not enough and uint8 input codes have bits to spare, these are shifted as well where that keeps all codes of the
    layer: one cheap operator, which codes are not worth that FULL_RESOLUTION left as they come. Where it does not, the
    bias is rounded and recorded as inexact with the share of such channels; without ROUNDED_BIAS the layer runs in
    float instead.
    A channel whose sums are negligible beside its bias, as training leaves them where a gain vanished, has its weights
    multiplied by 0 and its bias counted in steps of its own.
    A result that is handed out as an output of the graph stays float, but where one Q reads it onnxruntime rounds the
    bias nevertheless. A copy that is handed out instead keeps it from that.
    Cases: Conv, ungrouped ConvTranspose, Gemm; a MatMul and its Add, which onnxruntime makes a Gemm of: this bias stays
    float, but is a whole number of steps; a Gemm with float output, whose bias moves behind it, since onnxruntime runs
    it in integers only without a float bias; a product without one, whose activation stays float (`free_products`); an
    output of the graph on the way to a Q; weight scale per tensor and per channel, of either sign; output codes with
    and without Clip, directly behind or behind Relu, Clip and data movement; one bias for several layers.
    Left alone: other layers whose input, weight or output is not in codes, scales per block or along another axis, a
    bias that differs within a channel, a bias that depends on data. Left alone, and recorded as inexact: a bias that is
    computed from constants, a weight that several nodes read, Gemm with alpha or beta, grouped ConvTranspose with one
    scale.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Quantize every bias that can be; see the class for the cases."""
        codes = {id(pattern.quantize): pattern.codes for pattern in activation_patterns(graph)}
        found = [layer for node in graph.nodes if (layer := _integer_layer(graph, node, codes)) is not None]
        layers = [layer for layer in found if layer.thresholds is not None]
        freed = [layer for layer in found if layer.thresholds is None and _keep_bias(graph, layer)]
        freed_products = free_products(graph)
        fits, kept = [], []
        for layer in layers:
            obstacle = _obstacle(graph, layer)
            if obstacle is None:
                fit = self._quantize(graph, layer)
                fits += [fit] if fit is not None else []
                kept += [layer] if fit is None else []
            elif self._may_round or not _is_separable(layer):
                what = f"onnxruntime rounds the bias to steps of s_x * s_w: {obstacle}"
                wanted = Approximation.ROUNDED_BIAS if _is_separable(layer) else None
                self.record(layer.weight.codes.name, what, exact=False, approximation=wanted)
            else:
                _subtract_bias(graph, layer)
                kept.append(layer)
        if kept:
            what = "run in float: no int32 bias keeps all their codes"
            self.record(f"{len(kept)} of {len(layers)} layers", what, exact=True)
        channels = sum(fit.exact.size for fit in fits)
        moved = channels - sum(int(fit.exact.sum()) for fit in fits)
        if moved:
            what = f"int32 rounding moves a code threshold in {moved} of {channels} channels"
            self.record("biases", what, exact=False, approximation=Approximation.ROUNDED_BIAS)
        return bool(fits or kept or freed) or freed_products

    @property
    def _may_round(self) -> bool:
        return Approximation.ROUNDED_BIAS in self.context.approximations

    def _is_left_in_its_steps(self, data: ActivationPattern) -> bool:
        """Whether FillContainer let an activation keep the codes that it comes in; the trained ones are gone anyway."""
        source = producer_of(data.source)
        before = None if source is None or source.op != "DequantizeLinear" else match_activation(source)
        is_kept = before is not None and before.codes.scale == data.codes.scale
        return is_kept and not _REFINING.isdisjoint(self.context.approximations)

    def _quantize(self, graph: gs.Graph, layer: _Layer) -> BiasFit | None:
        """Write the best bias, or none where that moves a code and rounding is not wanted."""
        axis, products = channel_axis(layer.node), layer.weight.products()
        factors = np.int32(1) << largest_shift(products, axis)
        # one scale for each channel from here on, since each has a shift and a stretch of its own
        scale = np.broadcast_to(layer.weight.scale.values, layer.bias.shape) / factors
        reach = _accumulator(layer, products, factors, scale)
        silent, keeps_codes = _silent(layer, reach)
        if silent.any():
            factors = np.where(silent, 0, factors)
            step = np.maximum(np.abs(layer.bias), _SMALLEST_BIAS) / _BIAS_CODE
            scale = np.where(silent, step / np.float64(layer.data.codes.scale), scale)
            reach = _accumulator(layer, products, factors, scale)
        # among int8 codes the shifted ones stay uint8, and no convolution of onnxruntime runs between two containers
        always = self.context.target.quantization.activation.dtype == "int8"
        room = 0 if self._is_left_in_its_steps(layer.data) else _room(graph, layer.data)
        fit, shift = _best_fit(layer, reach, room, always=always)
        fit = replace(fit, exact=fit.exact & (keeps_codes | ~silent))
        if not (self._may_round or fit.exact.all()):
            _subtract_bias(graph, layer)  # it is separable: that which is not has an obstacle
            return None
        _write(graph, layer, fit, shift, factors=factors, scale=scale)
        return fit


def _write(
    graph: gs.Graph,
    layer: _Layer,
    fit: BiasFit,
    shift: int,
    *,
    factors: NDArray[np.int32],
    scale: NDArray[np.float64],
) -> None:
    axis, products, name = channel_axis(layer.node), layer.weight.products(), layer.weight.codes.name
    if shift:
        refine_activation(graph, layer.data, shift)
    data_scale = np.float32(layer.data.codes.scale / 2**shift)
    multiply_codes(graph, layer.weight, along(axis, factors, products.ndim))
    stretched = np.asarray(scale * fit.stretch, np.float32)
    layer.weight.scale.values = stretched
    layer.weight.dequantize.inputs[2].values = np.zeros(layer.bias.shape, np.int8)
    layer.weight.dequantize.attrs["axis"] = axis
    step32 = np.asarray(data_scale * stretched, np.float32)
    bias = fit.codes * _signs(scale)
    if layer.adder is layer.node:
        layer.adder.inputs[layer.bias_input] = _dequantized(graph, f"{name}.bias", bias, step32)
    else:
        # leading ones of its shape give the sum its rank
        shape = (*layer.adder.inputs[layer.bias_input].shape[:-1], layer.bias.size)
        whole_steps = np.asarray(bias * step32, np.float32).reshape(shape)
        layer.adder.inputs[layer.bias_input] = gs.Constant(f"{name}.bias", whole_steps)


def _keep_bias(graph: gs.Graph, layer: _Layer) -> bool:
    """Let a layer with float output have its bias as it is, and a product run in integers; whether it took a change."""
    output = output_before_codes(graph, layer.adder.outputs[0])
    is_product = layer.node.op == "Gemm" or (layer.node.op == "MatMul" and output is not None)
    if is_product and _is_separable(layer):
        _subtract_bias(graph, layer)
    elif output is not None:
        hand_out_copy(graph, output)
    else:
        return False
    return True


def _is_separable(layer: _Layer) -> bool:
    """Whether the bias can be taken out of the layer."""
    bias = layer.adder.inputs[layer.bias_input]
    return isinstance(bias, gs.Constant) and layer.node.attrs.get("beta", 1.0) == 1.0


def _subtract_bias(graph: gs.Graph, layer: _Layer) -> None:
    """Subtract -bias behind the layer, a form that onnxruntime neither fuses nor rounds."""
    node, adder, bias = layer.node, layer.adder, layer.adder.inputs[layer.bias_input]
    # named after the node: several may read one weight
    name = f"{node.name}.negative_bias"
    if adder is node:
        trailing = layer.weight.codes.values.ndim - 2 if node.op in ("Conv", "ConvTranspose") else 0
        negative = gs.Constant(name, -bias.values.reshape(*bias.values.shape, *[1] * trailing))
        output, raw = node.outputs[0], gs.Variable(f"{name}.without", dtype=np.float32)
        node.inputs, node.outputs = node.inputs[:_BIAS_INPUT], [raw]
        graph.nodes.append(gs.Node("Sub", f"{node.name}/Sub", {}, [raw, negative], [output]))
    else:
        adder.op = "Sub"
        adder.inputs = [adder.inputs[1 - layer.bias_input], gs.Constant(name, -bias.values)]


def _best_fit(layer: _Layer, accumulator: Accumulator, room: int, *, always: bool) -> tuple[BiasFit, int]:
    """The fit, and by how many bits the input codes are shifted for it: none where that is not needed, nor, unless
    `always`, where it does not keep all codes.
    """
    thresholds = np.empty(0) if layer.thresholds is None else layer.thresholds
    plain = fit_bias(layer.bias, accumulator, thresholds)
    if plain.exact.all() or not room:
        return plain, 0
    fine = fit_bias(layer.bias, accumulator.finer(2**room), thresholds)
    # where a threshold moves in any case, moving it less is not worth an operator
    return (fine, room) if always or fine.exact.all() else (plain, 0)


def _room(graph: gs.Graph, data: ActivationPattern) -> int:
    """Bits by which input codes can be shifted left within uint8; signed and shared codes stay as they are."""
    shared = sole_reader(graph, data.result) is None
    if data.clip is None or data.shift or shared or data.codes.container is not np.uint8 or data.codes.zero_point:
        return 0
    return 8 - int(data.codes.high).bit_length()


def _integer_layer(graph: gs.Graph, node: gs.Node, codes: dict[int, ActivationCodes]) -> _Layer | None:
    if node.op not in _WEIGHTED:
        return None
    weight, producer = match_weight(node.inputs[1]), producer_of(node.inputs[0])
    data = match_activation(producer) if producer is not None and producer.op == "DequantizeLinear" else None
    adder, bias_input = _adder(graph, node)
    if weight is None or data is None or adder is None or weight.is_blocked:
        return None
    axis, shape = channel_axis(node), tuple(weight.codes.shape)
    groups = node.attrs.get("group", 1) if node.op == "ConvTranspose" else 1
    if np.ndim(weight.scale.values) and (weight.dequantize.attrs.get("axis", 1) != axis or groups != 1):
        return None
    if node.op == "MatMul" and len(shape) != 2:
        return None
    tensor, channels = adder.inputs[bias_input], shape[axis] * groups
    bias = np.asarray(tensor.values if isinstance(tensor, gs.Constant) else np.zeros(channels), np.float64)
    thresholds = _thresholds(graph, adder.outputs[0], codes)
    if bias.size not in (1, channels) or bias.shape[-1:] != (bias.size,)[: bias.ndim]:
        return None
    return _Layer(
        node=node,
        adder=adder,
        bias_input=bias_input,
        bias=np.broadcast_to(bias.ravel(), (channels,)),
        data=data,
        weight=weight,
        thresholds=thresholds,
    )


def _adder(graph: gs.Graph, node: gs.Node) -> tuple[gs.Node | None, int]:
    """The node that adds a bias which is known before the graph runs, and the input it reads it from."""
    adder = sole_reader(graph, node.outputs[0]) if node.op == "MatMul" else node
    if adder is None or (adder is not node and adder.op != "Add"):
        return None, 0
    for place in (_BIAS_INPUT,) if adder is node else (0, 1):
        if len(adder.inputs) > place and is_known(adder.inputs[place]):
            return adder, place
    return None, 0


def _obstacle(graph: gs.Graph, layer: _Layer) -> str | None:
    if not isinstance(layer.adder.inputs[layer.bias_input], gs.Constant):
        return "it is computed in the graph"
    if sole_reader(graph, layer.node.inputs[1]) is None:
        return "several nodes read the weight"
    if (layer.node.attrs.get("alpha", 1.0), layer.node.attrs.get("beta", 1.0)) != (1.0, 1.0):
        return "Gemm with alpha or beta"
    if layer.node.op == "ConvTranspose" and layer.node.attrs.get("group", 1) != 1:
        return "output channels of a grouped ConvTranspose share their scale"
    return None


def _thresholds(graph: gs.Graph, tensor: gs.Tensor, codes: dict[int, ActivationCodes]) -> NDArray[np.float64] | None:
    """Values of `tensor` at which the codes that it becomes change, half-way between neighbours; None without codes."""
    way = way_to_codes(graph, tensor)
    found = codes.get(id(way[-1])) if way else None
    if found is None:
        return None
    low, high = -np.inf, np.inf
    for node in way[:-1]:
        if node.op == "Relu":
            low = max(low, 0.0)
        elif node.op == "Clip":
            low, high = max(low, _bound(node, 1, low)), min(high, _bound(node, 2, high))
    steps = np.arange(found.low + 1, found.high + 1, dtype=np.float64) - found.zero_point - 0.5
    values: NDArray[np.float64] = steps * np.float64(found.scale)
    # what a Relu or Clip cuts off crosses no threshold
    return values[(values >= low) & (values <= high)]


def _bound(clip: gs.Node, place: int, default: float) -> float:
    known = len(clip.inputs) > place and isinstance(clip.inputs[place], gs.Constant)
    return float(clip.inputs[place].values) if known else default


def _accumulator(
    layer: _Layer, products: NDArray[np.int32], factors: NDArray[np.int32], scale: NDArray[np.float64]
) -> Accumulator:
    """Sums in steps of s_x * |s_w|: under a negative scale those of the negative weights. At a border taps fall away,
    which counts where the codes have no zero.
    """
    axis, codes = channel_axis(layer.node), layer.data.codes
    others = tuple(index for index in range(products.ndim) if index != axis)
    signed = products * along(axis, _signs(scale), products.ndim)
    ends = np.stack([signed * (codes.low - codes.zero_point), signed * (codes.high - codes.zero_point)])
    if _has_border(layer.node):
        ends = np.concatenate([ends, np.zeros_like(ends[:1])])
    return Accumulator(
        step=np.float64(codes.scale) * np.abs(scale),
        lattice=np.maximum(factors, 1).astype(np.float64),
        low=ends.min(axis=0).sum(axis=others, dtype=np.float64) * factors,
        high=ends.max(axis=0).sum(axis=others, dtype=np.float64) * factors,
    )


def _has_border(node: gs.Node) -> bool:
    """Whether some outputs are sums of fewer products than others."""
    is_padded = any(node.attrs.get("pads", ())) or str(node.attrs.get("auto_pad", "NOTSET")).startswith("SAME")
    return node.op == "ConvTranspose" or (node.op == "Conv" and is_padded)


def _signs(scale: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.where(scale < 0, -1, 1).astype(np.int32)


def _silent(layer: _Layer, reach: Accumulator) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Channels whose sums are too small beside their bias to be counted with it in an int32; and all channels that have
    the same code whatever the sum is.
    """
    steps = np.abs(layer.bias) / reach.step
    thresholds = np.empty((0, 1)) if layer.thresholds is None else layer.thresholds[:, None]
    # of the bias alone as well, which is what such a channel becomes: codes without a zero-point may not sum up to 0
    ends = np.minimum(reach.low, 0), np.maximum(reach.high, 0)
    low, high = (layer.bias + end * reach.step for end in ends)
    constant = ~np.any((thresholds > low) & (thresholds <= high), axis=0)
    silent = (steps > LARGEST_CODE) | (constant & (steps > _LARGE_BIAS))
    return np.asarray(silent, np.bool_), np.asarray(constant, np.bool_)


def _dequantized(graph: gs.Graph, name: str, codes: NDArray[np.float64], scale: NDArray[np.float32]) -> gs.Tensor:
    output = gs.Variable(f"{name}.dequantized", dtype=np.float32)
    inputs = [
        gs.Constant(f"{name}.codes", codes.astype(np.int32)),
        gs.Constant(f"{name}.codes.scale", scale),
        gs.Constant(f"{name}.codes.zero_point", np.zeros(scale.shape, np.int32)),
    ]
    graph.nodes.insert(0, gs.Node("DequantizeLinear", f"{name}/DequantizeLinear", {"axis": 0}, inputs, [output]))
    return output
