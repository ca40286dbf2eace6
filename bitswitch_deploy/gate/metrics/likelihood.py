"""Perplexity: scores [n, positions, vocabulary] with labels [n, positions], or [n, vocabulary] with [n]."""

from __future__ import annotations

import numpy as np

from bitswitch_deploy.gate.bootstrap import Floats
from bitswitch_deploy.gate.metrics.metric import Labels, Metric, Outputs, Rows, shape_text


class Perplexity(Metric):
    """-100 ln(perplexity), perplexity = exp(mean over tokens of -ln softmax(scores)[label]).

    On this scale a drop of 1 is a perplexity that is higher by 1 %, whatever it was. Every sample has the same number
    of tokens, so that the mean over samples is the mean over tokens.
    """

    name = "perplexity"
    unit = "% of perplexity"

    def measure(self, outputs: Outputs, labels: Labels | None, reference: Outputs | None) -> Rows:
        assert labels is not None
        scores = outputs.astype(np.float64)
        scores -= scores.max(axis=-1, keepdims=True)
        own = np.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]
        log_likelihood = own - np.log(np.exp(scores).sum(axis=-1))
        return np.asarray(log_likelihood.reshape(len(outputs), -1).mean(axis=1), np.float32)[:, None]

    def rows_for(self, rows: Rows, labels: Labels | None) -> Floats:
        return 100.0 * np.asarray(rows, np.float64)

    def _misfit(self, outputs: Outputs, labels: Labels | None) -> tuple[str, str]:
        got = shape_text(outputs, labels)
        if labels is None or outputs.ndim < 2 or labels.shape != outputs.shape[:-1]:
            return got, "scores [n, positions, vocabulary] and labels [n, positions], or [n, vocabulary] and [n]"
        size, highest = outputs.shape[-1], int(labels.max())
        return (f"token {highest}", f"0 to {size - 1}, the vocabulary of the output") if highest >= size else ("", "")
