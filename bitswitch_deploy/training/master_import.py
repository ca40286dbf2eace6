"""From a master back to the prepared network that it was made of, to train on: the way of `master_export` reversed.

A master holds what its network computes with, so at the widths that both have the network computes what it computed
when the master was written, bit for bit. A weight is its code times its scale: where between two codes training had it
is lost. Other widths begin as `carry_over` says.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bitswitch_deploy.errors import CheckpointError
from bitswitch_deploy.master import Master, read_master
from bitswitch_deploy.master.sharded import INDEX_SUFFIX, SUFFIX
from bitswitch_deploy.master.spec import LayerSpec
from bitswitch_deploy.training.capture import CapturedLayer, CapturedNetwork
from bitswitch_deploy.training.carry_over import sources_of
from bitswitch_deploy.training.checkpoint import first_names
from bitswitch_deploy.training.layers import QUANTIZED_LAYERS, SwitchableBatchNorm
from bitswitch_deploy.training.master_export import capture_prepared, pinned_spec, quantized_spec
from bitswitch_deploy.training.prepare import PreparedNetwork
from bitswitch_deploy.training.quantizers import ActivationQuantizer
from bitswitch_deploy.training.structure import difference


def is_master(path: Path) -> bool:
    """Whether a file is named as a master, in one file or several, and not as a state of training."""
    return path.name.endswith((SUFFIX, INDEX_SUFFIX))


def import_master(path: Path | str, network: PreparedNetwork, example_input: tuple[Tensor, ...]) -> None:
    """Put the weights, scales and BatchNorms of a master into a network that `prepare` made, in place.

    Widths may be others than the master's, and sizes of inputs; tie rule, container, which layers are quantized and
    how, and what is computed between them must be the same. Nothing is changed unless everything fits.

    Args:
        path: the master. network: on any device. example_input: inputs of one call, [batch, ...] each.

    Raises:
        MasterError: the file is damaged or no master.
        CheckpointError: it is the master of another network, or of one that was prepared otherwise.
        UsageError, GraphError: as `build_master`, of the network.
    """
    master = read_master(path)
    captured = capture_prepared(network.model, example_input)
    modules = dict(network.model.named_modules())
    transfer = _Transfer(master=master, captured=captured, modules=modules, network=network, source=str(path))
    transfer.check()
    transfer.carry_out()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Transfer:
    """A master, and the network that takes it over."""

    master: Master
    captured: CapturedNetwork
    modules: dict[str, nn.Module]
    network: PreparedNetwork
    source: str

    def check(self) -> None:
        """See that the master is one of this network.

        Raises:
            CheckpointError: it is not.
        """
        spec, options = self.master.spec, self.network.options
        self._compare("rounding", spec.rounding.value, options.rounding.value)
        self._compare("activation_container", spec.activation_container, options.activation_container)
        layers = {layer.name: layer for layer in spec.layers}
        self._compare_names("layers", set(layers), {layer.name for layer in self.captured.layers})
        for layer in self.captured.layers:
            found = layers[layer.name]
            got, wanted = asdict(found), asdict(self._wanted(layer, found))
            for key, value in got.items():
                self._compare(f"layer {layer.name}, {key}", value, wanted[key])
        stored = {*(layer.weight for layer in spec.layers), *spec.switchable, *spec.parameters}
        self._compare_names("parameters", stored, set(self.captured.parameters))
        copies = ("one for all widths", "one for each width")
        for name in self.captured.parameters:
            self._compare(name, copies[name in spec.switchable], copies[self._is_switchable(name)])
            shape = self._values(name).shape[1 if name in spec.switchable else 0 :]
            self._compare(f"shape of {name}", list(shape), list(self._place(name, 0).shape))
        apart = difference(self.master.skeleton.graph, self.captured.model.graph)
        if apart is not None:
            raise self._unfit(f"it computes {apart[0]}", f"{apart[1]}, as this network does")

    @torch.no_grad()
    def carry_out(self) -> None:
        """Copy every value to its place."""
        spec = self.master.spec
        quantized = {layer.weight: layer for layer in spec.layers if not layer.pinned}
        sources = sources_of(self.network.options.widths, spec.widths)
        for name in self.captured.parameters:
            values = self._values(name)
            if name in quantized:
                self._fill_quantized(quantized[name], values, sources)
            elif name in spec.switchable:
                for index, source in enumerate(sources):
                    self._place(name, index).copy_(values[source])
            else:
                self._place(name, 0).copy_(values)

    def _fill_quantized(self, layer: LayerSpec, codes: Tensor, sources: list[int]) -> None:
        spec, now = self.master.spec, self.network.options.widths
        module = self.modules[layer.name]
        if not isinstance(module, QUANTIZED_LAYERS):
            raise AssertionError("`check` has compared the layers")
        weights, inputs = module.weight_quantizer, module.input_quantizer
        scale = self._tensor(layer.weight_scale)
        module.weight.copy_(codes * weights.in_shape_of(codes, scale))
        weights.scale.copy_(scale * 2.0 ** (spec.bits - now[0]))
        if isinstance(inputs, ActivationQuantizer):
            scales = self._tensor(layer.input_scale)
            learned = {f"scales.{index}": scales[source] for index, source in enumerate(sources)}
            seen = torch.tensor([bits in spec.widths for bits in now])
            sign = torch.tensor(layer.activation == "signed", dtype=inputs.signed.dtype)
            inputs.load_state_dict({**learned, "initialised": seen, "signed": sign})

    def _wanted(self, layer: CapturedLayer, found: LayerSpec) -> LayerSpec:
        """What the master of this network would say of a layer. found: what this one says."""
        module = self.modules.get(layer.name)
        if not isinstance(module, QUANTIZED_LAYERS):
            return pinned_spec(layer)
        inputs = module.input_quantizer
        undecided = isinstance(inputs, ActivationQuantizer) and not inputs.has_sign and found.activation != "none"
        return quantized_spec(layer, module, found.activation if undecided else inputs.codes_kind)

    def _is_switchable(self, name: str) -> bool:
        return isinstance(self.modules.get(name.rpartition(".")[0]), SwitchableBatchNorm)

    def _place(self, name: str, index: int) -> Tensor:
        """Where the network has a parameter; of a switchable one that of its width number `index`."""
        path, _, leaf = name.rpartition(".")
        owner = self.modules[path]
        value = getattr(owner.copies[index] if isinstance(owner, SwitchableBatchNorm) else owner, leaf)
        if not isinstance(value, Tensor):
            raise AssertionError(f"{name} was captured as a tensor")
        return value

    def _values(self, name: str) -> Tensor:
        """A parameter of the master as float32, in the layout of its module."""
        values = self._tensor(name).float()
        return values.T if name in {layer.weight for layer in self.captured.layers if layer.transposed} else values

    def _tensor(self, name: str) -> Tensor:
        return torch.from_numpy(np.array(self.master.tensors[name]))

    def _compare_names(self, what: str, got: set[str], wanted: set[str]) -> None:
        if got != wanted:
            missing, unknown = (first_names(sorted(names)) for names in (wanted - got, got - wanted))
            raise self._unfit(f"{what}: missing {missing}; unknown {unknown}", f"the {len(wanted)} of this network")

    def _compare(self, what: str, got: object, wanted: object) -> None:
        if got != wanted:
            raise self._unfit(f"{what}: {got}", str(wanted))

    def _unfit(self, got: str, allowed: str) -> CheckpointError:
        return CheckpointError(
            where=self.source,
            got=got,
            allowed=allowed,
            do="use a master of this network, prepared with the same options but for the widths",
        )
