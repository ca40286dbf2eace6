"""Comparing two forms of a network layer by layer, with every layer given the same input codes in both.

Two float implementations put a value that lies on a rounding tie on different sides of it, and in a deep network one
such code changes many others. So each activation's codes are taken from the canonical graph: then whatever else
differs must itself be a tie, and the logits must agree for every sample, not for most.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession, Optimisation
from bitswitch_deploy.graph.canonical import CanonicalGraph
from bitswitch_deploy.tensors import CodeRange
from bitswitch_deploy.training.layers import QUANTIZED_LAYERS
from bitswitch_deploy.training.prepare import PreparedNetwork

# In steps of the code. Both sides compute in float32: at 127 codes one ulp is 8e-6, and a long sum loses some tens.
TIE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """One quantized activation of a canonical run: `codes` and `ratio` x / s [n, ...], limits of the codes."""

    codes: NDArray[np.int64]
    ratio: NDArray[np.float32]
    limits: CodeRange


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A canonical graph on some inputs. activations: by the name of the tensor that holds the codes' dequantized form."""

    output: NDArray[np.float32]
    activations: dict[str, Activation]


@dataclass(slots=True, kw_only=True)
class Ties:
    """Codes compared, codes that differ, and the largest distance of such a code from its tie, in steps."""

    compared: int = 0
    differing: int = 0
    farthest: float = 0.0

    def add(self, codes: NDArray[np.int64], reference: Activation) -> None:
        """Compare codes with the reference's; raises nothing: `farthest` tells."""
        differ = codes != reference.codes
        self.compared += codes.size
        self.differing += int(differ.sum())
        if differ.any():
            # the code changes half-way between the two; a tie of a jump by several steps is far from its middle
            middle = (codes[differ] + reference.codes[differ]) / 2
            jump = np.abs(codes[differ] - reference.codes[differ]) - 1
            self.farthest = max(self.farthest, float((np.abs(reference.ratio[differ] - middle) + jump).max()))


def canonical_run(canonical: CanonicalGraph, x: NDArray[np.float32]) -> Run:
    """Run a canonical graph and keep all its activations."""
    model = _copy(canonical.model)
    producers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    plans = {f"{layer.layer.name}.input": layer.activation for layer in canonical.plan.layers}
    points = {}
    for node in [node for node in model.graph.node if _is_activation(node, producers)]:
        quantize = producers[node.input[0]]
        if quantize.op_type == "Clip":
            quantize = producers[quantize.input[0]]
        points[node.output[0]] = (node.input[0], quantize.input[0], constants[node.input[1]])
        _expose(model, node.input[0], constants[node.input[2]].data_type)
        _expose(model, quantize.input[0], onnx.TensorProto.FLOAT)
    results = _session(model, "off").run_all({model.graph.input[0].name: x})
    activations = {}
    for name, (codes, source, scale) in points.items():
        plan = plans[_layer_of(name, plans)]
        if plan is None:
            raise AssertionError(f"{name} is quantized against the plan")
        ratio = np.asarray(results[source] / numpy_helper.to_array(scale), np.float32)
        activations[name] = Activation(codes=results[codes].astype(np.int64), ratio=ratio, limits=plan.codes)
    return Run(output=results[canonical.model.graph.output[0].name], activations=activations)


@contextmanager
def forced_torch(network: PreparedNetwork, run: Run) -> Iterator[Ties]:
    """Inside, every quantized layer of the torch network computes with the codes of `run`; Ties compares its own."""
    ties, replaced = Ties(), []
    for path, module in network.model.named_modules():
        if isinstance(module, QUANTIZED_LAYERS):
            quantizer = module.input_quantizer
            given = [run.activations[name] for name in run.activations if _layer_of(name, [f"{path}.input"])]
            quantizer.__dict__["forward"] = _Forced(quantizer.forward, given, ties)
            replaced.append(quantizer)
    try:
        yield ties
    finally:
        for quantizer in replaced:
            del quantizer.__dict__["forward"]


class _Forced:
    def __init__(self, forward: object, given: list[Activation], ties: Ties) -> None:
        self._forward, self._given, self._ties = forward, list(given), ties

    def __call__(self, x: Tensor, bits: int) -> Tensor:
        if not callable(self._forward):
            raise AssertionError("the forward of a quantizer is callable")
        own = self._forward(x, bits)
        scale = own.abs()[own != 0].min() if bool((own != 0).any()) else torch.ones(())
        raise NotImplementedError(scale)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
