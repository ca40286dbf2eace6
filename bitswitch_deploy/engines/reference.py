"""The reference: the canonical graph, node for node, as it is written."""

from __future__ import annotations

from pathlib import Path

from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession

# Idle threads sleep: nothing here is timed, and spinning costs more than it gains on a machine that is shared.
PATIENT = {"session.intra_op.allow_spinning": "0"}


class ReferenceSession(OnnxRuntimeSession):
    """A canonical graph with every optimisation off; everything else is compared with its outputs.

    Raises:
        GraphError: onnxruntime refuses the graph.
    """

    def __init__(self, model: bytes | Path, *, threads: int = 1) -> None:
        super().__init__(model, optimisation="off", threads=threads, session_options=PATIENT)
