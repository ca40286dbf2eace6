"""Local functions of a model, written out where they are called.

onnx inlines a function only if it imports the opset of the model. One of another opset is given that opset, in a copy,
where each of its nodes means the same there: the same version of the operator, or one with the same inputs and the same
attributes and defaults as far as they are written. Versions then differ in types, which matter for Q and DQ: theirs may
only grow. What a newer version adds leaves the old meaning where it is not written.
"""

from __future__ import annotations

import onnx
import onnx.inliner

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.lint.operators import DEQUANTIZE, QUANTIZE, STANDARD_DOMAINS, WEIGHTED
from bitswitch_deploy.graph.lint.subgraphs import nodes_within

_QUANTIZERS = (QUANTIZE, DEQUANTIZE)


def inlined(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """A copy without local functions; one that cannot be given the opset of the model stays, if no rule is about it.

    Raises:
        GraphError: a function calls itself or is called wrongly; or it cannot be given the opset, and it or one that it
            calls has a Q or DQ, or a layer where the model has codes for it.
    """
    if any(_is_other(model, opset) for function in model.functions for opset in function.opset_import):
        model = _copied(model)
        for function in model.functions:
            obstacle = _give_opset(model, function)
            if obstacle and _leads_to(model, function, _searched(model)):
                got = f"local function {function.name} cannot be inlined: {obstacle}"
                raise _refusal(where, got, "functions with layers, Q or DQ that import the opset of the model")
    try:
        return onnx.inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as exc:
        got = f"local functions that cannot be inlined: {exc}"
        raise _refusal(where, got, "functions that do not call themselves, called with their own inputs") from exc


def _searched(model: onnx.ModelProto) -> tuple[str, ...]:
    """Operators that rules are about: Q and DQ, and where there are some in the model, layers, which may read codes."""
    everywhere = (model.graph.node, *(function.node for function in model.functions))
    has_codes = any(node.op_type in _QUANTIZERS for nodes in everywhere for node in nodes_within(nodes))
    return (*_QUANTIZERS, *WEIGHTED) if has_codes else _QUANTIZERS


def _leads_to(model: onnx.ModelProto, function: onnx.FunctionProto, operators: tuple[str, ...]) -> bool:
    """Whether a function, or one that it calls, holds one of some operators."""
    known = {(each.domain, each.name): each for each in model.functions}
    waiting = [(function.domain, function.name)]
    for key in waiting:  # grows while it is read
        for node in nodes_within(known[key].node):
            called = (node.domain, node.op_type)
            if called in known and called not in waiting:
                waiting.append(called)
            if called not in known and node.op_type in operators:
                return True
    return False


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _version(model: onnx.ModelProto, domain: str) -> int | None:
    """The opset that a model imports of a domain."""
    same = STANDARD_DOMAINS if domain in STANDARD_DOMAINS else (domain,)
    return next((entry.version for entry in model.opset_import if entry.domain in same), None)


def _is_other(model: onnx.ModelProto, opset: onnx.OperatorSetIdProto) -> bool:
    return _version(model, opset.domain) not in (None, opset.version)


def _give_opset(model: onnx.ModelProto, function: onnx.FunctionProto) -> str | None:
    """Give a function the opsets of the model; the reason where it cannot be done."""
    for opset in function.opset_import:
        version = _version(model, opset.domain)
        if version is None:
            continue
        if opset.domain in STANDARD_DOMAINS:
            for node in nodes_within(function.node):
                if node.domain in STANDARD_DOMAINS and not _means_the_same(node, opset.version, version):
                    return f"{node.op_type} of opset {opset.version} is another operator than that of {version}"
        opset.version = version
    return None


def _means_the_same(node: onnx.NodeProto, old: int, new: int) -> bool:
    """Whether a node of opset `old` is one of opset `new` as it is written."""
    try:
        before, after = (onnx.defs.get_schema(node.op_type, max_inclusive_version=each) for each in (old, new))
    except onnx.defs.SchemaError:
        return False
    if before.since_version == after.since_version:
        return True
    if node.op_type in _QUANTIZERS and old > new:
        return False
    written = {attribute.name for attribute in node.attribute}
    both = {*before.attributes} & {*after.attributes}
    n_inputs = len(node.input)
    names, new_names = ([each.name for each in schema.inputs[:n_inputs]] for schema in (before, after))
    has_same_inputs = (before.min_input, before.max_input) == (after.min_input, after.max_input)
    return (
        after.min_input <= n_inputs <= after.max_input
        and (has_same_inputs or names == new_names)
        and written <= set(after.attributes)
        and all(_default(before, name) == _default(after, name) for name in both - written)
    )


def _default(schema: onnx.defs.OpSchema, name: str) -> bytes:
    """The value of an attribute that is not written; empty where there is none."""
    return schema.attributes[name].default_value.SerializeToString()


def _refusal(where: str, got: str, allowed: str) -> GraphError:
    return GraphError(where=where, got=got, allowed=allowed, do="export the model again; onnx.checker names more")
