"""Comparing two forms of a network layer by layer, with every layer given the same input codes in both.

Two float implementations put a value that lies on a rounding tie on different sides of it, and in a deep network one
such code changes many others. So the codes of each activation are taken from the canonical graph: then whatever code
still differs must be a tie itself, and the outputs must agree for every sample, not for most.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession, Optimisation
from bitswitch_deploy.training.layers import QUANTIZED_LAYERS
from bitswitch_deploy.training.prepare import PreparedNetwork
from bitswitch_deploy.training.quantizers import ActivationQuantizer, positive

# Both sides compute in float32, where a code of 127 is exact to 8e-6 and a long sum loses some more.
TIE = 1e-4

_ACTIVATION = re.compile(r"(.+)\.input(?:\.\d+)?\.dequantized")


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """One quantized activation: `codes` and `ratio` x / s before rounding, both [n, ...]."""

    codes: NDArray[np.int16]
    ratio: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A canonical graph on some inputs. activations: by name of the dequantized tensor, in the order of the graph."""

    output: NDArray[np.float32]
    activations: dict[str, Activation]

    def of_layer(self, layer: str) -> list[Activation]:
        """The inputs of a layer, one for each of its nodes."""
        return [each for name, each in self.activations.items() if _layer_of(name) == layer]


@dataclass(slots=True, kw_only=True)
class Ties:
    """How many codes were compared, how many differ, how far the farthest of them is from its tie, in steps, and the
    samples that they belong to.
    """

    compared: int = 0
    differing: int = 0
    farthest: float = 0.0
    samples: set[int] = field(default_factory=set)

    def add(self, codes: NDArray[np.int16], reference: Activation) -> None:
        """Compare codes [n, ...] with those of the reference."""
        differ = codes != reference.codes
        self.compared += codes.size
        self.differing += int(differ.sum())
        self.samples |= set(np.nonzero(differ)[0].tolist())
        if differ.any():
            other, own = codes[differ].astype(np.float64), reference.codes[differ].astype(np.float64)
            # half-way between neighbours lies the tie; half-way between codes farther apart lies none
            distance = np.abs(reference.ratio[differ] - (other + own) / 2) + (np.abs(other - own) - 1)
            self.farthest = max(self.farthest, float(distance.max()))


def canonical_run(canonical: onnx.ModelProto, x: NDArray[np.float32]) -> Run:
    """Run a canonical graph as it is written and keep its activations."""
    model = _copy(canonical)
    points = _activations(model)
    for point in points.values():
        _add_output(model, point.codes, point.zero_point.data_type)
        _add_output(model, point.source, onnx.TensorProto.FLOAT)
    results = _run(model, {model.graph.input[0].name: x}, "off", {})
    activations = {
        name: Activation(
            codes=results[point.codes].astype(np.int16),
            ratio=results[point.source] / numpy_helper.to_array(point.scale),
        )
        for name, point in points.items()
    }
    return Run(output=results[canonical.graph.output[0].name], activations=activations)


def float_tensors(
    canonical: onnx.ModelProto, names: tuple[str, ...], x: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """Float tensors inside of a canonical graph, by name."""
    model = _copy(canonical)
    for name in names:
        _add_output(model, name, onnx.TensorProto.FLOAT)
    results = _run(model, {model.graph.input[0].name: x}, "off", {})
    return {name: results[name] for name in names}


def forced_run(
    lowered: onnx.ModelProto,
    x: NDArray[np.float32],
    run: Run,
    *,
    optimisation: Optimisation,
    session_options: dict[str, str],
) -> tuple[NDArray[np.float32], dict[str, Ties]]:
    """A lowered graph whose layers read the codes of `run`: its output, and its own codes compared with those."""
    model = _copy(lowered)
    points = {name: point for name, point in _activations(model).items() if name in run.activations}
    if points.keys() != run.activations.keys():
        raise AssertionError(f"missing activations: {sorted(run.activations.keys() - points.keys())}")
    feeds: dict[str, NDArray[Any]] = {model.graph.input[0].name: x}
    for name, point in points.items():
        zero_point = numpy_helper.to_array(point.zero_point)
        given = run.activations[name].codes
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(f"{name}.given", point.zero_point.data_type, given.shape)
        )
        feeds[f"{name}.given"] = (given + zero_point.astype(np.int16)).astype(zero_point.dtype)
        point.reader.input[0] = f"{name}.given"
        _add_output(model, point.codes, point.zero_point.data_type)
    results = _run(model, feeds, optimisation, session_options)
    ties = {}
    for name, point in points.items():
        zero_point = numpy_helper.to_array(point.zero_point).astype(np.int16)
        codes = np.minimum(results[point.codes].astype(np.int16) - zero_point, point.highest)
        ties[name] = Ties()
        ties[name].add(codes, run.activations[name])
    return results[lowered.graph.output[0].name], ties


