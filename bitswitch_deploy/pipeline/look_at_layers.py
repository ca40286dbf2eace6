"""What a report shows of the layers of one width: the error of each part of the lowered graph, and the codes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from bitswitch_deploy.diagnosis.compared_graphs import TappedReference
from bitswitch_deploy.diagnosis.edit_model import embedded
from bitswitch_deploy.diagnosis.layer_look import LayerLook
from bitswitch_deploy.diagnosis.lowered_parts import LoweredParts
from bitswitch_deploy.graph.canonical import CanonicalGraph
from bitswitch_deploy.master import Master
from bitswitch_deploy.validation.dataset import Dataset

_SAMPLES = 32
# Every tensor of both graphs is kept for one batch, a few hundred times the input.
_INPUT_ELEMENTS, _MAX_BATCH = 1 << 16, 32


def look_at_layers(master: Master, canonical: CanonicalGraph, lowered: onnx.ModelProto, samples: Dataset) -> LayerLook:
    """Two runs over a few samples, evenly spaced over the data set. Both graphs hold their weights.

    Raises:
        GraphError: onnxruntime refuses a graph.
        DataError: a sample cannot be decoded.
    """
    canonical = replace(canonical, model=embedded(canonical.model, canonical.large))
    parts = LoweredParts(master, canonical, lowered)
    reference = TappedReference(canonical.model, parts.reference_tensors)
    n = samples.fixed_batch or min(_SAMPLES, samples.n)
    chosen = (np.arange(n) * samples.n // n).tolist()
    size = batch_size(samples)
    for start in range(0, n, size):
        x = np.concatenate([samples.source.read(index, index + 1) for index in chosen[start : start + size]])
        parts.add(x, reference.run(x))
    label = canonical.plan.assignment.label
    return LayerLook(label=label, n=n, parts=parts.result(), statistics=parts.statistics())


def batch_size(samples: Dataset) -> int:
    """Samples in one run where every tensor is looked at: the network's own number, or as many as memory is kept for.

    Raises:
        DataError: the first sample cannot be decoded.
    """
    if samples.fixed_batch is not None:
        return samples.fixed_batch
    return min(max(_INPUT_ELEMENTS // samples.source.read(0, 1).size, 1), _MAX_BATCH)
