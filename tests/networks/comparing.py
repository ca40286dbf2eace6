"""Outputs and graphs compared by numbers that a test can judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from bitswitch_deploy.master import Master
from bitswitch_deploy.tensors import WidthAssignment
from tests.networks.integer_oracle import derived, stored_codes

Array = np.ndarray[Any, np.dtype[Any]]


def relative_errors(reference: Array, other: Array) -> Array:
    """Largest difference of each sample over its largest value, [n]."""
    flat, difference = reference.reshape(len(reference), -1), (other - reference).reshape(len(reference), -1)
    return np.asarray(np.abs(difference).max(1) / np.abs(flat).max(1))


def agreement(reference: Array, other: Array) -> float:
    """Share of the samples with the same class."""
    return float((reference.argmax(1) == other.argmax(1)).mean())


def wrong_weights(model: onnx.ModelProto, master: Master, widths: WidthAssignment) -> list[str]:
    """Layers whose integers in `model` are not the double rounding of the master's."""
    spec = master.spec
    wrong = []
    for layer in spec.layers:
        if layer.pinned:
            continue
        codes = np.asarray(master.tensors[layer.weight])
        wanted = derived(codes, from_bits=spec.bits, to_bits=widths.bits_of(layer.name), rounding=spec.rounding)
        stored = stored_codes(model, layer.weight, transposed=layer.operator == "Gemm")
        if not np.array_equal(stored, wanted):
            wrong.append(layer.name)
    return wrong
