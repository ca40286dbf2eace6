"""The stage after joint training: each pass draws a width for every layer, so that mixtures are trained as well.

    hasb      for each width b from high to low one pass and update; layers leave b by the roulette (`roulette`)
    uniform   the same with equal chances for every layer
    random    RFQuant: one pass with all layers at the highest width, then one for each further width with all layers
              drawn evenly; RFQuant has it with `update: accumulated`, `distillation: in_batch`, `teacher_share: 0.5`

The scales' ALRS rate is that of the pass's base width b. Draws depend on (seed, step, pass) alone, on all replicas
alike. A fast execution compiles one graph for all mixtures (`mixture`); on several replicas, and with the distortion
loss, which looks into the network as it computes, the quantizers of activations alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from bitswitch_deploy.errors import CheckpointError
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.batches import Batch
from bitswitch_deploy.training.bit_schedule import is_event, resting_layers, resting_share
from bitswitch_deploy.training.distortion import NormOutputs
from bitswitch_deploy.training.execution import Execution, Forward
from bitswitch_deploy.training.mixture import MixtureForward
from bitswitch_deploy.training.prepare import PreparedNetwork
from bitswitch_deploy.training.quantizers import ActivationQuantizer
from bitswitch_deploy.training.recipe import SupernetSettings
from bitswitch_deploy.training.replicas import replica_count
from bitswitch_deploy.training.roulette import draw_widths, threshold
from bitswitch_deploy.training.schedule import Position
from bitswitch_deploy.training.sensitivity import quantized_layers
from bitswitch_deploy.training.stages import JointStage, is_initialised
from bitswitch_deploy.training.transitional import with_transitions


class SupernetStage(JointStage):
    """Joint training of mixtures of widths; what it does not say here it does as `JointStage`.

    Args:
        network: trained jointly; with transitional BatchNorm it is changed in place.
        settings: of the stage. sensitive: layers that the roulette favours; `restore_own` brings them, too.
        samples: in the training set. seed: of the draws. execution: where and how; None: on the CPU.
    """

    name = "supernet"
    _settings: SupernetSettings

    def __init__(
        self,
        network: PreparedNetwork,
        settings: SupernetSettings,
        *,
        sensitive: Sequence[str] = (),
        samples: int,
        seed: int,
        execution: Execution | None = None,
    ) -> None:
        if settings.batchnorm == "transitional":
            with_transitions(network.model)
        super().__init__(network, settings, samples=samples, execution=execution)
        self._mixes = self._execution.fast and replica_count() == 1 and not settings.distortion
        self._mixture: MixtureForward | None = None
        for module in self.model.modules():
            if isinstance(module, ActivationQuantizer):
                module.is_compiled = self._execution.fast and not self._mixes
        self._seed = seed
        self._layers = quantized_layers(self.model)
        self._sensitive = tuple(sensitive)
        self._resting: tuple[str, ...] = ()
        self._outputs = NormOutputs(self.model) if settings.distortion else None

    def step(self, batch: Batch, position: Position) -> Tensor:
        starts_epoch = position.step % position.per_epoch == 0
        if self._settings.bit_scheduler and starts_epoch and is_event(position.epoch, position.epochs):
            share = resting_share(position.epoch, position.epochs)
            self._resting = resting_layers(self._layers, self._candidates(), share=share)
        losses = super().step(batch, position)
        if self._outputs is not None:
            self._outputs.clear()
        return losses

    def own_state(self) -> dict[str, Any]:
        mine = {"sensitive": list(self._sensitive), "resting": list(self._resting)}
        return {**super().own_state(), **mine}

    def restore_own(self, state: dict[str, Any], source: str) -> None:
        super().restore_own(state, source)
        self._sensitive = self._known(state, "sensitive", source)
        self._resting = self._known(state, "resting", source)

    def _is_the_same_in_every_step(self) -> bool:
        return False

    def _forward_of_step(self) -> Forward:
        if not self._mixes or not is_initialised(self.model):
            return self._forward.plain
        if self._mixture is None:
            self._mixture = MixtureForward(self.model, self._execution)
        return self._mixture

    def _width(self, bits: int, position: Position) -> WidthAssignment:
        settings = self._settings
        place = self._widths.index(bits)
        if settings.draw == "random" and place == 0:
            return WidthAssignment(default=bits)
        sigma = threshold(settings.threshold, position.epoch, position.epochs, warmup_epochs=settings.warmup_epochs)
        return draw_widths(
            bits,
            self._candidates(),
            self._sensitive if settings.draw == "hasb" else (),
            sigma=1.0 if settings.draw == "random" else sigma,
            generator=np.random.default_rng([self._seed, 3, position.step, place]),
        )

    def _penalty(self, bits: int) -> Tensor | None:
        if self._outputs is None:
            return None
        if bits == self._widths[0]:
            self._outputs.take_as_target()
            return None
        candidates = self._candidates()
        lowest = [path for path, layer in self._layers.items() if layer.bits == min(candidates[path])]
        loss = self._outputs.distortion(lowest)
        return None if loss is None else self._settings.distortion * loss

    def _candidates(self) -> dict[str, tuple[int, ...]]:
        """Widths that each layer may take now."""
        rested = self._widths[:-1] or self._widths
        return {path: rested if path in self._resting else self._widths for path in self._layers}

    def _known(self, state: dict[str, Any], key: str, source: str) -> tuple[str, ...]:
        names = state.get(key)
        if not isinstance(names, list) or any(name not in self._layers for name in names):
            raise CheckpointError(
                where=source,
                got=f"{key} = {names!r}",
                allowed="layers of this network",
                do="resume with the recipe of the run",
            )
        return tuple(names)
