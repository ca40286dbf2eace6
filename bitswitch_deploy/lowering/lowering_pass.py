"""What a lowering pass knows and what it must confess."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.passes import GraphPass
from bitswitch_deploy.lowering.approximation import USUAL, Approximation
from bitswitch_deploy.lowering.ranges import TensorRange
from bitswitch_deploy.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that a pass did other than asked for, or could not do.

    exact: False when the integer codes of the network can differ from the canonical graph.
    approximation: the one that this is; None for an exact change, and for one that the target needs in any case.
    """

    by: str
    where: str
    what: str
    exact: bool
    approximation: Approximation | None = None


@dataclass(slots=True, kw_only=True)
class LoweringContext:
    """Target, weight widths by tensor name, observed ranges by tensor name (none: residuals stay float),
    what the passes may approximate, and what they changed.
    """

    target: Target
    weight_bits: dict[str, int]
    ranges: dict[str, TensorRange]
    approximations: frozenset[Approximation] = USUAL
    changes: list[Change] = field(default_factory=list)


class LoweringPass(GraphPass):
    """A graph pass that reads the target and records what it changed."""

    def __init__(self, context: LoweringContext) -> None:
        self.context = context

    def record(self, where: str, what: str, *, exact: bool, approximation: Approximation | None = None) -> None:
        """Note a change for the table and the manifest."""
        by = type(self).__name__
        self.context.changes.append(Change(by=by, where=where, what=what, exact=exact, approximation=approximation))


def replace_node(graph: gs.Graph, old: gs.Node, new: list[gs.Node]) -> None:
    """Put `new` nodes, the last of which computes the outputs of `old`, in its place."""
    outputs = list(old.outputs)
    index = graph.nodes.index(old)
    old.inputs.clear()
    old.outputs.clear()
    new[-1].outputs = outputs
    graph.nodes[index : index + 1] = new
