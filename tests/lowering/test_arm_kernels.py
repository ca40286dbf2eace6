"""What the kernels of onnxruntime on ARM are given, by inspection: nothing here runs on ARM.

They multiply unsigned activations by signed weights with symmetric codes, and scale the sums per output channel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from bitswitch_deploy.catalogue import bundled_master, sample_set
from bitswitch_deploy.engines.onnxruntime_engine import save_optimized
from bitswitch_deploy.graph.canonical import CanonicalGraph, canonical_graph
from bitswitch_deploy.lowering.lower import calibrated_tensors, lower
from bitswitch_deploy.lowering.ranges import RangeObserver, TensorRange
from bitswitch_deploy.master import read_master
from bitswitch_deploy.target import Target
from bitswitch_deploy.tensors import WidthAssignment
from tests.graph.running import look
from tests.lowering.lowered import profile

ARM, X86 = profile("arm64-cpu"), profile("x86-cpu")
MIXED = WidthAssignment(default=8, overrides=(("blocks.0.conv1", 4), ("blocks.1.conv2", 2)))
ASSIGNMENTS = (*(WidthAssignment(default=bits) for bits in (8, 6, 4, 2)), MIXED)
MASTER = read_master(bundled_master())
# of QLinearConv, in the order of its inputs
X_ZERO, W, W_SCALE, W_ZERO, Y_ZERO = 2, 3, 4, 5, 7

every_assignment = pytest.mark.parametrize("assignment", ASSIGNMENTS, ids=lambda each: each.label)


def lowered(assignment: WidthAssignment, target: Target) -> onnx.ModelProto:
    canonical = canonical_graph(MASTER, assignment)
    return lower(canonical, target, ranges=ranges(canonical, target)).model


def ranges(canonical: CanonicalGraph, target: Target) -> dict[str, TensorRange]:
    """Of a few test images."""
    samples = sample_set("digits")
    assert samples is not None
    x = np.load(samples.test)["x"][:20].reshape(-1, 1, 8, 8).astype(np.float32)
    found = {}
    for name in calibrated_tensors(canonical, target):
        observer = RangeObserver()
        observer.observe(look(canonical.model, x, name))
        found[name] = observer.result()
    return found


@every_assignment
def test_integer_convolutions_are_unsigned_by_symmetric_signed_per_channel(
    assignment: WidthAssignment, tmp_path: Path
) -> None:
    path = tmp_path / "optimised.onnx"
    model = lowered(assignment, ARM)
    save_optimized(model.SerializeToString(), path, session_options=dict(ARM.engine.session))
    graph = onnx.load(str(path)).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "QLinearConv"]
    quantized = [layer for layer in MASTER.spec.layers if layer.operator == "Conv" and not layer.pinned]
    assert len(convolutions) == len(quantized)
    for node in convolutions:
        x_zero, weights, scales, w_zero, y_zero = (
            constants[node.input[index]] for index in (X_ZERO, W, W_SCALE, W_ZERO, Y_ZERO)
        )
        assert [each.dtype.name for each in (x_zero, weights, y_zero)] == ["uint8", "int8", "uint8"]
        assert not w_zero.any()
        assert scales.shape == (weights.shape[0],)


@every_assignment
def test_graphs_are_those_that_run_here(assignment: WidthAssignment) -> None:
    """So what was measured of accuracy and exactness on x86 was measured on the graphs for ARM."""
    arm, x86 = (lowered(assignment, target).graph for target in (ARM, X86))
    assert arm == x86
    assert ARM.engine.session == X86.engine.session
