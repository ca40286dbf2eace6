"""ModelOpt's int8 file of a float network.

    python tools/bench/modelopt_file.py FLOAT.onnx IMAGES.npy OUT.onnx

A process of its own, with any Python that has NVIDIA ModelOpt (`pip install -e '.[peers]'`): the package changes
logging and warnings for everybody who imports it. What it leaves in high precision stays float32: float16, its default,
takes several times longer on a CPU.
"""

from __future__ import annotations

import sys

import numpy as np


def main() -> None:
    from modelopt.onnx.quantization import quantize

    source, images, target = sys.argv[1:]
    quantize(
        source,
        quantize_mode="int8",
        calibration_data={"input": np.load(images)},
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=target,
    )


if __name__ == "__main__":
    main()
