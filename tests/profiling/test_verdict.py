"""The sentence about speed, and its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bitswitch_deploy.engines.read_back import NodePrecision, ReadBack, UnfusedQuantizer
from bitswitch_deploy.profiling.statistics import Ratio
from bitswitch_deploy.profiling.verdict import cause_in_engine, cause_in_graph, speed_verdict
from tests.profiling.results import node


def quotient(value: float, low: float, high: float) -> Ratio:
    return Ratio(reference="float32", value=value, low=low, high=high, confidence=0.96, turns=40)


def test_faster_needs_the_whole_interval() -> None:
    assert speed_verdict(quotient(0.5, 0.4, 0.6), "x") == "faster than float32: 0.500 x its time (0.400 to 0.600)"


@pytest.mark.parametrize(("low", "high"), [(0.7, 1.0), (0.95, 1.2), (1.1, 1.4)])
def test_else_it_is_no_faster_and_the_reason_stands_beside(low: float, high: float) -> None:
    text = speed_verdict(quotient(0.99, low, high), "11 of 20 layers run in float")
    assert text.startswith("no faster than float32: 0.990 x its time")
    assert text.endswith("because 11 of 20 layers run in float")


def test_float_layers_are_named_and_counted() -> None:
    nodes = [
        node("a", "QLinearConv", 0.2, "stem"),
        node("b", "FusedConv", 0.3, "body.1"),
        node("c", "Conv", 0.2, "body.2"),
        node("d", "Gemm", 0.1),
        node("e", "MatMul", 0.1, "body.4"),
    ]
    assert cause_in_graph(nodes, ("avx_vnni",)) == (
        "4 of 5 layers run in float (body.1, body.2, d and 1 more), 70% of its time"
    )


def test_weight_only_layers_are_no_integer_layers() -> None:
    nodes = [node("a", "QLinearConv", 0.5), node("b", "MatMulNBits", 0.3, "fc"), node("c", "Gemm", 0.2, "head")]
    assert cause_in_graph(nodes, ("avx_vnni",)) == (
        "1 of 3 layers run in float (head), 20% of its time; "
        "1 of 3 layers are weight-only, with float inputs (fc), 30% of its time"
    )
    assert "weight-only" in cause_in_graph(nodes[:2], ("avx_vnni",))
    rounded = replace(nodes[1], arithmetic="integer")
    assert cause_in_graph([nodes[0], rounded], ("avx_vnni",)).startswith("all 2 layers run in integers")


def test_conversions_and_other_operators_are_named_where_they_take_a_tenth() -> None:
    nodes = [
        node("a", "QLinearConv", 0.5),
        node("b", "QuantizeLinear", 0.06),
        node("c", "Transpose", 0.05),
        node("d", "QLinearAdd", 0.3),
    ]
    assert cause_in_graph(nodes, ("avx_vnni",)) == (
        "11% of its time goes into conversions (QuantizeLinear, Transpose); "
        "30% goes into operators beside the layers (QLinearAdd)"
    )
    nodes[2:] = [node("c", "Transpose", 0.03)]
    assert "conversions" not in cause_in_graph(nodes, ("avx_vnni",))


def test_an_engine_that_tells_no_types_is_given_no_reason() -> None:
    for nodes in ([], [node("conv1 + relu", "TensorRT layer", 1.0)]):
        assert cause_in_graph(nodes, ("avx2",)).startswith("of a reason that this engine does not tell")


def test_a_processor_without_dot_products_is_a_reason_where_it_is_known() -> None:
    nodes = [node("a", "QLinearConv", 1.0)]
    assert cause_in_graph(nodes, ("avx2",)) == "this processor has no dot product of bytes"
    for features in ((), ("asimddp",)):
        assert cause_in_graph(nodes, features) == "all 1 layers run in integers and their kernels are no faster here"


def read_back(*, int8: int, fell_back: int, alone: int) -> ReadBack:
    def nodes(count: int, precision: str, prefix: str) -> tuple[NodePrecision, ...]:
        return tuple(
            NodePrecision(node=f"{prefix}{index}", operator="Conv", precision=precision)  # type: ignore[arg-type]
            for index in range(count)
        )

    unfused = [
        UnfusedQuantizer(node="q", operator="QuantizeLinear", layer="l", alone=index < alone) for index in range(5)
    ]
    return ReadBack(
        engine_layers=9,
        int8=nodes(int8, "int8", "i"),
        fell_back=nodes(fell_back, "fp16", "f"),
        in_float=nodes(1, "fp16", "pinned"),
        unfused=tuple(unfused),
        unseen=(),
    )


def test_the_reason_that_an_engine_gives() -> None:
    assert cause_in_engine(read_back(int8=4, fell_back=4, alone=2)) == (
        "5 of 9 layers compute in float (f0, f1, f2 and 2 more); "
        "2 QuantizeLinear and DequantizeLinear are kernels of their own"
    )
    assert cause_in_engine(read_back(int8=4, fell_back=0, alone=0)) == "1 of 5 layers compute in float (pinned0)"
    only = replace(read_back(int8=3, fell_back=0, alone=0), in_float=())
    assert cause_in_engine(only) == "all 3 layers compute in int8 and their kernels are no faster here"
