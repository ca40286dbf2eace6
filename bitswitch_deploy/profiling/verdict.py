"""The sentence about the speed of a width, and where it is no faster than float, why."""

from __future__ import annotations

from collections.abc import Sequence

from bitswitch_deploy.engines.read_back import ReadBack
from bitswitch_deploy.profiling.result import OperatorTime
from bitswitch_deploy.profiling.statistics import Ratio

# Types of onnxruntime, as they stand in an optimised graph.
CONVERSIONS = frozenset(
    (
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "BitShift", "Clip"),
        *("Transpose", "Reshape", "ReorderInput", "ReorderOutput"),
    )
)
# From here on a share is worth a clause.
_WORTH_SAYING = 0.1
_SHOWN_NAMES = 3
_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "asimddp", "i8mm")


def is_faster(ratio: Ratio) -> bool:
    """Whether that may be said: the whole interval is below 1."""
    return ratio.high < 1


def speed_verdict(ratio: Ratio, cause: str = "") -> str:
    """How a candidate stands to the reference; `cause` is for one that is no faster."""
    spread = f"{ratio.value:.3f} x its time ({ratio.low:.3f} to {ratio.high:.3f})"
    if is_faster(ratio):
        return f"faster than {ratio.reference}: {spread}"
    return f"no faster than {ratio.reference}: {spread}, because {cause}"


def cause_in_graph(nodes: Sequence[OperatorTime], cpu_features: Sequence[str]) -> str:
    """What in the optimised graph costs the time that integers should have saved.

    Args:
        nodes: what runs, with the time of each.
        cpu_features: of the processor, empty where unknown.
    """
    layers = [node for node in nodes if node.arithmetic is not None]
    floats = [node for node in layers if node.arithmetic == "float"]
    weight_only = [node for node in layers if node.arithmetic == "weight-only"]
    converting = [node for node in nodes if node.operator in CONVERSIONS]
    if not layers:
        return "of a reason that this engine does not tell: `build` lists the layers that fell back to float"
    clauses = []
    for some, how in ((floats, "run in float"), (weight_only, "are weight-only, with float inputs")):
        if some:
            names = _first([node.layer or node.name for node in some])
            clauses.append(f"{len(some)} of {len(layers)} layers {how} ({names}), {_share(some)} of its time")
    if sum(node.share for node in converting) >= _WORTH_SAYING:
        operators = ", ".join(sorted({node.operator for node in converting}))
        clauses.append(f"{_share(converting)} of its time goes into conversions ({operators})")
    others = [node for node in nodes if node.arithmetic is None and node.operator not in CONVERSIONS]
    if sum(node.share for node in others) >= _WORTH_SAYING:
        operators = ", ".join(sorted({node.operator for node in others}))
        clauses.append(f"{_share(others)} goes into operators beside the layers ({operators})")
    if cpu_features and not set(cpu_features) & set(_DOT_PRODUCTS):
        clauses.append("this processor has no dot product of bytes")
    return "; ".join(clauses) or f"all {len(layers)} layers run in integers and their kernels are no faster here"


def cause_in_engine(found: ReadBack) -> str:
    """What became of the graph in its TensorRT engine that costs what integers should have saved."""
    floats = [each.node for each in (*found.fell_back, *found.in_float)]
    total, alone = len(floats) + len(found.int8), sum(each.alone for each in found.unfused)
    clauses = []
    if floats:
        clauses.append(f"{len(floats)} of {total} layers compute in float ({_first(floats)})")
    if alone:
        clauses.append(f"{alone} QuantizeLinear and DequantizeLinear are kernels of their own")
    return "; ".join(clauses) or f"all {total} layers compute in int8 and their kernels are no faster here"


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more


def _share(nodes: Sequence[OperatorTime]) -> str:
    return f"{sum(node.share for node in nodes):.0%}"
