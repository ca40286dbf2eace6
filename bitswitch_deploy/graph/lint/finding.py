"""What the linter finds, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Engine = Literal["tensorrt", "onnxruntime"]
Severity = Literal["error", "warning"]
ENGINES: tuple[Engine, ...] = get_args(Engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One node that breaks one rule.

    severity: `error` where the graph is wrong, refused or misread; `warning` where it is right and slow, or fragile.
    engines: those that the rule speaks of. operator, node: what is wrong, by type and name.
    """

    rule: str
    severity: Severity
    engines: tuple[Engine, ...]
    operator: str
    node: str
    got: str
    allowed: str
    do: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LintResult:
    """Everything that was found in one graph, errors first, and how much was looked at.

    engines: whose rules were applied. opset: of the standard operators, None where the graph uses none.
    quantizers, dequantizers, weighted, nodes: how many there are, subgraphs included; weighted: Conv, ConvTranspose,
    Gemm and MatMul, and quantized_weights: those of them that read a quantized weight.
    """

    graph: str
    engines: tuple[Engine, ...]
    opset: int | None
    nodes: int
    quantizers: int
    dequantizers: int
    weighted: int
    quantized_weights: int
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings of severity `error`."""
        return tuple(finding for finding in self.findings if finding.severity == "error")
