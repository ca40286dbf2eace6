"""Faults planted into a lowered graph: one scale doubled, one channel's sign lost, one activation read as int8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from bitswitch_deploy.graph.plan import QuantizationPlan

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """A fault: its kind, the layer that it is in, what was done, and the graph with it."""

    kind: str
    layer: str
    what: str
    model: onnx.ModelProto


def plant(kind: str, lowered: onnx.ModelProto, plan: QuantizationPlan, rng: np.random.Generator) -> Plant | None:
    """One fault of a kind in a random layer; None where that layer cannot have it."""
    model = onnx.ModelProto()
    model.CopyFrom(lowered)
    layer = plan.layers[int(rng.integers(len(plan.layers)))].layer
    what = _PLANTS[kind](_Initializers(model), layer.name, layer.weight, rng)
    return None if what is None else Plant(kind=kind, layer=layer.name, what=what, model=model)


class _Initializers:
    """The constants of a model, to be read and replaced."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._entries = {entry.name: entry for entry in model.graph.initializer}

    def get(self, name: str) -> Array | None:
        return numpy_helper.to_array(self._entries[name]) if name in self._entries else None

    def set(self, name: str, values: Array) -> None:
        self._entries[name].CopyFrom(numpy_helper.from_array(np.asarray(values, order="C"), name))

    def chain(self, layer: str) -> list[onnx.NodeProto]:
        """The QuantizeLinear that writes the codes of a layer's input last, and all behind it."""
        producers = {name: node for node in self.model.graph.node for name in node.output}
        nodes = [producers[f"{layer}.input.dequantized"]]
        while nodes[-1].op_type != "QuantizeLinear":
            nodes.append(producers[nodes[-1].input[0]])
        return nodes


def _double_weight_scale(constants: _Initializers, layer: str, weight: str, rng: np.random.Generator) -> str | None:
    scale = constants.get(f"{weight}.scale")
    if scale is None:
        return None
    doubled = scale.copy()
    if scale.ndim == 0 or rng.random() < 0.3:
        doubled *= 2
        what = "all channels"
    else:
        channel = int(rng.integers(len(scale)))
        doubled[channel] *= 2
        what = f"channel {channel}"
    constants.set(f"{weight}.scale", doubled)
    return f"weight scale of {what} doubled"


def _double_input_scale(constants: _Initializers, layer: str, weight: str, rng: np.random.Generator) -> str | None:
    names = {constants.chain(layer)[index].input[1] for index in (0, -1)}
    if rng.random() < 0.3:  # what reads the codes only
        names = {constants.chain(layer)[0].input[1]}
    for name in names:
        scale = constants.get(name)
        if scale is None:
            return None
        constants.set(name, scale * np.float32(2))
    return f"{sorted(names)} doubled"


def _lose_sign(constants: _Initializers, layer: str, weight: str, rng: np.random.Generator) -> str | None:
    factors, codes = constants.get(f"{weight}.factors"), constants.get(weight)
    if factors is not None and (factors < 0).any():
        channel = int(rng.choice(np.flatnonzero(factors.ravel() < 0)))
        changed = factors.copy()
        changed.ravel()[channel] *= -1
        constants.set(f"{weight}.factors", changed)
        return f"factor of channel {channel} positive"
    if codes is None or codes.dtype != np.int8:
        return None
    channel = int(rng.integers(len(codes)))
    changed = codes.copy()
    changed[channel] = np.abs(np.maximum(changed[channel], -127))
    constants.set(weight, changed)
    return f"weights of channel {channel} positive"


def _read_as_int8(constants: _Initializers, layer: str, weight: str, rng: np.random.Generator) -> str | None:
    chain = constants.chain(layer)
    if len(chain) == 3 and chain[1].op_type != "Clip":
        return None
    point = constants.get(chain[-1].input[2])
    if point is None or point.dtype != np.uint8:
        return None
    names = {chain[0].input[2], chain[-1].input[2], *(name for node in chain[1:-1] for name in node.input[1:])}
    for name in names:
        values = constants.get(name)
        if values is None:
            return None
        # TensorRT takes the bytes of the zero-point as they are, and codes end at 127
        constants.set(
            name, values.view(np.int8) if name in chain[-1].input else np.minimum(values, 127).astype(np.int8)
        )
    return "codes in int8"


_PLANTS: dict[str, Callable[[_Initializers, str, str, np.random.Generator], str | None]] = {
    "weight scale doubled": _double_weight_scale,
    "input scale doubled": _double_input_scale,
    "sign lost": _lose_sign,
    "read as int8": _read_as_int8,
}
KINDS = tuple(_PLANTS)
