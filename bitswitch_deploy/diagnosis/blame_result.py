"""What `blame` found, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bitswitch_deploy.diagnosis.distance import TensorError
from bitswitch_deploy.diagnosis.layer_statistics import LayerStatistics
from bitswitch_deploy.diagnosis.lowering_errors import CutError
from bitswitch_deploy.diagnosis.output_error import OutputError
from bitswitch_deploy.validation.dataset import DatasetSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerError:
    """What quantizing one layer costs, at the output of the network against the network in float.

    isolated: this layer at its width, all others in float. cumulative: this one and all before it.
    """

    layer: str
    bits: int
    isolated: OutputError
    cumulative: OutputError


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweredError:
    """The lowered graph at one place where it has codes, as its runtime runs it, against the canonical graph.

    cumulative: of the values here, with every error before. output: of the network's output when the lowered graph
    computes all that is in codes up to here, and the canonical graph the rest.
    """

    tensor: str
    layer: str
    cumulative: TensorError
    output: OutputError


@dataclass(frozen=True, slots=True, kw_only=True)
class PartError:
    """A part of the lowered graph that is not exact. effect: of this part alone, at the output of the canonical graph.

    effect is None where only some readers see the part, and where it is no tensor of the canonical graph.
    """

    part: CutError
    effect: OutputError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """The layer to look at first.

    kind: `fault`, the lowered graph computes something else than the canonical one; `sensitive`, the canonical graph
        loses most here.
    where: the layer, with the part of it. what: is wrong with it. do: the next step.
    """

    kind: Literal["fault", "sensitive"]
    layer: str
    where: str
    what: str
    do: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthBlame:
    """One width.

    in_float: top-1 in % of the network in float; None without labels.
    canonical, lowered: the whole network, against the network in float and against the canonical graph.
    layers, lowered_layers: in the order in which they run. parts: only those that are not exact; n_parts: all.
    suspects: faults first, in the order of the graph; empty where no layer stands out.
    """

    label: str
    in_float: float | None
    canonical: OutputError
    lowered: OutputError
    layers: tuple[LayerError, ...]
    statistics: tuple[LayerStatistics, ...]
    lowered_layers: tuple[LoweredError, ...]
    parts: tuple[PartError, ...]
    n_parts: int
    suspects: tuple[Suspect, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlameResult:
    """All widths of a package, or of a master for a target. changed: files that are not as they were exported."""

    subject: str
    target: str
    master_sha256: str
    dataset: DatasetSummary
    widths: tuple[WidthBlame, ...]
    changed: tuple[str, ...] = ()

    @property
    def has_fault(self) -> bool:
        """Whether a lowered graph computes something that its canonical graph does not."""
        return any(suspect.kind == "fault" for width in self.widths for suspect in width.suspects)
