"""What a page shows of the layers of one width."""

from __future__ import annotations

from dataclasses import dataclass

from bitswitch_deploy.diagnosis.layer_statistics import LayerStatistics
from bitswitch_deploy.diagnosis.lowering_errors import CutError


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLook:
    """One width over `n` samples: every part of the lowered graph in its order, and every quantized layer."""

    label: str
    n: int
    parts: tuple[CutError, ...]
    statistics: tuple[LayerStatistics, ...]
