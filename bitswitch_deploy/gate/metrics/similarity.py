"""Cosine similarity of embeddings with those of the master at its own width."""

from __future__ import annotations

import numpy as np

from bitswitch_deploy.gate.bootstrap import Floats
from bitswitch_deploy.gate.metrics.metric import Labels, Metric, Outputs, Rows, shape_text


class Cosine(Metric):
    """100 * cosine of the angle between an output and that of the canonical graph at the master's bits; no labels."""

    name = "cosine"
    needs_labels = False
    needs_reference = True

    def measure(self, outputs: Outputs, labels: Labels | None, reference: Outputs | None) -> Rows:
        assert reference is not None
        a = outputs.reshape(len(outputs), -1).astype(np.float64)
        b = reference.reshape(len(reference), -1).astype(np.float64)
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = np.divide((a * b).sum(axis=1), lengths, out=np.zeros(len(a)), where=lengths > 0)
        return np.asarray(cosine, np.float32)[:, None]

    def rows_for(self, rows: Rows, labels: Labels | None) -> Floats:
        return 100.0 * np.asarray(rows, np.float64)

    def _misfit(self, outputs: Outputs, labels: Labels | None) -> tuple[str, str]:
        fits = outputs.ndim > 1 and outputs[0].size > 1
        return ("", "") if fits else (shape_text(outputs, None), "embeddings [n, d] with d of 2 or more")
