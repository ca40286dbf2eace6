"""`*.weights.json` of a package with shared weights: what lies where, and who derives it to what width.

Every graph of such a package can be opened without it. A reader that derives the codes itself, such as runtime/, needs
it (schema bitswitch-weights/4).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

from bitswitch_deploy.errors import PackageError
from bitswitch_deploy.quantization import PACKED_BITS, BlockPacking
from bitswitch_deploy.records import Reader
from bitswitch_deploy.tensors import MAX_BITS, MIN_BITS, Rounding

SCHEMA: Literal["bitswitch-weights/4"] = "bitswitch-weights/4"
# Of every tensor in the file: a cache line, so that none shares one with its neighbour.
ALIGNMENT_BYTES = 64
NOT_DERIVED = 0
# That codes are packed in; a weight has no more inputs than that.
_BLOCK_SIZES = range(8, (1 << 24) + 1, 8)

_READER = Reader(error=PackageError, do="export the package again with this release")
_ITEM_BYTES = {"int8": 1, "float32": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor of the file that graphs derive theirs of, in row-major order from byte `offset` on.

    int8: codes, which are rounded to a width l. float32: scales, which are multiplied by 2^(width of the master - l).
    """

    name: str
    dtype: Literal["int8", "float32"]
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes in the file."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """int8 factors [shape broadcasts against each tensor] from byte `offset` on; tensors: their places in the index."""

    tensors: tuple[int, ...]
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        """Bytes that they take in the file."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Codes [matrices] that a graph reads packed, under the name of the tensor and `BLOCKS`; tensors: their places."""

    tensors: tuple[int, ...]
    packing: BlockPacking


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedGraph:
    """One graph, which reads what it derives by the name of the tensor.

    bits: for each tensor of the index, the width that it is derived to; `NOT_DERIVED` where the graph reads it as it
    is, which the graph then says itself, or not at all.
    factors: what multiplies the codes of some tensors, in int8 arithmetic, after they were rounded.
    packed: what it reads in another form.
    derivation_bytes: length of the part at the start of the model, unpacked, that does both in the graph.
    """

    path: str
    derivation_bytes: int
    bits: tuple[int, ...]
    factors: tuple[Factors, ...] = ()
    packed: tuple[Packed, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsIndex:
    """All of it. file: the weights file, beside the index. bits, rounding: of the master.

    Raises:
        ValueError: the parts contradict each other.
    """

    file: str
    bits: int
    rounding: Rounding
    tensors: tuple[StoredTensor, ...]
    graphs: tuple[SharedGraph, ...]
    schema: Literal["bitswitch-weights/4"] = SCHEMA

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(f"a master of {self.bits} bits")
        if any(each.offset < 0 or min(each.shape, default=0) < 0 for each in self._stored):
            raise ValueError("a tensor with a negative offset or size")
        if any(each.offset % ALIGNMENT_BYTES for each in self._stored):
            raise ValueError(f"a tensor that does not begin at a multiple of {ALIGNMENT_BYTES} bytes")
        for graph in self.graphs:
            if graph.derivation_bytes < 0:
                raise ValueError(f"{graph.path} has a derivation of {graph.derivation_bytes} bytes")
            multiplied = [tensor for factors in graph.factors for tensor in factors.tensors]
            if any(not 0 <= tensor < len(self.tensors) for tensor in multiplied):
                raise ValueError(f"{graph.path} has factors of a tensor that is not in the index")
            if len(set(multiplied)) < len(multiplied):
                raise ValueError(f"{graph.path} has factors of one tensor twice")
            widths = (NOT_DERIVED, *range(MIN_BITS, self.bits + 1))
            if len(graph.bits) != len(self.tensors) or any(bits not in widths for bits in graph.bits):
                raise ValueError(f"{graph.path} needs a width of 0 or {MIN_BITS}..{self.bits} for each tensor")
            self._check_packed(graph)
            for factors in graph.factors:
                for tensor in (self.tensors[place] for place in factors.tensors):
                    if tensor.dtype != "int8" or not _broadcasts(factors.shape, tensor.shape):
                        raise ValueError(f"{graph.path} has factors {factors.shape} for {tensor.name} {tensor.shape}")

    def _check_packed(self, graph: SharedGraph) -> None:
        places = [place for each in graph.packed for place in each.tensors]
        if len(set(places)) < len(places):
            raise ValueError(f"{graph.path} packs one tensor twice")
        for each in graph.packed:
            packing = each.packing
            if packing.bits not in PACKED_BITS or packing.block_size not in _BLOCK_SIZES:
                raise ValueError(f"{graph.path} packs {packing.bits} bits in blocks of {packing.block_size}")
            for place in each.tensors:
                if not 0 <= place < len(self.tensors):
                    raise ValueError(f"{graph.path} packs a tensor that is not in the index")
                tensor, bits = self.tensors[place], graph.bits[place]
                if tensor.dtype != "int8" or len(tensor.shape) != 2 or not 0 < bits <= packing.bits:
                    raise ValueError(f"{graph.path} packs {tensor.name} {tensor.shape} of {bits} bits")

    @property
    def end_bytes(self) -> int:
        """Where the last of these tensors ends: the file must not be shorter."""
        return max((each.offset + each.size_bytes for each in self._stored), default=0)

    @property
    def _stored(self) -> tuple[StoredTensor | Factors, ...]:
        return (*self.tensors, *(factors for graph in self.graphs for factors in graph.factors))

    def graph(self, path: str) -> SharedGraph | None:
        """The graph of this name; None where the index does not know it."""
        return next((graph for graph in self.graphs if graph.path == path), None)

    def to_json(self) -> str:
        """The text of the file, without blanks: in a small package every byte counts."""
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> WeightsIndex:
        """The index in `text`.

        Raises:
            PackageError: it is not JSON, or not what the schema says.
        """
        return _READER.decode(cls, _READER.load_json(text, where=where), where=where)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(size in (1, whole) for size, whole in zip(shape[::-1], to[::-1]))
