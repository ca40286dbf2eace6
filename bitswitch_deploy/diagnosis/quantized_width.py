"""What quantization costs at one width, layer by layer: each alone, and all up to each."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from bitswitch_deploy.diagnosis.blame_result import LayerError
from bitswitch_deploy.diagnosis.output_error import OutputDistance, OutputError
from bitswitch_deploy.diagnosis.switchable_graph import SwitchableGraph
from bitswitch_deploy.tensors import WidthAssignment

Array = npt.NDArray[Any]


class QuantizedWidth:
    """Measures one width of a network, batch by batch.

    Args:
        graph: the network. assignment: the width of each layer.
    """

    def __init__(self, graph: SwitchableGraph, assignment: WidthAssignment) -> None:
        self._graph, self._assignment = graph, assignment
        self._float, self._whole = OutputDistance("in float"), OutputDistance("canonical")
        self._isolated = {name: OutputDistance(name) for name in graph.layers}
        self._cumulative = {name: OutputDistance(name) for name in graph.layers}

    def add(self, x: Array, y: Array | None, canonical: Array) -> None:
        """Add one batch of inputs [n, ...] and labels [n], with the output of the canonical graph.

        Raises:
            CheckFailedError: an output is not finite.
            DataError: a label is no class.
        """
        layers = self._graph.layers
        in_float = self._graph.run(x, self._assignment, ())
        self._float.add(in_float, in_float, y)
        self._whole.add(canonical, in_float, y)
        for index, name in enumerate(layers):
            alone = self._graph.run(x, self._assignment, (name,))
            self._isolated[name].add(alone, in_float, y)
            # the first one alone is all up to it, and all up to the last one are the canonical graph
            together = alone if index == 0 else canonical
            if 0 < index < len(layers) - 1:
                together = self._graph.run(x, self._assignment, layers[: index + 1])
            self._cumulative[name].add(together, in_float, y)

    @property
    def in_float(self) -> OutputError:
        """The network in float; against itself, so only its top-1 tells anything."""
        return self._float.result()

    @property
    def canonical(self) -> OutputError:
        """The canonical graph against the network in float."""
        return self._whole.result()

    def layers(self) -> tuple[LayerError, ...]:
        """The errors so far, in the order in which layers run."""
        return tuple(
            LayerError(
                layer=name,
                bits=self._assignment.bits_of(name),
                isolated=self._isolated[name].result(),
                cumulative=self._cumulative[name].result(),
            )
            for name in self._graph.layers
        )
