"""Run a model with onnxruntime and look inside: any tensor, with optimisations on or off."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession, Optimisation

Array = np.ndarray[Any, np.dtype[Any]]

# What older releases fuse, misread, refuse or cannot compute is another matter; Python 3.10 ends at 1.23.
needs_current_onnxruntime = pytest.mark.skipif(
    tuple(map(int, ort.__version__.split(".")[:2])) < (1, 32), reason="holds for onnxruntime 1.32"
)


def watched(model: onnx.ModelProto, names: tuple[str, ...]) -> onnx.ModelProto:
    """Copy a model and make `names` its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    known |= {value.name: value for value in model.graph.output}
    del copy.graph.output[:]
    copy.graph.output.extend(known[name] for name in names)
    return copy


def run(
    model: onnx.ModelProto, x: Array, *, optimisation: Optimisation = "off", session: dict[str, str] | None = None
) -> Array:
    """Give the first output for the only input."""
    loaded = OnnxRuntimeSession(
        model.SerializeToString(), optimisation=optimisation, threads=1, session_options=session or {}
    )
    return loaded.run(x)


def look(model: onnx.ModelProto, x: Array, name: str, *, optimisation: Optimisation = "off") -> Array:
    """Give the tensor `name` for the only input."""
    return run(watched(model, (name,)), x, optimisation=optimisation)


def initializer(model: onnx.ModelProto, name: str) -> Array:
    """Give the constant `name`."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return np.asarray(onnx.numpy_helper.to_array(tensor))


def operators(model: onnx.ModelProto) -> list[str]:
    """List the operator types in node order."""
    return [node.op_type for node in model.graph.node]
