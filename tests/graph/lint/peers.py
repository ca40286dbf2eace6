"""Files of other quantizers, made with their own packages: python -m tests.graph.lint.peers KIND FLOAT.onnx OUT.onnx.

A process of its own: these packages change logging, warnings and torch for everybody who imports them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser

SHAPE = (1, 3, 16, 16)

_NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
residual (float[1, 3, 16, 16] x) => (float[1, 10] y) {
    [stem] a0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w0, b0) a1 = Relu (a0)
    [left] c0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a1, w1, b1) c1 = Relu (c0)
    [right] c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (c1, w2, b2) [add] c3 = Add (c2, a1) c4 = Relu (c3)
    [pool] p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c4)
    [one] e0 = Conv <kernel_shape = [1, 1]> (p, w3, b3) e1 = Relu (e0)
    [two] e2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (p, w4, b4) e3 = Relu (e2)
    [concat] f = Concat <axis = 1> (e1, e3)
    [last] g0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (f, w5, b5) g1 = Relu (g0)
    [mean] h = GlobalAveragePool (g1) k = Flatten (h)
    [classify] y = Gemm <transB = 1> (k, w6, b6)
}"""
_WEIGHTS = ((8, 3, 3, 3), (8, 8, 3, 3), (8, 8, 3, 3), (8, 8, 1, 1), (8, 8, 3, 3), (16, 16, 3, 3), (10, 16))


def float_network() -> onnx.ModelProto:
    """A residual block, a concatenation of two branches and a classifier, with random weights: seven layers."""
    model = onnx.parser.parse_model(_NETWORK)
    rng = np.random.default_rng(11)
    for index, shape in enumerate(_WEIGHTS):
        fan_in = int(np.prod(shape[1:]))
        weight = rng.normal(size=shape) * np.sqrt(2 / fan_in)
        for name, values in ((f"w{index}", weight), (f"b{index}", rng.normal(size=shape[0]) * 0.1)):
            model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    return model


def samples(n: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Inputs to calibrate on, [n, 3, 16, 16]."""
    return np.random.default_rng(12).normal(size=(n, *SHAPE[1:])).astype(np.float32)


def modelopt_onnx(source: Path, target: Path) -> None:
    """ModelOpt's quantizer of ONNX files, int8, as it comes."""
    from modelopt.onnx.quantization import quantize

    quantize(
        str(source),
        quantize_mode="int8",
        calibration_data={"x": samples(4)},
        calibration_eps=["cpu"],
        output_path=str(target),
    )


def modelopt_torch(target: Path, *, linear: bool) -> None:
    """ModelOpt's quantizer of torch modules, exported by torch: two convolutions, or two layers on rows [1, 48, 16]."""
    import modelopt.torch.quantization as mtq
    import torch

    nn = torch.nn
    convolutions = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    rows = (nn.Flatten(1, 2), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))
    network = nn.Sequential(*(rows if linear else (*convolutions, *head))).eval()
    batch = torch.from_numpy(samples(4))
    quantized = mtq.quantize(network, mtq.INT8_DEFAULT_CFG, lambda module: module(batch))
    torch.onnx.export(quantized, (batch[:1],), str(target), dynamo=False, opset_version=17, input_names=["x"])


def brevitas_qcdq(target: Path, bits: int) -> None:
    """Brevitas' Quantize-Clip-Dequantize export of a network with `bits`-bit layers and an int32 bias."""
    import torch
    from brevitas.export import export_onnx_qcdq
    from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
    from brevitas.quant import Int8WeightPerChannelFloat, Int32Bias

    nn = torch.nn
    torch.manual_seed(0)
    per_channel: dict[str, Any] = {"weight_bit_width": bits, "weight_quant": Int8WeightPerChannelFloat}
    network = nn.Sequential(
        QuantIdentity(bit_width=8, return_quant_tensor=True),
        QuantConv2d(3, 8, 3, padding=1, bias_quant=Int32Bias, **per_channel),
        QuantReLU(bit_width=bits, return_quant_tensor=True),
        QuantConv2d(8, 8, 3, padding=1, bias_quant=Int32Bias, **per_channel),
        QuantReLU(bit_width=bits),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        QuantLinear(8, 10, bias=True, weight_bit_width=bits),
    )
    network(torch.from_numpy(samples(4)))
    export_onnx_qcdq(
        network.eval(), args=torch.from_numpy(samples(1)), export_path=str(target), opset_version=17, dynamo=False
    )


def main() -> None:
    kind, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if kind == "modelopt-onnx":
        modelopt_onnx(source, target)
    elif kind.startswith("modelopt"):
        modelopt_torch(target, linear=kind == "modelopt-torch-linear")
    else:
        brevitas_qcdq(target, bits=int(kind.removeprefix("brevitas-")))


if __name__ == "__main__":
    main()
