"""The last check of a lowered graph: nothing in it that the target's engine refuses or misreads.

What an engine cannot take is the linter's knowledge; what one target forbids is its profile's.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.lint.finding import Engine
from bitswitch_deploy.graph.lint.lint import lint
from bitswitch_deploy.graph.lint.linted_graph import LintedGraph
from bitswitch_deploy.graph.lint.onnxruntime_fusion import is_weight_rounded
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph
from bitswitch_deploy.graph.lint.rules.weights import WeightDetour
from bitswitch_deploy.target import Target

# Other people's graphs may build with it; a pass of ours that leaves it is wrong.
_REFUSED_WARNINGS = (WeightDetour.id,)


def check_target_rules(model: onnx.ModelProto, target: Target) -> None:
    """Refuse a graph that breaks a rule of its target: another opset, a forbidden type, or an error of the linter,
    anything between the DequantizeLinear of a weight and its layer, or a float weight that onnxruntime rounds.

    Raises:
        GraphError: naming the first node that breaks a rule.
    """
    for where, got, allowed, do in _violations(model, target):
        mend = f"add or reorder passes in the profile of {target.name}"
        raise GraphError(where=where, got=got, allowed=allowed, do=f"{do}; {mend}" if do else mend)


def _violations(model: onnx.ModelProto, target: Target) -> Iterator[tuple[str, str, str, str]]:
    graph = LintedGraph(model, where="lowered graph")
    if graph.opset != target.stack.opset:
        allowed = f"opset {target.stack.opset} of stack {target.stack.name} (pass SetOpset)"
        yield "graph", f"opset {graph.opset}", allowed, ""
    forbidden, quantized = target.quantization.forbid_types, QdqGraph(graph)
    for qdq in quantized.nodes:
        if qdq.code_type in forbidden:
            allowed = f"any type but {', '.join(forbidden)}"
            yield f"{qdq.node.operator} {qdq.node.name}", f"type {qdq.code_type}", allowed, ""
    engine: Engine = "onnxruntime" if target.engine.name == "onnxruntime" else "tensorrt"
    for layer in quantized.layers if engine == "onnxruntime" else ():
        if is_weight_rounded(quantized, layer):
            where, got = f"{layer.node.operator} {layer.node.name}", "a float weight between codes, which becomes int8"
            yield where, got, "weight, input and output in codes, or a float input", ""
    for finding in lint(graph, engines=(engine,)).findings:
        if finding.severity == "error" or finding.rule in _REFUSED_WARNINGS:
            yield f"{finding.operator} {finding.node}", finding.got, finding.allowed, finding.do