@contextmanager
def forced_torch(network: PreparedNetwork, run: Run) -> Iterator[Ties]:
    """Inside, the quantized layers of the torch network compute with the codes of `run`; their own are compared."""
    ties = Ties()
    handles = [
        module.input_quantizer.register_forward_hook(_replace(run.of_layer(path), ties))
        for path, module in network.model.named_modules()
        if isinstance(module, QUANTIZED_LAYERS) and isinstance(module.input_quantizer, ActivationQuantizer)
    ]
    try:
        yield ties
    finally:
        for handle in handles:
            handle.remove()


def _replace(given: list[Activation], ties: Ties) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    """A forward hook of an ActivationQuantizer; each call takes the next of `given`."""
    waiting = list(given)

    def hook(quantizer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if not isinstance(quantizer, ActivationQuantizer):
            raise AssertionError("the hook of an ActivationQuantizer")
        _, bits = args
        scale = positive(quantizer.scales[quantizer.widths.index(bits)])
        reference = waiting.pop(0)
        ties.add(torch.round(output / scale).numpy().astype(np.int16), reference)
        return torch.from_numpy(reference.codes.astype(np.float32)) * scale

    return hook


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    """A quantized activation in a graph: names of the float tensor and of its codes, the node that reads the codes.

    highest: code at which finer codes behind these saturate, where no Clip does it.
    """

    source: str
    codes: str
    scale: onnx.TensorProto
    zero_point: onnx.TensorProto
    reader: onnx.NodeProto
    highest: int


def _activations(model: onnx.ModelProto) -> dict[str, _Point]:
    producers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    points = {}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or not _ACTIVATION.fullmatch(node.output[0]):
            continue
        first, reader, highest = producers[node.input[0]], node, 255
        if first.op_type == "BitShift":
            first, reader = producers[first.input[0]], first
        elif (coarse := _coarse(first, producers)) is not None:
            steps = numpy_helper.to_array(constants[coarse.input[1]]) / numpy_helper.to_array(constants[node.input[1]])
            highest = int((255 - numpy_helper.to_array(constants[node.input[2]])) // steps)
            first, reader = producers[coarse.input[0]], coarse
        quantize = producers[first.input[0]] if first.op_type == "Clip" else first
        points[node.output[0]] = _Point(
            source=quantize.input[0],
            codes=reader.input[0],
            scale=constants[quantize.input[1]],
            zero_point=constants[quantize.input[2]],
            reader=reader,
            highest=highest,
        )
    return points


def _coarse(quantize: onnx.NodeProto, producers: dict[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The DequantizeLinear of the trained codes where `quantize` counts them in finer steps (Requantize)."""
    if not quantize.name.endswith(".fine/QuantizeLinear"):
        return None
    return producers[producers[quantize.input[0]].input[0]]


def _layer_of(dequantized: str) -> str | None:
    match = _ACTIVATION.fullmatch(dequantized)
    return match[1] if match else None


def _add_output(model: onnx.ModelProto, name: str, element_type: int) -> None:
    if all(output.name != name for output in model.graph.output):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, element_type, None))


def _run(
    model: onnx.ModelProto, feeds: dict[str, NDArray[Any]], optimisation: Optimisation, options: dict[str, str]
) -> dict[str, NDArray[Any]]:
    session = OnnxRuntimeSession(
        model.SerializeToString(), optimisation=optimisation, threads=1, session_options=options
    )
    return session.run_all(feeds)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
