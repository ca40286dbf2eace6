"""Latency of each layer at each width on one device: what `profile` measures and `search` adds up.

The file is JSON, schema `bitswitch-latency-table/1`, with the names of `LatencyTable` as keys. A table belongs to one
master, one target and one batch size: `search` refuses one of another master, takes it for budgets of its target only,
and shows the batch size, since a request may well have more samples than one.

    predicted latency of an assignment [ms] = overhead_ms + sum over layers of latency_ms[width of the layer]

`layers` has the quantized layers of the master, by their names there; everything else that runs (float layers, pooling,
conversions that no layer owns) is `overhead_ms`, at the width where that is largest.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.errors import InputFileError
from bitswitch_deploy.records import Reader
from bitswitch_deploy.tensors import MAX_BITS, MIN_BITS

SCHEMA: Literal["bitswitch-latency-table/1"] = "bitswitch-latency-table/1"

_READER = Reader(error=InputFileError, do="measure it again: bitswitch-deploy profile PACKAGE --latency-table FILE")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLatency:
    """Median time of one layer in ms, as (width in bits, ms), at every width of the table."""

    name: str
    latency_ms: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTable:
    """Times of one network on one device.

    engine: `onnxruntime`, `tensorrt`, `tensorrt_rtx`, `trtexec`; engine_version: as it says itself, of TensorRT for the
        last three.
    device: (name, value) facts that the times depend on: processor or board, GPU, power mode, clocks, as far as known.
    batch_size: samples in a run; all times are those of a run. threads: of onnxruntime, None for other engines.
    end_to_end_ms: (width, p50 of the whole network in ms) of the uniform widths, measured without per-layer timing.
    unstable: why the times are not of one measurement but of several; empty where nothing moved that could be seen.

    Raises:
        ValueError: no layer, a layer twice, no width, one twice or one that cannot be, widths that differ between
            layers, a time that is negative or not finite.
    """

    master_sha256: str
    target: str
    engine: str
    engine_version: str
    device: tuple[tuple[str, str], ...]
    batch_size: int
    threads: int | None
    overhead_ms: float
    end_to_end_ms: tuple[tuple[int, float], ...]
    layers: tuple[LayerLatency, ...]
    unstable: tuple[str, ...] = ()
    schema: Literal["bitswitch-latency-table/1"] = SCHEMA

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        if not names or len(set(names)) != len(names):
            raise ValueError("layers must be given, each once")
        if not self.widths or len(set(self.widths)) != len(self.widths):
            raise ValueError("widths must be given, each once")
        if not all(MIN_BITS <= width <= MAX_BITS for width in self.widths):
            raise ValueError(f"widths are {list(self.widths)}, and can be from {MIN_BITS} to {MAX_BITS}")
        for name, times in [("end_to_end_ms", self.end_to_end_ms), *((x.name, x.latency_ms) for x in self.layers)]:
            if tuple(width for width, _ in times) != self.widths:
                raise ValueError(f"{name} has the widths {[width for width, _ in times]}, not {list(self.widths)}")
            if not all(math.isfinite(ms) and ms >= 0 for _, ms in times):
                raise ValueError(f"{name} has a time that is negative or not finite")
        if not (math.isfinite(self.overhead_ms) and self.overhead_ms >= 0 and self.batch_size > 0):
            raise ValueError("overhead_ms must be 0 or more, batch_size 1 or more")

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths in bits, in the order of the file."""
        return tuple(width for width, _ in self.end_to_end_ms)

    def write(self, path: Path) -> None:
        """Write the table in one step.

        Raises:
            OutputError: the file cannot be written.
        """
        document = asdict(self)
        document |= {name: dict(document[name]) for name in ("device", "end_to_end_ms")}
        document["layers"] = [{**layer, "latency_ms": dict(layer["latency_ms"])} for layer in document["layers"]]
        replace_file(path, (json.dumps(document, indent=2) + "\n").encode())


def read_latency_table(path: Path) -> LatencyTable:
    """The table in a file.

    Raises:
        InputFileError: it cannot be read, or is not what the schema says.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise _READER.refusal(str(path), f"cannot be read: {exc}", "a latency table", is_text=True) from exc
    document = _READER.load_json(text, where=str(path))
    for times in (document, *_objects(document.get("layers"))):
        for key in ("end_to_end_ms", "latency_ms"):
            if isinstance(times.get(key), dict):
                times[key] = [[_width(width), ms] for width, ms in times[key].items()]
    return _READER.decode(LatencyTable, document, where=str(path))


def _objects(value: object) -> list[dict[str, object]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _width(key: str) -> int | str:
    """JSON keys are text; one that is no width stays text, and the reader refuses it there."""
    return int(key) if key.isascii() and key.isdigit() and len(key) < 3 and str(int(key)) == key else key
