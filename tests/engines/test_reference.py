from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from bitswitch_deploy.engines.reference import PATIENT, ReferenceSession


def test_the_reference_computes_what_is_written(int4_matmul: bytes) -> None:
    tensors = {tensor.name: tensor for tensor in onnx.load_model_from_string(int4_matmul).graph.initializer}
    codes = onnx.numpy_helper.to_array(tensors["codes"]).astype(np.float32)
    scales = onnx.numpy_helper.to_array(tensors["scales"])
    x = np.random.default_rng(1).standard_normal((2, 32)).astype(np.float32)
    expected = x.astype(np.float64) @ (codes * np.repeat(scales, 16, axis=0)).astype(np.float64)
    np.testing.assert_allclose(ReferenceSession(int4_matmul).run(x), expected, rtol=1e-5, atol=1e-6)


def test_nothing_is_optimised(qdq_conv: Callable[..., bytes]) -> None:
    session = ReferenceSession(qdq_conv())
    assert session.environment.optimisation == "off"
    assert session.environment.threads == 1
    assert session.environment.session_options == tuple(PATIENT.items())
    assert ReferenceSession(qdq_conv(), threads=2).environment.threads == 2
