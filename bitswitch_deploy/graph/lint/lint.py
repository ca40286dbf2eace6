"""The linter: every rule on any Q/DQ graph, ours or not."""

from __future__ import annotations

from collections.abc import Sequence

from bitswitch_deploy.graph.lint.finding import ENGINES, Engine, Finding, LintResult
from bitswitch_deploy.graph.lint.linted_graph import LintedGraph
from bitswitch_deploy.graph.lint.qdq_graph import QdqGraph
from bitswitch_deploy.graph.lint.rule import Rule
from bitswitch_deploy.graph.lint.rules.activations import PerChannelActivation
from bitswitch_deploy.graph.lint.rules.code_types import (
    ByteCount,
    Int32Bias,
    OddInt4Row,
    OpsetTooOld,
    TypeForTensorrt,
)
from bitswitch_deploy.graph.lint.rules.onnxruntime_floats import (
    FloatBias,
    FloatBiasOfGemm,
    FloatInput,
    FloatOutput,
    HalfScale,
    Int8FanOut,
    NarrowWeight,
    NoIntegerKernel,
    NoKernelForCodes,
    PerChannelInput,
    ScalesInsideTheSum,
    SixteenBitCodes,
    UnabsorbedActivation,
)
from bitswitch_deploy.graph.lint.rules.onnxruntime_loading import Int8Moved
from bitswitch_deploy.graph.lint.rules.onnxruntime_misreads import MisreadBias, MisreadScales
from bitswitch_deploy.graph.lint.rules.placement import (
    FloatSkip,
    OperatorOnCodes,
    PartlyQuantized,
    PartlyQuantizedOrt,
    QdqBetweenConvAndAdd,
    RequantizedMove,
    UnequalConcatScales,
)
from bitswitch_deploy.graph.lint.rules.scales import (
    NegativeWeightScale,
    NoNumbers,
    ScaleNotConstant,
    ScaleNotPositive,
    ScaleShape,
    ScaleType,
    TinyScale,
)
from bitswitch_deploy.graph.lint.rules.structure import (
    ConstantCodes,
    Dangling,
    DequantizerWithoutQuantizer,
    IntegerOperator,
    QuantizerWithoutDequantizer,
)
from bitswitch_deploy.graph.lint.rules.weights import (
    BlockedConvWeight,
    BlockedProduct,
    FloatWeight,
    NarrowConvWeight,
    OperandTypes,
    RoundedMatMul,
    WeightAxis,
    WeightDetour,
    WeightPath,
)
from bitswitch_deploy.graph.lint.rules.zero_points import (
    AxesDisagree,
    GridsDisagree,
    MissingZeroPoint,
    NonZeroZeroPoint,
    PaddedCodes,
    TypesDisagree,
    UnsignedCodes,
)

# Every rule, in the order of reports: errors first, and first what is wrong in itself.
RULES: tuple[type[Rule], ...] = (
    ScaleNotPositive,
    NegativeWeightScale,
    ScaleShape,
    ScaleType,
    NoNumbers,
    ByteCount,
    OpsetTooOld,
    TypesDisagree,
    AxesDisagree,
    WeightAxis,
    BlockedConvWeight,
    BlockedProduct,
    MissingZeroPoint,
    UnsignedCodes,
    NonZeroZeroPoint,
    TypeForTensorrt,
    Int32Bias,
    OddInt4Row,
    ScaleNotConstant,
    WeightPath,
    ConstantCodes,
    NarrowConvWeight,
    OperandTypes,
    PerChannelActivation,
    IntegerOperator,
    MisreadScales,
    MisreadBias,
    Int8Moved,
    TinyScale,
    GridsDisagree,
    PaddedCodes,
    QuantizerWithoutDequantizer,
    DequantizerWithoutQuantizer,
    Dangling,
    FloatWeight,
    WeightDetour,
    QdqBetweenConvAndAdd,
    FloatSkip,
    OperatorOnCodes,
    PartlyQuantized,
    UnequalConcatScales,
    RequantizedMove,
    FloatInput,
    FloatOutput,
    UnabsorbedActivation,
    Int8FanOut,
    NarrowWeight,
    SixteenBitCodes,
    NoKernelForCodes,
    HalfScale,
    PerChannelInput,
    ScalesInsideTheSum,
    NoIntegerKernel,
    FloatBias,
    FloatBiasOfGemm,
    RoundedMatMul,
    PartlyQuantizedOrt,
)


def lint(graph: LintedGraph, *, engines: Sequence[Engine] = ENGINES) -> LintResult:
    """Apply every rule that concerns one of `engines`."""
    qdq = QdqGraph(graph)
    wanted = [rule() for rule in RULES if set(rule.engines) & set(engines)]
    findings: list[Finding] = [finding for rule in wanted for finding in rule.findings(qdq)]
    return LintResult(
        graph=graph.where,
        engines=tuple(engines),
        opset=graph.opset,
        nodes=len(graph.nodes),
        quantizers=len(qdq.quantizers),
        dequantizers=len(qdq.dequantizers),
        weighted=len(qdq.layers),
        quantized_weights=sum(layer.weight is not None for layer in qdq.layers),
        findings=tuple(findings),
    )
