"""What a graph says about the kernels that run it."""

from __future__ import annotations

import onnx
import pytest

from bitswitch_deploy.pipeline.profiling.bench import multiplies_floats_by_int4

WEIGHT = "w = DequantizeLinear <axis = 1> (codes, scales)"
CODES = "q = QuantizeLinear (x, scale, zero) d = DequantizeLinear (q, scale, zero)"


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (f"{WEIGHT} y = MatMul (x, w)", "int4", True),
        (f"{WEIGHT} y = Gemm (x, w)", "int4", True),
        (f"{CODES} {WEIGHT} y = MatMul (d, w)", "int4", False),
        (f"{WEIGHT} y = MatMul (x, w)", "int8", False),
        (f"{CODES} {WEIGHT} y = Add (x, w)", "int4", False),
    ],
)
def test_only_floats_have_kernels_for_int4(body: str, kind: str, expected: bool) -> None:
    constants = (
        f"{kind}[2, 2] codes = {{1, 2, 3, 4}}, float[2] scales = {{1, 1}}, float scale = {{1}}, int8 zero = {{0}}"
    )
    text = f'<ir_version: 10, opset_import: ["" : 21]> g (float[2, 2] x) => (float[2, 2] y) <{constants}> {{ {body} }}'
    assert multiplies_floats_by_int4(onnx.parser.parse_model(text).graph) is expected
