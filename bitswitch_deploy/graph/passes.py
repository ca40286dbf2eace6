"""What a graph pass is, and how a list of them is run.

A pass is one class in one file. Its docstring is its list of cases; what it leaves alone is stated there too. It says
honestly whether it changed anything, and it raises rather than leave a graph half rewritten. There is no registry:
the order of passes is a visible list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import onnx_graphsurgeon as gs

from bitswitch_deploy.graph.verify import verify_qdq

_MEND_NETWORK = "give the quantizers of the network such inputs, or leave them to the spec, and write the master again"


class GraphPass(ABC):
    """One rewrite of a graph, in place."""

    @abstractmethod
    def apply(self, graph: gs.Graph) -> bool:
        """Rewrite `graph` and return whether anything changed.

        Raises:
            GraphError: the graph holds a case that the pass must handle and cannot.
        """


def run_passes(graph: gs.Graph, passes: Sequence[GraphPass]) -> tuple[str, ...]:
    """Run `passes` in order and return the names of those that changed the graph.

    The Q/DQ invariants are verified on entry and after each pass, so a fault names the pass that made it.

    Raises:
        GraphError: a pass cannot do its work, or left a graph that breaks an invariant.
    """
    verify_qdq(graph, where="input graph", do=_MEND_NETWORK)
    modified = []
    for graph_pass in passes:
        name = type(graph_pass).__name__
        if graph_pass.apply(graph):
            modified.append(name)
        verify_qdq(graph, where=f"after {name}")
    return tuple(modified)
