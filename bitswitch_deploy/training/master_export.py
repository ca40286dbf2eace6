"""From a prepared, trained network to a master: the skeleton, int8 codes, scales, and one BatchNorm per width."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bitswitch_deploy.master import Master, assemble_master, write_master
from bitswitch_deploy.master.spec import LayerSpec, MasterSpec, MeasuredAccuracy
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.tensors import PER_TENSOR, Granularity
from bitswitch_deploy.training.capture import CapturedLayer, CapturedNetwork, capture_skeleton, check_layers
from bitswitch_deploy.training.layers import QUANTIZED_LAYERS, QuantizedLayer, SwitchableBatchNorm, float_skeleton
from bitswitch_deploy.training.prepare import PreparedNetwork
from bitswitch_deploy.training.quantizers import ActivationQuantizer
from bitswitch_deploy.training.tracing import check_example


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """What a master says about its training: accuracy at each width, preprocessing of raw pixels, provenance pairs."""

    accuracy: tuple[MeasuredAccuracy, ...] = ()
    preprocessing: Preprocessing | None = None
    provenance: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True, kw_only=True)
class _Contents:
    layers: list[LayerSpec] = field(default_factory=list)
    switchable: list[str] = field(default_factory=list)
    partners: list[tuple[str, str]] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    tensors: dict[str, npt.NDArray[np.generic]] = field(default_factory=dict)


def save_master(
    network: PreparedNetwork,
    example_input: tuple[Tensor, ...],
    path: Path | str,
    *,
    metrics: tuple[MeasuredAccuracy, ...] = (),
    preprocessing: Preprocessing | None = None,
    provenance: tuple[tuple[str, str], ...] = (),
) -> Master:
    """Write the master of a trained network to `path`, atomically, and return it.

    Args:
        network: as `prepare` returned it, trained or loaded by `import_checkpoint`; on any device.
        example_input: inputs of one call, [batch, ...] each, on any device.
        metrics: what was measured at each width. preprocessing: from raw pixels to the input of the network.
        provenance: (key, text) pairs: recipe, seed, versions.

    Raises:
        UsageError, GraphError, MasterError: as `build_master`.
        OutputError: the file cannot be written.
    """
    record = TrainingRecord(accuracy=metrics, preprocessing=preprocessing, provenance=provenance)
    master = build_master(network, example_input, record)
    write_master(master, Path(path))
    return master


def build_master(network: PreparedNetwork, example_input: tuple[Tensor, ...], record: TrainingRecord) -> Master:
    """The master of a trained network; codes and scales are those that its forward pass computes with.

    Args:
        network: as `prepare` returned it, trained or loaded by `import_checkpoint`; on any device.
        example_input: inputs of one call, [batch, ...] each, on any device.
        record: what was measured and how it was trained.

    Raises:
        UsageError: a layer has seen no training batch at some width, or the network cannot be exported.
        GraphError: a quantized layer does not appear in the exported graph as one operator.
        MasterError: a value is not finite.
    """
    modules = dict(network.model.named_modules())
    skeleton = float_skeleton(network.model).cpu().eval()
    check_example(example_input)
    captured = capture_skeleton(skeleton, tuple(each.cpu() for each in example_input))
    check_layers(captured, (path for path, module in modules.items() if isinstance(module, QUANTIZED_LAYERS)))
    floats = {**dict(skeleton.named_parameters()), **dict(skeleton.named_buffers())}
    contents = _collect(captured, modules, floats)
    options = network.options
    spec = MasterSpec(
        bits=options.widths[0],
        widths=options.widths,
        rounding=options.rounding,
        activation_container=options.activation_container,
        layers=tuple(contents.layers),
        switchable=tuple(contents.switchable),
        parameters=tuple(contents.parameters),
        inputs=captured.inputs,
        outputs=captured.outputs,
        preprocessing=record.preprocessing,
        accuracy=record.accuracy,
        provenance=record.provenance,
        partners=tuple(contents.partners),
    )
    return assemble_master(spec=spec, tensors=contents.tensors, skeleton=captured.model)


def _collect(captured: CapturedNetwork, modules: dict[str, nn.Module], floats: dict[str, Tensor]) -> _Contents:
    """Take every parameter of the captured graph from where it lives: a quantizer, a BatchNorm copy, the skeleton."""
    contents = _Contents()
    for layer in captured.layers:
        module = modules.get(layer.name)
        if isinstance(module, QUANTIZED_LAYERS):
            _add_quantized(contents, layer, module)
        else:
            _add_pinned(contents, layer, floats[layer.weight])
    weights = {layer.weight for layer in contents.layers}
    for name in captured.parameters:
        path, _, leaf = name.rpartition(".")
        module = modules.get(path)
        if isinstance(module, SwitchableBatchNorm):
            contents.switchable.append(name)
            if module.partner is not None:
                contents.partners.append((name, module.partner))
            contents.tensors[name] = _array(torch.stack([getattr(copy, leaf).detach() for copy in module.copies]))
        elif name not in weights:
            contents.parameters.append(name)
            contents.tensors[name] = _array(floats[name])
    return contents


def _add_quantized(contents: _Contents, layer: CapturedLayer, module: QuantizedLayer) -> None:
    quantizer = module.weight_quantizer
    codes = quantizer.codes(module.weight, quantizer.bits)
    granularity = quantizer.granularity
    if granularity.kind == "per_channel":
        granularity = Granularity(kind="per_channel", axis=layer.channel_axis)
    inputs = module.input_quantizer
    spec = LayerSpec(
        name=layer.name,
        operator=layer.operator,
        weight=layer.weight,
        granularity=granularity,
        activation=inputs.codes_kind,
    )
    contents.layers.append(spec)
    contents.tensors[layer.weight] = _array(codes.T if layer.transposed else codes)
    contents.tensors[spec.weight_scale] = _array(quantizer.exported_scale())
    if isinstance(inputs, ActivationQuantizer):
        contents.tensors[spec.input_scale] = _array(inputs.exported_scales())


def _add_pinned(contents: _Contents, layer: CapturedLayer, weight: Tensor) -> None:
    contents.layers.append(
        LayerSpec(
            name=layer.name,
            operator=layer.operator,
            weight=layer.weight,
            granularity=PER_TENSOR,
            activation="none",
            pinned=True,
        )
    )
    contents.tensors[layer.weight] = _array(weight.T if layer.transposed else weight)


def _array(tensor: Tensor) -> npt.NDArray[np.generic]:
    return np.array(tensor.detach().cpu().numpy(), order="C")  # ascontiguousarray would make a scalar 1-D
