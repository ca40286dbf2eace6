"""One lowered graph beside its canonical graph: the error of every part alone, and of all parts together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bitswitch_deploy.diagnosis.blame_result import LoweredError, PartError
from bitswitch_deploy.diagnosis.compared_graphs import (
    OverriddenReference,
    TappedCodes,
    TappedReference,
    Tensors,
)
from bitswitch_deploy.diagnosis.cuts import CutGraph
from bitswitch_deploy.diagnosis.distance import Distance
from bitswitch_deploy.diagnosis.layer_statistics import LayerStatistics
from bitswitch_deploy.diagnosis.lowered_parts import LoweredParts
from bitswitch_deploy.diagnosis.lowering_errors import CutError
from bitswitch_deploy.diagnosis.output_error import OutputDistance, OutputError
from bitswitch_deploy.engines.onnxruntime_engine import Optimisation
from bitswitch_deploy.graph.canonical import CanonicalGraph
from bitswitch_deploy.master import Master

Array = npt.NDArray[Any]

# Below it an error is float rounding, and its effect is not worth a run of the network.
_NOISE = 1e-8
# Float rounding of a whole network; a single code that is another one comes to 60 dB or less.
NO_EFFECT_DB = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """How a lowered graph runs here: with which optimisations and session options of onnxruntime."""

    optimisation: Optimisation
    session_options: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweredErrors:
    """What was found; the fields of WidthBlame that have these names."""

    lowered: OutputError
    lowered_layers: tuple[LoweredError, ...]
    parts: tuple[PartError, ...]
    n_parts: int
    statistics: tuple[LayerStatistics, ...]


class LoweredComparison:
    """Compares one lowered graph with its canonical graph, batch by batch.

    Args:
        master: its layers and weights. canonical, lowered: the two graphs; both hold all their weights.
        runtime: what runs the lowered graph.

    Raises:
        GraphError: onnxruntime refuses a graph.
    """

    def __init__(
        self, master: Master, canonical: CanonicalGraph, lowered: onnx.ModelProto, *, runtime: Runtime
    ) -> None:
        self._parts = LoweredParts(master, canonical, lowered)
        self._cut = self._parts.cut
        self._codes = _code_places(self._cut)
        self._output = canonical.model.graph.output[0].name
        self._start(canonical.model, lowered, runtime)
        self._whole = OutputDistance("lowered")
        self._together = {name: (Distance(), OutputDistance("lowered")) for name in self._codes}
        self._effects = {cut.tensor: OutputDistance("part") for cut in self._cut.cuts if self._stands_for(cut.tensor)}

    def _start(self, canonical: onnx.ModelProto, lowered: onnx.ModelProto, runtime: Runtime) -> None:
        self._reference = TappedReference(canonical, self._parts.reference_tensors)
        self._running = TappedCodes(
            lowered,
            tuple(self._codes.values()),
            optimisation=runtime.optimisation,
            session_options=runtime.session_options,
        )
        self._overridden = OverriddenReference(canonical, self._cut.compared)

    def add(self, x: Array, y: Array | None) -> Array:
        """Add one batch of inputs [n, ...] and labels [n]; return the output of the canonical graph.

        Raises:
            CheckFailedError: an output is not finite.
            DataError: a label is no class.
        """
        reference = self._reference.run(x)
        self._add_effects(x, y, reference, self._parts.add(x, reference))
        self._add_running(x, y, reference)
        return reference[self._output]

    def _add_effects(self, x: Array, y: Array | None, reference: Tensors, own: Tensors) -> None:
        for name, effect in self._effects.items():
            tensor = self._stands_for(name)
            if tensor is not None and reference[tensor].shape == own[name].shape:
                is_same = _is_same(reference[tensor], own[name])
                output = reference[self._output] if is_same else self._overridden.run(x, {tensor: own[name]})
                effect.add(output, reference[self._output], y)

    def _add_running(self, x: Array, y: Array | None, reference: Tensors) -> None:
        output, values = self._running.run(x)
        self._whole.add(output, reference[self._output], y)
        given: Tensors = {}
        for tensor, dequantized in self._codes.items():
            if values[dequantized].shape != reference[tensor].shape:
                continue
            given[tensor] = values[dequantized]
            distance, effect = self._together[tensor]
            distance.add(reference[tensor], values[dequantized])
            effect.add(self._overridden.run(x, given), reference[self._output], y)

    def _stands_for(self, cut: str) -> str | None:
        """The tensor of the canonical graph in whose place a cut stands."""
        return _stand_ins(self._cut).get(cut, cut)

    def result(self) -> LoweredErrors:
        """Everything about the batches so far."""
        effects = {name: found for name, each in self._effects.items() if (found := each.result()).n}
        errors = [_by_effect(each, effects.get(each.tensor)) for each in self._parts.result()]
        layer_of = {cut.tensor: cut.layer for cut in self._cut.cuts}
        together = {
            name: (distance.result(), found)
            for name, (distance, effect) in self._together.items()
            if (found := effect.result()).n
        }
        return LoweredErrors(
            lowered=self._whole.result(),
            lowered_layers=tuple(
                LoweredError(tensor=name, layer=layer_of[self._codes[name]], cumulative=error, output=output)
                for name, (error, output) in together.items()
            ),
            parts=tuple(
                PartError(part=each, effect=effects.get(each.tensor)) for each in errors if each.verdict != "exact"
            ),
            n_parts=len(errors),
            statistics=self._parts.statistics(),
        )


def _by_effect(part: CutError, effect: OutputError | None) -> CutError:
    """A part that is off by what its readers round away is no fault: lowering may choose a bias within a code."""
    if part.verdict != "fault" or effect is None or effect.sqnr_db < NO_EFFECT_DB:
        return part
    return replace(part, verdict="approximate", what=f"{part.what}; nothing of it reaches the output")


def _code_places(cut: CutGraph) -> dict[str, str]:
    """Where the lowered graph has codes: tensor of the canonical graph -> dequantized tensor, in its order."""
    added = _stand_ins(cut)
    places = {added.get(each.tensor, each.tensor): each.tensor for each in cut.cuts if each.part.endswith("codes")}
    return {tensor: name for tensor, name in places.items() if tensor is not None}


def _stand_ins(cut: CutGraph) -> dict[str, str | None]:
    """The tensor of the canonical graph that is in added codes for all its readers, by their name."""
    places = {each.result: None if each.is_edge else each.residual_of for each in cut.added}
    return {result: tensor if tensor in cut.compared else None for result, tensor in places.items()}


def _is_same(reference: Array, own: Array) -> bool:
    noise = np.ravel(own - reference)
    return float(noise @ noise) <= _NOISE * float(np.ravel(reference) @ np.ravel(reference))
