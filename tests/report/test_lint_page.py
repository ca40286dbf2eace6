from __future__ import annotations

import io

from bitswitch_deploy.graph.lint.finding import Finding, LintResult
from bitswitch_deploy.report.lint_page import print_lint
from bitswitch_deploy.report.page import Page


def finding(node: str, **changes: object) -> Finding:
    values: dict[str, object] = {
        "rule": "uint8-codes",
        "severity": "error",
        "engines": ("tensorrt",),
        "operator": "QuantizeLinear",
        "got": "uint8 codes",
        "allowed": "int8 codes",
        "do": "quantize to int8",
    }
    return Finding(node=node, **values | changes)  # type: ignore[arg-type]


def page(*findings: Finding, quantizers: int = 2, dequantizers: int = 3) -> list[str]:
    result = LintResult(
        graph="net.onnx",
        engines=("tensorrt", "onnxruntime"),
        opset=21,
        nodes=12,
        quantizers=quantizers,
        dequantizers=dequantizers,
        weighted=3,
        quantized_weights=1,
        findings=findings,
    )
    stream = io.StringIO()
    print_lint(result, Page(stream, 100))
    return stream.getvalue().splitlines()


def test_nothing_found_says_what_was_looked_at() -> None:
    assert page() == [
        "net.onnx: nothing found",
        "  looked at 2 Q, 3 DQ and 3 weighted layers, 1 of them with a quantized weight, for tensorrt and",
        "  onnxruntime",
    ]


def test_a_graph_without_q_and_dq_is_no_good_one() -> None:
    assert page(quantizers=0, dequantizers=0)[0] == "net.onnx: nothing found, and no Q or DQ in it"


def test_nodes_of_one_rule_stand_together_with_one_mend() -> None:
    lines = page(finding("a"), finding("b"), finding("c", rule="int32-bias", got="int32 codes"))
    assert lines[0] == "net.onnx: 3 errors"
    assert lines[3:11] == [
        "",
        "error: uint8-codes  (tensorrt)",
        "  allowed  int8 codes",
        "  do       quantize to int8",
        "  node              got",
        "  ─────────────────────────────",
        "  QuantizeLinear a  uint8 codes",
        "  QuantizeLinear b  uint8 codes",
    ]
    assert "error: int32-bias  (tensorrt)" in lines


def test_nodes_with_another_mend_stand_apart() -> None:
    lines = page(finding("a"), finding("b", do="something else"), finding("c"))
    assert [line for line in lines if line.startswith(("error", "  Quantize", "  do"))] == [
        "error: uint8-codes  (tensorrt)",
        "  do       quantize to int8",
        "  QuantizeLinear a  uint8 codes",
        "  QuantizeLinear c  uint8 codes",
        "error: uint8-codes  (tensorrt)",
        "  do       something else",
        "  QuantizeLinear b  uint8 codes",
    ]


def test_many_nodes_are_counted() -> None:
    lines = page(*(finding(f"n{index}") for index in range(1205)))
    assert lines[0] == "net.onnx: 1,205 errors"
    assert [line for line in lines if "QuantizeLinear" in line][-1].startswith("  QuantizeLinear n4")
    assert lines[-1] == "  and 1,200 more"


def test_errors_and_warnings_are_counted_apart() -> None:
    assert page(finding("a"))[0] == "net.onnx: 1 error"
    warning = finding("q", rule="tiny-scale", severity="warning")
    assert page(finding("a"), warning)[0] == "net.onnx: 1 error, 1 warning"
    assert page(warning, warning)[0] == "net.onnx: 2 warnings"
