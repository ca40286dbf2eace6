"""Small Q/DQ graphs as ONNX text, and what the linter says to them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort

from bitswitch_deploy.engines.tensorrt_config import BuildSettings
from bitswitch_deploy.engines.tensorrt_engine import build_engine
from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.lint.finding import ENGINES, Engine, LintResult
from bitswitch_deploy.graph.lint.lint import lint
from bitswitch_deploy.graph.lint.linted_graph import LintedGraph

IR_VERSIONS = {10: 5, 13: 7, 17: 8, 19: 9, 20: 9, 21: 10, 23: 11, 25: 13}

# Scales s*, zero-points: i int8, u uint8, h int16, ending in m where they are not 0; four output channels.
CONSTANTS = """
    float s = {0.05}, float s2 = {0.07}, float[4] sw = {0.1, 0.2, 0.1, 0.3}, float s1 = {0.1},
    int8 i = {0}, int8 im = {-128}, uint8 u = {0}, uint8 um = {128}, int16 h = {0}, uint16 uh = {0},
    int8[4] iw = {0, 0, 0, 0}, float lo = {0}, float hi = {6}, int8 ilo = {-7}, int8 ihi = {7}, uint8 ulo = {0},
    uint8 uhi = {15}, float[4] bias = {0.1, 0.2, 0.3, 0.4}, int32[4] b = {1, 2, 3, 4},
    float[4] sb = {0.005, 0.01, 0.005, 0.015}, float[4] one = {1, 1, 1, 1}"""

# The zero-point that `with_zero` replaces.
ZERO = "ZERO"


def pair(source: str, result: str, scale: str = "s2", zero: str = ZERO, *, on_codes: str = "") -> str:
    """Nodes q_RESULT and dq_RESULT; `on_codes`: an operator with its other arguments, `Clip (*, ulo, uhi)`."""
    codes = f"{result}_codes"
    text = f" [q_{result}] {codes} = QuantizeLinear ({source}, {scale}, {zero})"
    if on_codes:
        text += f" {codes}_ = {on_codes.replace('*', codes)}"
        codes += "_"
    return f"{text} [dq_{result}] {result} = DequantizeLinear ({codes}, {scale}, {zero}) "


def weight(axis: int = 0, scale: str = "sw", zero: str = "iw", *, codes: str = "w") -> str:
    """Node dq_wd, which makes the weight `wd`."""
    return f" [dq_wd] wd = DequantizeLinear <axis = {axis}> ({codes}, {scale}, {zero}) "


IN, OUT, WEIGHT = pair("x", "d", "s"), pair("c", "y"), weight()
LAYER = " [conv] c = Conv (d, wd) "
CONV = IN + WEIGHT + LAYER + OUT


def with_zero(text: str, zero: str) -> str:
    """The text with a zero-point: u, i, im, ..."""
    return text.replace(ZERO, zero)


def model(
    body: str,
    *,
    opset: int = 21,
    x: str = "1, 4, 8, 8",
    y: str = "a, b, c, d",
    shape: tuple[int, ...] = (4, 4, 3, 3),
    constants: str = "",
    outputs: str = "",
) -> onnx.ModelProto:
    """A graph float[x] x -> float[y] y and more `outputs`.

    int8 `w`, uint8 `wu`, float `f` and int4 `n` of `shape` are there to read.
    """
    more = f", {constants}" if constants else ""
    header = f'<ir_version: {IR_VERSIONS[opset]}, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    handed_out = f", {outputs}" if outputs else ""
    text = f"{header} net (float[{x}] x) => (float[{y}] y{handed_out}) <{CONSTANTS}{more}> {{ {body} }}"
    made = onnx.parser.parse_model(text)
    rng = np.random.default_rng(3)
    codes = rng.integers(-100, 100, shape)
    made.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(codes.astype(np.int8), "w"),
            onnx.numpy_helper.from_array((codes + 100).astype(np.uint8), "wu"),
            onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), "f"),
            onnx.helper.make_tensor("n", onnx.TensorProto.INT4, shape, (codes // 16).ravel()),
            onnx.helper.make_tensor("in", onnx.TensorProto.INT4, [4], [0] * 4),
        ]
    )
    read = {name for node in made.graph.node for name in node.input}
    kept = [tensor for tensor in made.graph.initializer if tensor.name in read]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    return made


def linted(graph: onnx.ModelProto, *engines: Engine) -> LintResult:
    return lint(LintedGraph(graph, where="test"), engines=engines or ENGINES)


def found(graph: onnx.ModelProto, rule: str) -> list[tuple[str, str]]:
    """Node and `got` of every finding of one rule."""
    return [(finding.node, finding.got) for finding in linted(graph).findings if finding.rule == rule]


def nodes(graph: onnx.ModelProto, rule: str) -> list[str]:
    return [node for node, _ in found(graph, rule)]


def optimised_operators(graph: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Operators of the graph that onnxruntime really runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(folder / "optimised.onnx")
    return Counter(node.op_type for node in optimised.graph.node)


def rtx_refusal(graph: onnx.ModelProto, *, gpu: str = "SM86") -> str | None:
    """What TensorRT for RTX says when it does not build the graph for `gpu`, or would misread it; None where it builds.

    FP8 takes SM89, FP4 SM120.
    """
    settings = BuildSettings(workspace_mb=64, compute_capabilities=(gpu,))
    try:
        build_engine(graph.SerializeToString(), module="tensorrt_rtx", settings=settings)
    except GraphError as exc:
        return exc.got
    return None
