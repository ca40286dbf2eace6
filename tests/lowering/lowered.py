"""Run one pass, or a whole target, on a canonical graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import yaml

from bitswitch_deploy.catalogue import bundled_file
from bitswitch_deploy.engines.optimized_operators import optimized_operators
from bitswitch_deploy.graph.canonical import CanonicalGraph, canonical_graph
from bitswitch_deploy.graph.model_io import export_model, import_model
from bitswitch_deploy.graph.passes import run_passes
from bitswitch_deploy.lowering.approximation import USUAL, Approximation
from bitswitch_deploy.lowering.lower import PASSES, LoweredGraph, lower
from bitswitch_deploy.lowering.lowering_pass import Change, LoweringContext
from bitswitch_deploy.lowering.ranges import TensorRange
from bitswitch_deploy.master import Master
from bitswitch_deploy.target import Target
from bitswitch_deploy.tensors import WidthAssignment


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What one pass did."""

    model: onnx.ModelProto
    modified: bool
    changes: list[Change]


def profile(name: str, changes: Mapping[str, Any] | None = None) -> Target:
    """Read a bundled target with some entries changed, named by dotted keys; `stack.` means its default stack."""
    mapping = copy.deepcopy(yaml.safe_load(bundled_file(f"targets/{name}.yaml").read_text()))
    for key, value in (changes or {}).items():
        *folders, last = key.split(".")
        place = mapping
        for folder in folders:
            stacks = [stack for stack in mapping["stacks"] if stack.get("default")]
            place = stacks[0] if folder == "stack" else place[folder]
        place[last] = value
    return Target.from_mapping(mapping, source=f"{name}.yaml")


# No bundled target wants its unsigned codes from -128 on; a user's may.
INT8_CPU = {"quantization.activation": {"dtype": "int8", "zero_point": -128}}


def fast_operators(model: onnx.ModelProto, target: Target) -> dict[str, int]:
    """How often each operator stands in what onnxruntime makes of a graph for a target."""
    return dict(optimized_operators(model.SerializeToString(), session_options=dict(target.engine.session)))


def canonical(master: Master, bits: int, **overrides: int) -> CanonicalGraph:
    return canonical_graph(master, WidthAssignment(default=bits, overrides=tuple(overrides.items())))


def applied(
    name: str,
    model: onnx.ModelProto,
    target: Target,
    *,
    bits: int = 8,
    ranges: dict[str, TensorRange] | None = None,
    approximations: frozenset[Approximation] = USUAL,
) -> Applied:
    """Run the pass `name` alone; every weight has `bits` bits."""
    weights = {tensor.name: bits for tensor in model.graph.initializer if tensor.name.endswith(".weight")}
    context = LoweringContext(target=target, weight_bits=weights, ranges=ranges or {}, approximations=approximations)
    graph = import_model(model)
    modified = run_passes(graph, [PASSES[name](context)])
    exported = export_model(graph, opset=graph.opset, ir_version=max(10, target.stack.ir_version))
    return Applied(model=exported, modified=bool(modified), changes=context.changes)


def is_untouched(result: Applied, model: onnx.ModelProto) -> bool:
    """Whether the pass left a model as it is, however its constants are stored."""
    graph = import_model(model)
    expected = export_model(graph, opset=graph.opset, ir_version=result.model.ir_version)
    for each in (expected, result.model):
        for tensor in each.graph.initializer:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    return not result.modified and bool(expected.SerializeToString() == result.model.SerializeToString())


def lowered(
    master: Master,
    bits: int,
    target: Target,
    *,
    ranges: dict[str, TensorRange] | None = None,
    approximations: frozenset[Approximation] = USUAL,
) -> tuple[CanonicalGraph, LoweredGraph]:
    """Give a master at one width as canonical graph and for a target."""
    graph = canonical(master, bits)
    return graph, lower(graph, target, ranges=ranges or {}, approximations=approximations)
