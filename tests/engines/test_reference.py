from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort

from bitswitch_deploy.engines.reference import PATIENT, ReferenceSession


def test_the_reference_computes_what_is_written(int4_matmul: bytes) -> None:
    tensors = {tensor.name: tensor for tensor in onnx.load_model_from_string(int4_matmul).graph.initializer}
    codes = onnx.numpy_helper.to_array(tensors["codes"]).astype(np.float32)
    scales = onnx.numpy_helper.to_array(tensors["scales"])
    x = np.random.default_rng(1).standard_normal((2, 32)).astype(np.float32)
    expected = x.astype(np.float64) @ (codes * np.repeat(scales, 16, axis=0)).astype(np.float64)
    np.testing.assert_allclose(ReferenceSession(int4_matmul).run(x), expected, rtol=1e-5, atol=1e-6)


def test_nothing_is_optimised(qdq_conv: Callable[..., bytes]) -> None:
    options = ReferenceSession(qdq_conv())._session.get_session_options()
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert options.intra_op_num_threads == 1
    assert {key: options.get_session_config_entry(key) for key in PATIENT} == PATIENT
    assert ReferenceSession(qdq_conv(), threads=2)._session.get_session_options().intra_op_num_threads == 2
