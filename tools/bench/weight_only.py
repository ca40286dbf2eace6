"""Linear layers with float inputs and quantized weights on onnxruntime: time and error of each form, at each width.

    pip install -e . && python tools/bench/weight_only.py [--inputs 768] [--outputs 768] [--json results.json]

One MatMul with random weights (seed 0), lowered for x86-cpu: without approximations, and with `int8-inputs`. Beside it
the float32 MatMul of the same weights, and the graph with DequantizeLinear that the canonical graph has, which is what
onnxruntime makes of such a file by itself. One thread, turns of all forms in one process, seconds of its CPU; ratios of
medians to float32. Error: largest difference to a product in float64, over the largest output.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from bitswitch_deploy.catalogue import load_target
from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.lowering.approximation import EXACT, Approximation
from bitswitch_deploy.lowering.lower import lower
from bitswitch_deploy.master import Master, assemble_master
from bitswitch_deploy.master.spec import LayerSpec, MasterSpec, ValueSpec
from bitswitch_deploy.quantization import derive_codes
from bitswitch_deploy.tensors import Granularity, Rounding, WidthAssignment

WIDTHS = (8, 6, 4, 2)
ROWS = (1, 16, 197)
FORMS = {"exact": EXACT, "int8-inputs": frozenset({Approximation.INT8_INPUTS})}
FLOAT, PLAIN = "float32", "DequantizeLinear"
RUNS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One form. rows: of the input. megabytes: of the serialized graph."""

    bits: int
    rows: int
    form: str
    ratio_to_float32: float
    error: float
    megabytes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=768)
    parser.add_argument("--outputs", type=int, default=768)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the rows and the versions here as well")
    options = parser.parse_args()
    master = make_master(options.inputs, options.outputs)
    rows = [row for bits in WIDTHS for row in measure(master, bits, max(5, options.turns))]
    print(f"{'bits':>4} {'rows':>5} {'form':<17} {'of float32':>10} {'error':>8} {'MB':>6}")
    for row in rows:
        print(
            f"{row.bits:>4} {row.rows:>5} {row.form:<17} {row.ratio_to_float32:>10.2f} {row.error:>8.0e}"
            f" {row.megabytes:>6.2f}"
        )
    versions = {name: metadata.version(name) for name in ("onnxruntime", "onnx", "numpy")}
    versions |= {"python": platform.python_version(), "machine": platform.machine()}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    if options.json:
        result = {"versions": versions, "rows": list(map(asdict, rows))}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def make_master(inputs: int, outputs: int) -> Master:
    """The master of one MatMul whose input stays float."""
    text = (
        f'<ir_version: 10, opset_import: ["" : 21]> net (float[n, {inputs}] x, float[{inputs}, {outputs}] "a.weight")'
        f' => (float[n, {outputs}] y) {{ y = MatMul (x, "a.weight") }}'
    )
    layer = LayerSpec(
        name="a",
        operator="MatMul",
        weight="a.weight",
        granularity=Granularity(kind="per_channel", axis=1),
        activation="none",
    )
    spec = MasterSpec(
        bits=8,
        widths=WIDTHS,
        rounding=Rounding.HALF_UP,
        activation_container="int8",
        layers=(layer,),
        switchable=(),
        parameters=(),
        inputs=(ValueSpec(name="x", dtype="float", shape=("n", inputs)),),
        outputs=(ValueSpec(name="y", dtype="float", shape=("n", outputs)),),
        preprocessing=None,
        accuracy=(),
        provenance=(),
    )
    random = np.random.default_rng(0)
    tensors = {
        "a.weight": random.integers(-128, 128, (inputs, outputs), np.int8),
        "a.weight.scale": random.uniform(0.001, 0.002, outputs).astype(np.float32),
    }
    return assemble_master(spec=spec, tensors=tensors, skeleton=onnx.parser.parse_model(text))


def measure(master: Master, bits: int, turns: int) -> list[Row]:
    """Every form of one width on every number of rows."""
    target = load_target("x86-cpu").target
    canonical = canonical_graph(master, WidthAssignment(default=bits))
    models = {FLOAT: _float_model(master, bits), PLAIN: canonical.model}
    for name, approximations in FORMS.items():
        models[name] = lower(canonical, target, ranges={}, approximations=approximations).model
    data = {name: model.SerializeToString() for name, model in models.items()}
    sessions = {
        # what a user gets who sets nothing
        name: OnnxRuntimeSession(each, optimisation="all", threads=1, session_options={})
        for name, each in data.items()
    }
    rows = []
    weight = onnx.numpy_helper.to_array(models[FLOAT].graph.initializer[0]).astype(np.float64)
    for count in ROWS:
        x = np.random.default_rng(1).normal(size=(count, weight.shape[0])).astype(np.float32)
        seconds = _turns(sessions, x, turns)
        reference = x.astype(np.float64) @ weight
        for name in (PLAIN, *FORMS):
            rows.append(
                Row(
                    bits=bits,
                    rows=count,
                    form=name,
                    ratio_to_float32=statistics.median(seconds[name]) / statistics.median(seconds[FLOAT]),
                    error=float(np.abs(sessions[name].run(x) - reference).max() / np.abs(reference).max()),
                    megabytes=len(data[name]) / 1e6,
                )
            )
    return rows


def _float_model(master: Master, bits: int) -> onnx.ModelProto:
    """The network with the dequantized weights as float32."""
    codes = derive_codes(np.asarray(master.tensors["a.weight"]), from_bits=8, to_bits=bits, rounding=Rounding.HALF_UP)
    weight = codes * (np.asarray(master.tensors["a.weight.scale"]) * np.float32(2 ** (8 - bits)))
    model = onnx.ModelProto()
    model.CopyFrom(master.skeleton)
    del model.graph.input[1:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), "a.weight"))
    return model


def _turns(sessions: dict[str, OnnxRuntimeSession], x: np.ndarray, turns: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(turns):
        for name, session in sessions.items():
            session.run(x)
            start = time.thread_time()
            for _ in range(RUNS):
                session.run(x)
            seconds[name].append(time.thread_time() - start)
    return seconds


if __name__ == "__main__":
    ort.set_default_logger_severity(3)
    main()
