"""From the layers of a TensorRT engine to the layers of the master.

A layer of an engine is a fusion of nodes of the ONNX graph: those that the engine inspector lists for it, else those
in its name. Forms of names, in logs of TensorRT 8 to 10 that users published and in engines for RTX that were built:

    a.weight + q_quantize_scale_node + node_Conv_1 + node_relu  one behind the other; the suffix is of 8.x
    node_Conv_1 || node_Conv_2                                  two that read the same tensor
    PWN(PWN(node_sigmoid), node_mul)
    Reformatting CopyNode for Input Tensor 0 to node_Conv_1
    {ForeignNode[node_a...node_b]}                              from node_a to node_b, what no other layer names
    node_Conv_1_myl0_4, __myl_MulAddRelu_myl0_5                 the second one names no node

A layer of an engine belongs to the layer of the master
* whose convolution or product it names;
* else whose input it prepares;
* else behind which it runs: that of the last of its nodes, as layers.py has it.
What would belong to several that way belongs to none: nobody knows how its time is to be split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from bitswitch_deploy.engines.engine_layers import EngineLayer
from bitswitch_deploy.engines.optimized_operators import OptimizedNode
from bitswitch_deploy.engines.read_back import WEIGHTED
from bitswitch_deploy.profiling.layers import LayerIndex, LayerName, Ownership, Unsplit, owners

_FOREIGN = re.compile(r"\{ForeignNode\[(.*?)\.\.\.(.*)\]\}")
_SUFFIX = re.compile(r"_myl\d+_\d+$|_(de)?quantize_scale_node$")
_BETWEEN_NAMES = re.compile(r"[\s,(){}\[\]]+")
# They name the layer that they copy for; the second form is of older releases.
_COPY = re.compile(r"Reformatting CopyNode|.* (in|out)put reformatter \d+$")


def fused_owners(
    names: Iterable[str],
    inspected: Sequence[EngineLayer],
    nodes: Sequence[OptimizedNode],
    layers: Sequence[LayerName],
) -> Ownership:
    """Whose time each layer of an engine is.

    Args:
        names: of the engine's layers, as the profiler has them. inspected: what the inspector says, empty where it does
            not. nodes: of the ONNX graph, in its order. layers: all layers of the master.
    """
    engine = _with_nodes(names, inspected, [node.name for node in nodes])
    by_node, index = owners(nodes, layers), LayerIndex(layers)
    weights = {node.name: index.weight_owner(node) for node in nodes if node.operator in WEIGHTED}
    inputs = {node.name: index.input_owner(node) for node in nodes}
    computed, prepared = ({name: owner for name, owner in kind.items() if owner} for kind in (weights, inputs))
    found = {layer.name: _owner(layer.nodes, computed, prepared, by_node) for layer in engine}
    # without a node of its own a layer has no time either, and not one of 0 ms
    nowhere = {each.name for each in layers} - set(computed.values())
    unsplit = {name: Unsplit(layer=name, engine_layer=None) for name in nowhere}
    for node, owner in computed.items():
        holding = _holding(node, engine)
        shared = [name for name in holding if found[name] != owner]
        if shared or not holding:
            unsplit.setdefault(owner, Unsplit(layer=owner, engine_layer=next(iter(shared), None)))
    quantized = [each.name for each in layers if each.is_quantized and each.name in unsplit]
    return Ownership(
        owner_of={name: owner for name, owner in found.items() if owner is not None},
        unsplit=tuple(unsplit[name] for name in quantized),
    )


def _holding(node: str, engine: Sequence[EngineLayer]) -> list[str]:
    """The engine's layers that compute a node: of those that name it the ones with weights, where the inspector tells.

    A copy in front of a kernel of several layers is no time of one of them.
    """
    naming = [layer for layer in engine if node in layer.nodes and not _COPY.match(layer.name)]
    return [layer.name for layer in [layer for layer in naming if layer.weights] or naming]


def _owner(
    nodes: Sequence[str], computed: Mapping[str, str], prepared: Mapping[str, str], by_node: Mapping[str, str]
) -> str | None:
    for kind in (computed, prepared):
        found = {kind[node] for node in nodes if node in kind}
        if found:
            return found.pop() if len(found) == 1 else None
    return by_node.get(nodes[-1]) if nodes else None


def _with_nodes(names: Iterable[str], inspected: Sequence[EngineLayer], graph: Sequence[str]) -> list[EngineLayer]:
    """The engine's layers with their nodes in the order of the graph."""
    place = {name: index for index, name in enumerate(graph)}
    by_name = {layer.name: layer for layer in inspected}
    found = []
    for name in dict.fromkeys(names):
        layer = by_name.get(name) or EngineLayer(name=name, kind="", nodes=(), inputs=(), outputs=())
        # the inspector lists no nodes for a copy
        listed = [] if _COPY.match(name) else [node for node in layer.nodes if node in place]
        listed = listed or _named(name, place)
        found.append((layer, sorted(set(listed), key=place.__getitem__)))
    taken = {node for _, listed in found for node in listed}
    return [
        replace(layer, nodes=tuple(listed or (node for node in _foreign(layer.name, place) if node not in taken)))
        for layer, listed in found
    ]


def _named(name: str, place: Mapping[str, int]) -> list[str]:
    if _FOREIGN.search(name):
        return []
    words = (_SUFFIX.sub("", word) for word in _BETWEEN_NAMES.split(name))
    return [word for word in words if word in place]


def _foreign(name: str, place: Mapping[str, int]) -> Sequence[str]:
    """All nodes between the two ends that a foreign node names; from the start or to the end of the graph where one of
    them is no node of it.
    """
    ends = _FOREIGN.search(name)
    if ends is None:
        return ()
    first, last = ([place[word] for word in _named(end, place)] for end in ends.groups())
    return list(place)[min(first, default=0) : max(last, default=len(place) - 1) + 1]
