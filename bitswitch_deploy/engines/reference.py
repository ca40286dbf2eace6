"""The reference: the canonical graph, node for node, as it is written (DESIGN section 3.2)."""

from __future__ import annotations

from pathlib import Path

from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession


class ReferenceSession(OnnxRuntimeSession):
    """A canonical graph with every optimisation off; everything else is compared with its outputs.

    Raises:
        GraphError: onnxruntime refuses the graph.
    """

    def __init__(self, model: bytes | Path, *, threads: int = 1) -> None:
        super().__init__(model, optimisation="off", threads=threads, session_options={})
