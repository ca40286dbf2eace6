"""What an error inside of a network does to its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from bitswitch_deploy.diagnosis.distance import Distance
from bitswitch_deploy.validation.metrics import HopAccumulator


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputError:
    """The output of a network against that of its reference over n samples; None where there is nothing to measure."""

    n: int
    top1_percent: float | None
    agreement_percent: float | None
    sqnr_db: float
    cosine: float


class OutputDistance:
    """Collects it, batch by batch.

    Args:
        where: whose output it is, for messages.
    """

    def __init__(self, where: str) -> None:
        self._hop, self._distance = HopAccumulator(where), Distance()

    def add(self, output: npt.NDArray[Any], reference: npt.NDArray[Any], labels: npt.NDArray[Any] | None) -> None:
        """Add one batch of outputs [n, ...], and labels [n] or None.

        Raises:
            CheckFailedError: an output is not finite.
            DataError: a label is no class of the output.
        """
        self._hop.update(output, reference=reference, labels=labels)
        self._distance.add(reference, output)

    def result(self) -> OutputError:
        """The error so far."""
        metrics, error = self._hop.metrics(), self._distance.result()
        return OutputError(
            n=metrics.n,
            top1_percent=metrics.top1_percent,
            agreement_percent=metrics.agreement_percent,
            sqnr_db=error.sqnr_db,
            cosine=error.cosine,
        )
