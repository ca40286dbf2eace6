"""From a prepared, trained network to a master: the skeleton, int8 codes, scales, and one BatchNorm per width."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bitswitch_deploy.errors import MasterError
from bitswitch_deploy.master import Master, assemble_master, write_master
from bitswitch_deploy.master.spec import ActivationKind, LayerSpec, MasterSpec, MeasuredAccuracy
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
    captured = capture_prepared(network.model, example_input)
    contents = _collect(captured, network.model)
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


def capture_prepared(model: nn.Module, example_input: tuple[Tensor, ...]) -> CapturedNetwork:
    """The skeleton of a prepared network, as its master has it.

    Raises:
        UsageError, GraphError: as `build_master`.
    """
    check_example(example_input)
    captured = capture_skeleton(float_skeleton(model).cpu().eval(), tuple(each.cpu() for each in example_input))
    named = model.named_modules()
    check_layers(captured, (path for path, module in named if isinstance(module, QUANTIZED_LAYERS)))
    return captured


def _collect(captured: CapturedNetwork, model: nn.Module) -> _Contents:
    """Take every parameter of the captured graph from where it lives: a quantizer, a BatchNorm copy, the network."""
    modules = dict(model.named_modules())
    floats = {**dict(model.named_parameters()), **dict(model.named_buffers())}
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
    quantizer, inputs = module.weight_quantizer, module.input_quantizer
    if not torch.isfinite(module.weight).all():
        # it would become a code like any other
        raise MasterError(
            where=f"weight {layer.weight}",
            got="NaN or infinity",
            allowed="finite numbers",
            do="train from the last state whose loss was finite",
        )
    codes = quantizer.codes(module.weight, quantizer.bits)
    spec = quantized_spec(layer, module, inputs.codes_kind)
    contents.layers.append(spec)
    contents.tensors[layer.weight] = _array(codes.T if layer.transposed else codes)
    contents.tensors[spec.weight_scale] = _array(quantizer.exported_scale())
    if isinstance(inputs, ActivationQuantizer):
        contents.tensors[spec.input_scale] = _array(inputs.exported_scales())


def _add_pinned(contents: _Contents, layer: CapturedLayer, weight: Tensor) -> None:
    contents.layers.append(pinned_spec(layer))
    contents.tensors[layer.weight] = _array(weight.T if layer.transposed else weight)


def quantized_spec(layer: CapturedLayer, module: QuantizedLayer, activation: ActivationKind) -> LayerSpec:
    """What a master says of a quantized layer. activation: the codes of its input."""
    granularity = module.weight_quantizer.granularity
    if granularity.kind == "per_channel":
        granularity = Granularity(kind="per_channel", axis=layer.channel_axis)
    return LayerSpec(
        name=layer.name,
        operator=layer.operator,
        weight=layer.weight,
        granularity=granularity,
        activation=activation,
    )


def pinned_spec(layer: CapturedLayer) -> LayerSpec:
    """What a master says of a layer that stays in float."""
    return LayerSpec(
        name=layer.name,
        operator=layer.operator,
        weight=layer.weight,
        granularity=PER_TENSOR,
        activation="none",
        pinned=True,
    )


def _array(tensor: Tensor) -> npt.NDArray[np.generic]:
    return np.array(tensor.detach().cpu().numpy(), order="C")  # ascontiguousarray would make a scalar 1-D
