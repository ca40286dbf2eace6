"""How sensitive each quantized layer is: trace of the Hessian of the loss per weight, computed or from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from bitswitch_deploy.errors import InputFileError
from bitswitch_deploy.records import Reader
from bitswitch_deploy.training.batches import Batch
from bitswitch_deploy.training.hessian import hessian_traces
from bitswitch_deploy.training.layers import QUANTIZED_LAYERS, QuantizedLayer, float_skeleton
from bitswitch_deploy.training.replicas import averaged

MIN_SAMPLES = 1024
MAX_VECTORS = 100  # a standard error of 10 to 16 % where it was measured; layers are only compared with the mean

_READER = Reader(error=InputFileError, do="write the file by tools/hessian_costs.py, or leave sensitivities out")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Traces:
    traces: tuple[tuple[str, float], ...]


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantized layers of a prepared network by path, in module order."""
    return {path: module for path, module in model.named_modules() if isinstance(module, QUANTIZED_LAYERS)}


def read_sensitivities(path: Path, layers: Sequence[str]) -> dict[str, float]:
    """The sensitivities in a `.traces.json` of tools/hessian_costs.py, in the order of `layers`.

    Raises:
        InputFileError: it cannot be read, a value is not finite, or it is of other layers.
    """
    try:
        content = _READER.load_json(path.read_text(encoding="utf-8"), where=str(path))
    except (OSError, UnicodeDecodeError) as exc:
        raise _READER.refusal(str(path), f"cannot be read: {exc}", "a file of traces", is_text=True) from exc
    if sorted(content) != sorted(layers):
        raise _READER.refusal(
            str(path), f"traces of {', '.join(content) or 'no layer'}", ", ".join(layers), is_text=True
        )
    read = _READER.decode(_Traces, {"traces": content}, where=str(path))
    return {layer: dict(read.traces)[layer] for layer in layers}


def measured_sensitivities(model: nn.Module, batches: Sequence[Batch], *, seed: int) -> dict[str, float]:
    """Traces per weight, not below 0, at the dequantized codes of the highest width, by layer.

    Activations are in float, as a quantizer has no second derivative; BatchNorm is that of the highest width, in
    evaluation mode. Several replicas average what each finds on its own samples.

    Args:
        model: prepared, trained jointly. batches: training samples, MIN_SAMPLES or more. seed: of the vectors.
    """
    layers = quantized_layers(model)
    skeleton = float_skeleton(model).eval()
    with torch.no_grad():
        for path, layer in layers.items():
            skeleton.get_parameter(f"{path}.weight").copy_(
                layer.weight_quantizer(layer.weight, layer.weight_quantizer.bits)
            )
    skeleton.requires_grad_(True)

    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(skeleton(inputs), labels)

    parameters = {path: skeleton.get_parameter(f"{path}.weight") for path in layers}
    samples = [(batch.inputs, batch.labels) for batch in batches]
    traces = hessian_traces(loss, parameters, samples, seed=seed, max_vectors=MAX_VECTORS)
    device = next(model.parameters()).device
    found = averaged(torch.tensor([trace.mean for trace in traces.values()], device=device))
    return dict(zip(traces, found.tolist(), strict=True))
