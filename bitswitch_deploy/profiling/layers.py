"""From the nodes that an engine really runs to the layers of the master.

A node belongs to the layer
* whose weight it reads, under its own name or one with a suffix, as engines and lowering append `.multiplied`;
* else, for a convolution that onnxruntime computes in blocks of channels, whose names say what it writes alone, that
  whose weight is read last on the way to this tensor in the graph as it was written;
* else whose input it prepares: it is named, or writes, `LAYER.input...`;
* else behind which it runs: to that of its inputs that was computed last. An Add that one width runs by itself and
  another one inside of the convolution counts for the same layer that way, and so do pooling and changes of layout.
What comes before the first layer belongs to none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bitswitch_deploy.engines.onnxruntime_profile import NodeTime
from bitswitch_deploy.engines.optimized_operators import Arithmetic, OptimizedNode, arithmetic_of
from bitswitch_deploy.profiling.result import OperatorTime

# what onnxruntime calls a node in blocks of channels: the tensor that it wrote before, and this
_IN_BLOCKS = "_nchwc"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfiledRuns:
    """For each profiled run its nodes, and the ms of whole runs without profiler that took turns with them [n]."""

    runs: Sequence[Sequence[NodeTime]]
    plain_ms: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerName:
    """A layer of the master and the tensor that holds its weight. is_quantized: whether it takes a width."""

    name: str
    weight: str
    is_quantized: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsplit:
    """A layer of the master without a time of its own. engine_layer: what computes it together with others, None where
    no layer of the engine names it.
    """

    layer: str
    engine_layer: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """owner_of: layer of the master, by what the profiler times. unsplit: quantized layers, in the master's order.

    arithmetic: by the same, where the operator alone does not tell.
    """

    owner_of: Mapping[str, str]
    unsplit: tuple[Unsplit, ...] = ()
    arithmetic: Mapping[str, Arithmetic] = field(default_factory=dict)


def owners(
    nodes: Sequence[OptimizedNode], layers: Sequence[LayerName], written: Sequence[OptimizedNode] = ()
) -> dict[str, str]:
    """Name of the layer by name of the node, for every node that a layer owns.

    nodes: in the order in which they run. layers: all layers of the master. written: the graph before optimisation.
    """
    index = LayerIndex(layers)
    by_weight = weight_owners(nodes, layers, written)
    found: dict[str, str] = {}
    makers: dict[str, tuple[int, str | None]] = {}
    for place, node in enumerate(nodes):
        owner = by_weight.get(node.name) or index.input_owner(node)
        if owner is None:
            owner = max((makers[name] for name in node.inputs if name in makers), default=(0, None), key=_place)[1]
        if owner is not None:
            found[node.name] = owner
        makers |= dict.fromkeys(node.outputs, (place, owner))
    return found


def weight_owners(
    nodes: Sequence[OptimizedNode], layers: Sequence[LayerName], written: Sequence[OptimizedNode] = ()
) -> dict[str, str]:
    """The same for the nodes alone that read the weight of a layer, or that were made of such a node."""
    index = LayerIndex(layers)
    before = {output: node for node in written for output in node.outputs}
    owned = ((node.name, index.weight_owner(node) or _written_owner(node, before, index)) for node in nodes)
    return {name: owner for name, owner in owned if owner is not None}


def _written_owner(node: OptimizedNode, before: Mapping[str, OptimizedNode], index: LayerIndex) -> str | None:
    """The layer of a node in blocks of channels, whose weight has another name by then."""
    if not node.name.endswith(_IN_BLOCKS):
        return None
    waiting, seen = [node.name.removesuffix(_IN_BLOCKS)], set[str]()
    for name in waiting:  # grows while it is read: the nearest first
        maker = before.get(name)
        if maker is None or name in seen:
            continue
        seen.add(name)
        if (owner := index.weight_owner(maker)) is not None:
            return owner
        waiting += maker.inputs
    return None


class LayerIndex:
    """Finds layers by names of tensors and nodes: a network of hundreds of layers has thousands of nodes."""

    def __init__(self, layers: Sequence[LayerName]) -> None:
        # the first of several layers that share a weight
        self._by_weight = {layer.weight: layer.name for layer in reversed(layers)}
        self._by_input = {f"{layer.name}.input": layer.name for layer in reversed(layers)}

    def weight_owner(self, node: OptimizedNode) -> str | None:
        """Name of the layer whose weight a node reads."""
        return _longest_form(node.inputs, self._by_weight)

    def input_owner(self, node: OptimizedNode) -> str | None:
        """Name of the layer whose input a node prepares."""
        return _longest_form((node.name, *node.outputs), self._by_input)


def _place(maker: tuple[int, str | None]) -> int:
    return maker[0]


def operator_times(run: ProfiledRuns, ownership: Ownership, *, p50_ms: float) -> tuple[OperatorTime, ...]:
    """The time of each node, the longest first; together they are no longer than the whole.

    What the profiler costs is about the same for every node, and is taken off: it is known from runs without profiler
    that took turns with the profiled ones. The rest is scaled to the p50 that was measured before.

    Args:
        run: the profile. ownership: of its nodes. p50_ms: of the whole network.
    """
    durations: dict[tuple[str, str], list[float]] = {}
    for nodes in run.runs:
        for key, ms in _by_node(nodes).items():
            durations.setdefault(key, []).append(ms)
    seen = {key: typical(values) for key, values in durations.items()}
    whole_ms = typical(run.plain_ms)
    cost = _cost_of_profiling(np.asarray(list(seen.values())), whole_ms)
    times = []
    for (name, operator), ms in seen.items():
        share = max(ms - cost, 0.0) / whole_ms
        times.append(
            OperatorTime(
                name=name,
                operator=operator,
                layer=ownership.owner_of.get(name),
                ms=share * p50_ms,
                share=share,
                arithmetic=ownership.arithmetic.get(name, arithmetic_of(operator)),
            )
        )
    return tuple(sorted(times, key=lambda time: (-time.ms, time.name)))


def typical(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Mean of the second quarter of the ordered values.

    Deaf to outliers, also to many of them, because interruptions only ever add; finer than the whole microseconds of a
    profile.
    """
    ordered = np.sort(np.asarray(values))
    return float(ordered[len(ordered) // 4 : len(ordered) // 2 + 1].mean())


def _by_node(run: Sequence[NodeTime]) -> dict[tuple[str, str], float]:
    """Ms in one run of each node; the body of a Loop runs several times."""
    times: dict[tuple[str, str], float] = {}
    for node in run:
        key = (node.name, node.operator)
        times[key] = times.get(key, 0.0) + node.duration_us / 1e3
    return times


def _cost_of_profiling(times_ms: NDArray[np.float64], whole_ms: float) -> float:
    """The c >= 0 for which the times [nodes], each less c but not below 0, add up to the whole at most."""
    ordered = np.sort(times_ms)[::-1]
    if ordered.sum() <= whole_ms:
        return 0.0
    # with the k longest nodes above c: sum of them - k * c = whole
    costs = (np.cumsum(ordered) - whole_ms) / np.arange(1, len(ordered) + 1)
    return float(costs[int(np.flatnonzero(costs < ordered)[-1])])


def _longest_form(names: Sequence[str], owner_of: Mapping[str, str]) -> str | None:
    """The owner of what is in `names`, as it is or with a suffix: the longer one of `conv` and `conv.weight.next`."""
    forms = (form for name in names for form in _forms(name) if form in owner_of)
    found = max(forms, key=len, default=None)
    return owner_of[found] if found is not None else None


def _forms(name: str) -> Iterator[str]:
    """The name, and what is in front of each of its separators."""
    yield name
    for separator in re.finditer(r"[._/]", name):
        yield name[: separator.start()]
