"""A tiny valid master, built by hand: pinned Conv, switchable BatchNorm, quantized Conv, Relu, pinned Gemm.

x [n, 3, 8, 8] -> stem (pinned) -> bn (one copy per width) -> Relu -> conv (int8, per channel) -> Relu
  -> GlobalAveragePool -> Flatten -> fc (pinned) -> logits [n, 10]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser

from bitswitch_deploy.master import Master, assemble_master
from bitswitch_deploy.master.spec import LayerSpec, MasterSpec, MeasuredAccuracy, ValueSpec
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.tensors import PER_TENSOR, Granularity, Rounding

Array = np.ndarray[Any, np.dtype[Any]]

WIDTHS = (8, 6, 4, 2)

SKELETON_TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
tiny (float[n, 3, 8, 8] x, float[4, 3, 3, 3] "stem.weight", float[4] "bn.weight", float[4] "bn.bias",
      float[4] "bn.mean", float[4] "bn.var", float[6, 4, 3, 3] "conv.weight", float[6] "conv.bias",
      float[10, 6] "fc.weight", float[10] "fc.bias") => (float[n, 10] logits)
{
    stem = Conv <pads: ints = [1, 1, 1, 1]> (x, "stem.weight")
    normal = BatchNormalization (stem, "bn.weight", "bn.bias", "bn.mean", "bn.var")
    active = Relu (normal)
    conv = Conv <pads: ints = [1, 1, 1, 1]> (active, "conv.weight", "conv.bias")
    rectified = Relu (conv)
    pooled = GlobalAveragePool (rectified)
    flat = Flatten (pooled)
    logits = Gemm <transB: int = 1> (flat, "fc.weight", "fc.bias")
}
"""


def tiny_skeleton() -> onnx.ModelProto:
    """Build the network; its parameters are graph inputs."""
    return onnx.parser.parse_model(SKELETON_TEXT)


def tiny_spec() -> MasterSpec:
    """Build the spec that goes with `tiny_skeleton`."""
    conv = LayerSpec(
        name="conv",
        operator="Conv",
        weight="conv.weight",
        granularity=Granularity(kind="per_channel", axis=0),
        activation="unsigned",
    )
    stem = _pinned("stem", "Conv")
    return MasterSpec(
        bits=8,
        widths=WIDTHS,
        rounding=Rounding.HALF_UP,
        activation_container="uint8",
        layers=(stem, conv, _pinned("fc", "Gemm")),
        switchable=("bn.weight", "bn.bias", "bn.mean", "bn.var"),
        parameters=("conv.bias", "fc.bias"),
        inputs=(ValueSpec(name="x", dtype="float", shape=("n", 3, 8, 8)),),
        outputs=(ValueSpec(name="logits", dtype="float", shape=("n", 10)),),
        preprocessing=Preprocessing(
            colour="RGB", size=(8, 8), divide_by=255.0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5)
        ),
        accuracy=tuple(
            MeasuredAccuracy(
                bits=bits, metric="top1", value=90.0 + bits, n=100, dataset="tiny", dataset_sha256="0" * 64
            )
            for bits in WIDTHS
        ),
        provenance=(("recipe", "by hand"), ("seed", "7")),
    )


def tiny_tensors() -> dict[str, Array]:
    """Build the tensors that go with `tiny_spec`; always the same numbers."""
    random = np.random.default_rng(7)
    copies = len(WIDTHS)
    tensors: dict[str, Array] = {
        "stem.weight": random.normal(0, 0.3, (4, 3, 3, 3)),
        "bn.weight": random.uniform(0.5, 1.5, (copies, 4)),
        "bn.bias": random.normal(0, 0.2, (copies, 4)),
        "bn.mean": random.normal(0, 0.2, (copies, 4)),
        "bn.var": random.uniform(0.5, 1.5, (copies, 4)),
        "conv.weight.scale": random.uniform(0.002, 0.01, 6),
        "conv.bias": random.normal(0, 0.1, 6),
        "conv.input.scale": np.array([0.012, 0.05, 0.2, 0.9]),
        "fc.weight": random.normal(0, 0.3, (10, 6)),
        "fc.bias": random.normal(0, 0.1, 10),
    }
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    tensors["conv.weight"] = random.integers(-128, 128, (6, 4, 3, 3), dtype=np.int8)
    return tensors


def tiny_master() -> Master:
    """Build the whole master, checked."""
    return assemble_master(spec=tiny_spec(), tensors=tiny_tensors(), skeleton=tiny_skeleton())


def _pinned(name: str, operator: str) -> LayerSpec:
    return LayerSpec(
        name=name,
        operator=operator,  # type: ignore[arg-type]
        weight=f"{name}.weight",
        granularity=PER_TENSOR,
        activation="none",
        pinned=True,
    )
