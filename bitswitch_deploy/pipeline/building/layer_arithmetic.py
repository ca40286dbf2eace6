"""Which layers of a graph compute in integers on onnxruntime, against what was planned, and why the others do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnx

from bitswitch_deploy.engines.optimized_operators import (
    OptimizedNode,
    arithmetic_of,
    count_operators,
    graph_nodes,
    optimized_nodes,
)
from bitswitch_deploy.graph.lint.lint import lint
from bitswitch_deploy.graph.lint.linted_graph import LintedGraph
from bitswitch_deploy.graph.lint.reading import read_model
from bitswitch_deploy.master.spec import LayerSpec
from bitswitch_deploy.profiling.layers import LayerName, weight_owners
from bitswitch_deploy.report.export_report import LayerCounts

_CODES = "QLinear"
_UNKNOWN = "onnxruntime does not say why"
_SHOWN_NAMES = 4


def layer_arithmetic(
    path: Path, layers: Sequence[LayerSpec], *, session_options: Mapping[str, str]
) -> tuple[LayerCounts, str]:
    """What became of the layers of the graph `path` when onnxruntime has optimised it, and the same in words.

    Planned is integers for every layer that has a width and codes in front; float for those that training pinned.

    layers: of the master that the graph was made of.

    Raises:
        GraphError: onnxruntime refuses the graph.
    """
    nodes = optimized_nodes(path, session_options=session_options)
    model = read_model(path)
    names = [LayerName(name=each.name, weight=each.weight, is_quantized=not each.pinned) for each in layers]
    owner_of = weight_owners(nodes, names, graph_nodes(model.graph))
    counts = Counter(node.arithmetic for node in nodes if node.arithmetic is not None)
    floats = [node for node in nodes if node.arithmetic == "float"]
    owners = list(dict.fromkeys(owner_of[node.name] for node in floats if node.name in owner_of))
    pinned = {each.name for each in layers if each.pinned}
    weight_only = {each.name for each in layers if each.activation == "none"} - pinned
    fell_back = tuple(name for name in owners if name not in pinned | weight_only)
    found = LayerCounts(integer=counts["integer"], total=counts.total(), fell_back=fell_back)
    text = f"onnxruntime: {counts['integer']} of {counts.total()} layers in integers"
    if counts["weight-only"]:
        text += f", {counts['weight-only']} weight-only"
    sentences = [f"{text} ({_operators(nodes)})"]
    for reason, held in _reasons(model, path, fell_back, names).items():
        sentences.append(f"float though planned in integers: {shown_names(held)} ({reason})")
    dequantized = {output for node in nodes if node.operator == "DequantizeLinear" for output in node.outputs}
    anew = {owner_of.get(node.name) for node in floats if dequantized.intersection(node.inputs[1:2])}
    for words, is_anew in (("float32 when the graph is loaded", False), ("dequantized in every run", True)):
        if held := [name for name in owners if name in weight_only and (name in anew) == is_anew]:
            sentences.append(f"weight-only, {words}: {shown_names(held)}")
    if held := [name for name in owners if name in pinned]:
        sentences.append(f"float as in training: {shown_names(held)}")
    if others := sum(node.name not in owner_of for node in floats):
        sentences.append(f"float: {others} {'product' if others == 1 else 'products'} of activations")
    return found, "; ".join(sentences)


def _operators(nodes: Iterable[OptimizedNode]) -> str:
    """Layers, and what computes with codes between them, by type."""
    counts = count_operators(nodes)
    shown = [each for each in counts if arithmetic_of(each[0]) is not None or each[0].startswith(_CODES)]
    return ", ".join(f"{operator} {count}" for operator, count in sorted(shown, key=lambda each: (-each[1], each[0])))


def _reasons(
    model: onnx.ModelProto, path: Path, fell_back: Sequence[str], names: Sequence[LayerName]
) -> dict[str, list[str]]:
    """These layers by why they are no integer ones: the linter knows what onnxruntime looks at."""
    if not fell_back:
        return {}
    graph = LintedGraph(model, where=str(path), folder=path.parent)
    layer_of = weight_owners(graph_nodes(model.graph), names)
    nodes = {node.name for node in graph.nodes}
    why: dict[str, str] = {}
    for finding in lint(graph, engines=("onnxruntime",)).findings:
        if (layer := layer_of.get(finding.node)) is not None:
            # without names of nodes, layers have reasons in common
            words = [word for word in finding.got.split() if word not in nodes]
            why.setdefault(layer, f"{' '.join(words)}: {finding.rule}")
    reasons: dict[str, list[str]] = {}
    for name in fell_back:
        reasons.setdefault(why.get(name, _UNKNOWN), []).append(name)
    return reasons


def shown_names(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:_SHOWN_NAMES])} and {more} more"
