"""The list of rules, what a result counts, and our own graphs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import get_args

import onnx
import pytest

import bitswitch_deploy.graph.lint as lint_package
from bitswitch_deploy.catalogue import bundled_master, load_target, target_names
from bitswitch_deploy.graph.lint.finding import ENGINES, Engine, Severity
from bitswitch_deploy.graph.lint.lint import RULES, lint
from bitswitch_deploy.graph.lint.linted_graph import LintedGraph
from bitswitch_deploy.lowering.lower import lower
from bitswitch_deploy.master import read_master
from tests.graph.lint.graphs import CONV, linted, model, pair, with_zero
from tests.lowering.lowered import canonical


def test_rules_have_names_of_their_own_and_say_what_they_are() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.__doc__
        assert rule.severity in get_args(Severity)
        assert rule.engines
        assert set(rule.engines) <= set(ENGINES)


def test_every_rule_of_the_folder_is_in_the_list() -> None:
    folder = Path(lint_package.__file__).parent / "rules"
    written = sum(path.read_text().count("(Rule):") for path in folder.glob("*.py"))
    assert written == len(RULES)


def test_every_rule_has_a_test() -> None:
    tests = "".join(path.read_text() for path in (Path(__file__).parent / "rules").glob("test_*.py"))
    assert [rule.id for rule in RULES if f'"{rule.id}"' not in tests] == []


def test_a_clean_graph_says_what_was_looked_at() -> None:
    result = linted(model(with_zero(CONV, "i")), "tensorrt")
    assert result.findings == result.errors == ()
    assert (result.nodes, result.quantizers, result.dequantizers) == (6, 2, 3)
    assert (result.weighted, result.quantized_weights, result.opset) == (1, 1, 21)


def test_rules_of_the_chosen_engine_only() -> None:
    graph = model(with_zero(CONV + " z = Sigmoid (d)", "u"))
    assert {finding.rule for finding in linted(graph, "tensorrt").findings} == {"uint8-codes"}
    assert {finding.rule for finding in linted(graph, "onnxruntime").findings} == {"partly-quantized-onnxruntime"}
    assert len(linted(graph).findings) == 3


def test_errors_come_first() -> None:
    severities = [rule.severity for rule in RULES]
    assert severities == sorted(severities)
    body = "q = QuantizeLinear (x, s, u) y = Relu (x)" + pair("x", "k", "bad", "u")
    result = linted(model(body, constants="float bad = {-1}"))
    ids = [rule.id for rule in RULES]
    assert [finding.rule for finding in result.findings] == sorted((f.rule for f in result.findings), key=ids.index)
    assert {finding.rule for finding in result.errors} == {"scale-not-positive", "uint8-codes"}
    assert {finding.rule for finding in result.findings} - {finding.rule for finding in result.errors} == {"dangling"}


@pytest.mark.parametrize("name", target_names())
def test_our_graphs_have_no_error_on_their_engine_at_any_width(name: str) -> None:
    target = load_target(name).target
    engine: Engine = "onnxruntime" if target.engine.name == "onnxruntime" else "tensorrt"
    master = read_master(bundled_master())
    for bits in range(2, 9):
        graph = lower(canonical(master, bits), target, ranges={}).model
        result = lint(LintedGraph(graph, where=f"w{bits}"), engines=(engine,))
        assert result.quantized_weights == 7
        assert not result.errors


def test_a_graph_of_ten_thousand_nodes() -> None:
    n = 2500
    blocks = (
        f" a{i} = Relu (t{i})" + pair(f"a{i}", f"t{i + 1}", "s", "u", on_codes="Clip (*, ulo, uhi)") for i in range(n)
    )
    result = linted(model(pair("x", "t0", "s", "u") + "".join(blocks) + f" y = Neg (t{n})"))
    assert result.nodes == 4 * n + 3
    assert len(result.findings) == 2 * n + 1  # each pair: uint8; all but the first: an operator on codes


@pytest.mark.parametrize("operator", ["Transpose ({0})", "Concat <axis = 0> ({0}, {0})", "Identity ({0})", "Neg ({0})"])
def test_long_chains_between_q_and_dq_and_behind_them(operator: str) -> None:
    def chain(name: str, first: str) -> str:
        tensors = [first, *(f"{name}{index}" for index in range(2000))]
        return "".join(f" {made} = {operator.format(read)}" for read, made in pairwise(tensors))

    codes = "q = QuantizeLinear (x, s, i)" + chain("k", "q") + " d = DequantizeLinear (k1999, s, i)"
    scales = chain("z", "s") + pair("x", "e", "z1999", "i") + " c = Relu (e)"
    result = linted(model(codes + scales + chain("t", "d") + " y = Relu (t1999)"))
    assert result.nodes == 6006


def test_quantized_weights_of_functions_and_branches_count() -> None:
    body = """
        q = QuantizeLinear (x, s, i) d = DequantizeLinear (q, s, i) c = Constant <value = bool {1}> ()
        y = If (c) <
            then_branch = one () => (float[2, 2] r) { wd = DequantizeLinear (w, s, i) r = MatMul (d, wd) },
            else_branch = two () => (float[2, 2] r) { r = MatMul (d, f) }
        >"""
    graph = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> net (float[2, 2] x) => (float[2, 2] y)'
        " <float s = {1}, int8 i = {0}, int8[2, 2] w = {1, 2, 3, 4}, float[2, 2] f = {1, 2, 3, 4}>"
        f" {{ {body} }}"
    )
    result = linted(graph)
    assert (result.weighted, result.quantized_weights) == (2, 1)
    assert [finding.node for finding in result.findings if finding.rule == "float-weight"] == [
        "If_3/else_branch/MatMul_0"
    ]


def test_the_table_of_rules_is_the_list_in_its_order() -> None:
    readme = (Path(lint_package.__file__).parent / "README.md").read_text(encoding="utf-8")
    rows = [line for line in readme.splitlines() if line.startswith("| `")]
    assert len(rows) == len(RULES)
    for row, rule in zip(rows, RULES, strict=True):
        first = " ".join((rule.__doc__ or "").split("\n\n")[0].split())
        assert row == f"| `{rule.id}` | {rule.severity} | {', '.join(rule.engines)} | {first} |"
