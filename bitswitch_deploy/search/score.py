"""How good the outputs for each sample are: its loss, and whether the choice is right. Float64, one row a sample.

    divergence       loss = KL(softmax(r) || softmax(z))    right: argmax z = y, without labels argmax z = argmax r
    cross_entropy    loss = -log softmax(z)[y]              right: argmax z = y

z are the outputs [n, classes], r those of the reference, which is the master at its highest trained width.

Divergence is what a search goes by. Cross entropy rewards a network for being less sure where it is wrong, and noise of
quantization makes it so: an assignment can have less of it and more errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from bitswitch_deploy.errors import CheckFailedError

Criterion = Literal["divergence", "cross_entropy"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

Outputs = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """Of n samples in order. loss: float64 [n], in nats. right: bool [n]."""

    loss: npt.NDArray[np.float64]
    right: npt.NDArray[np.bool_]

    @property
    def mean_loss(self) -> float:
        """Mean loss in nats."""
        return float(self.loss.mean())

    @property
    def right_percent(self) -> float:
        """Share of samples that are right, in percent."""
        return 100 * int(self.right.sum()) / len(self.right)

    def first(self, n: int) -> Scores:
        """The first n samples."""
        return Scores(loss=self.loss[:n], right=self.right[:n])


def score_labelled(outputs: Outputs, y: npt.NDArray[np.int64], *, where: str) -> Scores:
    """Cross entropy of outputs [n, classes] with labels [n].

    Raises:
        CheckFailedError: an output is not finite.
    """
    log_p = _log_softmax(outputs, where)
    return Scores(loss=-log_p[np.arange(len(y)), y], right=outputs.argmax(axis=1) == y)


def score_against(
    outputs: Outputs, reference: Outputs, y: npt.NDArray[np.int64] | None = None, *, where: str
) -> Scores:
    """Divergence of outputs [n, classes] from those of the reference [n, classes]; right by labels [n], if any.

    Raises:
        CheckFailedError: an output is not finite.
    """
    log_p, log_q = _log_softmax(reference, where), _log_softmax(outputs, where)
    # a sum of rounded terms may fall a hair below 0, which no divergence does
    loss = np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0.0)
    return Scores(loss=loss, right=outputs.argmax(axis=1) == (reference.argmax(axis=1) if y is None else y))


def _log_softmax(outputs: Outputs, where: str) -> npt.NDArray[np.float64]:
    z = outputs.astype(np.float64)
    if not np.isfinite(z).all():
        raise CheckFailedError(
            where=where,
            got="an output that is not finite",
            allowed="finite class scores",
            do="look at the master and the preprocessing: no width can be judged on such outputs",
        )
    z -= z.max(axis=1, keepdims=True)
    z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
    return z
