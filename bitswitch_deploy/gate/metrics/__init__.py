"""The metrics that `check` knows, by the names that bitswitch.yaml uses."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.gate.metrics.classification import Recall, TopK
from bitswitch_deploy.gate.metrics.detection import MeanAveragePrecision
from bitswitch_deploy.gate.metrics.likelihood import Perplexity
from bitswitch_deploy.gate.metrics.metric import Metric
from bitswitch_deploy.gate.metrics.segmentation import MeanIou
from bitswitch_deploy.gate.metrics.similarity import Cosine
from bitswitch_deploy.gate.metrics.user_function import UserFunction

METRICS: dict[str, Callable[[], Metric]] = {
    "top-1": lambda: TopK(1),
    "top-5": lambda: TopK(5),
    "recall": Recall,
    "miou": MeanIou,
    "map": MeanAveragePrecision,
    "perplexity": Perplexity,
    "cosine": Cosine,
}


def find_metric(name: str, *, folder: Path) -> Metric:
    """The metric of this name; a module of the user's own is looked for in `folder` first.

    Raises:
        UsageError: there is none.
    """
    if name in METRICS:
        return METRICS[name]()
    if ":" in name:
        return UserFunction(name, folder)
    close = difflib.get_close_matches(name[:80], METRICS, n=1)
    raise UsageError(
        where="metric",
        got=f"{name[:80]!r}" + (f" (did you mean {close[0]}?)" if close else ""),
        allowed=f"{', '.join(METRICS)}, or MODULE:FUNCTION",
        do="choose one of these",
    )
