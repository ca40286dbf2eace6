"""Latency of every width on onnxruntime, beside its own `quantize_static` and float32, on the same network.

    pip install -e '.[train]' && python tools/bench/latency.py [--networks resnet20,...] [--json results.json]

Networks have random weights, calibrated on noise, and BatchNormalizations as training leaves them: some gains negative,
some next to nothing. Ours are lowered for x86-cpu (or --target) with the usual approximations, and with all that the
user can ask for. The peers: onnxruntime.quantization.quantize_static, pre-processed, QDQ, uint8 activations, int8
weights per channel; and NVIDIA ModelOpt's int8 file, where this Python or that of --modelopt has the package
(modelopt_file.py) and onnxruntime loads what it writes: else its row says why not. With --chart it draws the chart of
the README, of the first batch and number of threads. Every candidate has a process of its own, all loaded at once; they
take turns, a turn is about 50 ms of runs, and a figure is the ratio of medians over all turns. Turns of one thread are
timed in processor time of that thread, which other work on the machine disturbs least; turns of more in wall time.
Behind every third turn all processes begin anew: with two threads one process in five is a fifth slower from its first
run to its last, whatever graph it has.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from bitswitch_deploy.catalogue import load_target
from bitswitch_deploy.engines.optimized_operators import optimized_operators
from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.canonical import CanonicalGraph, canonical_graph
from bitswitch_deploy.lowering.approximation import USUAL, Approximation
from bitswitch_deploy.lowering.lower import calibrated_tensors, lower
from bitswitch_deploy.lowering.ranges import RangeObserver, TensorRange
from bitswitch_deploy.target import Target
from bitswitch_deploy.tensors import WidthAssignment
from tools.bench.latency_chart import chart
from tools.bench.untrained import NETWORKS, untrained_master, untrained_network

WIDTHS = (8, 6, 4, 2)
FORMS = {
    "": USUAL,
    " fast": USUAL | {Approximation.PINNED_LAYERS, Approximation.FULL_RESOLUTION, Approximation.FULL_RESOLUTION_SIGNED},
}
# What each of the three is worth.
SPLIT = {
    " pinned": USUAL | {Approximation.PINNED_LAYERS},
    " full": USUAL | {Approximation.FULL_RESOLUTION},
    " signed": USUAL | {Approximation.FULL_RESOLUTION, Approximation.FULL_RESOLUTION_SIGNED},
}
PEER, FLOAT, MODELOPT = "quantize_static", "float32", "modelopt"
TURN_SECONDS = 0.05
TURNS_OF_A_PROCESS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One candidate. Ratios are of medians; spread: (third - first quartile) / median of its turns.

    operators: of the graph that onnxruntime makes of it.
    """

    network: str
    batch: int
    threads: int
    candidate: str
    turns: int
    median_ms: float
    ratio_to_quantize_static: float
    ratio_to_float32: float
    spread: float
    operators: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """A candidate that could not be measured, and why."""

    network: str
    candidate: str
    reason: str


class Noise(CalibrationDataReader):  # type: ignore[misc]
    """Calibration images for quantize_static."""

    def __init__(self, images: np.ndarray) -> None:
        self._batches = iter(np.split(images, 2))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch by input name, None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--target", default="x86-cpu")
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--turns", type=int, default=25, help="of each candidate; at least 5")
    parser.add_argument(
        "--json",
        type=Path,
        help="write the rows and the versions here as well; rows of networks that are not measured now stay in it",
    )
    parser.add_argument("--split", action="store_true", help="each approximation for speed alone, too")
    parser.add_argument("--chart", type=Path, help="draw them here, as SVG")
    parser.add_argument(
        "--modelopt", default=sys.executable, metavar="PYTHON", help="a Python that has NVIDIA ModelOpt"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    versions = {name: metadata.version(name) for name in ("onnxruntime", "onnx", "torch", "numpy")}
    versions |= {"python": platform.python_version(), "machine": platform.machine()}
    earlier = None
    if options.json and options.json.exists():
        earlier = json.loads(options.json.read_text(encoding="utf-8"))
        if earlier["versions"] != versions:
            parser.error(
                f"{options.json} was measured with other versions: {earlier['versions']}. Choose another file."
            )
    batches, threads = ([int(each) for each in text.split(",")] for text in (options.batches, options.threads))
    rows: list[Row] = []
    absent: list[Absent] = []
    for network in options.networks.split(","):
        with tempfile.TemporaryDirectory(prefix="bitswitch-") as folder:
            target, forms = load_target(options.target).target, FORMS | SPLIT if options.split else FORMS
            candidates = make(network, target, Path(folder), forms)
            reason = _modelopt(options.modelopt, candidates[FLOAT], candidates[FLOAT].with_name("modelopt.onnx"))
            if reason is None:
                candidates[MODELOPT] = candidates[FLOAT].with_name("modelopt.onnx")
            else:
                absent.append(Absent(network=network, candidate=MODELOPT, reason=reason))
            operators = {name: dict(optimized_operators(path, session_options={})) for name, path in candidates.items()}
            for batch in batches:
                for count in threads:
                    measured = measure(candidates, batch, count, max(5, options.turns))
                    rows += _rows(network, batch, count, measured, operators)
                    _print(rows[-len(measured) :], absent)
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    result = {"versions": versions, "rows": list(map(asdict, rows)), "absent": list(map(asdict, absent))}
    if options.json:
        if earlier is not None:
            result = with_earlier(result, earlier)
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.chart:
        drawn = chart(list(map(asdict, rows)), batch=batches[0], threads=threads[0])
        options.chart.write_text(drawn, encoding="utf-8")


def with_earlier(result: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """`result`, and what was measured earlier of other networks, in the order of the networks."""
    measured = {row["network"] for row in result["rows"]}

    def merged(kind: str) -> list[dict[str, Any]]:
        kept = [row for row in earlier[kind] if row["network"] not in measured]
        return sorted([*kept, *result[kind]], key=lambda row: list(NETWORKS).index(row["network"]))

    return {**result, "rows": merged("rows"), "absent": merged("absent")}


def make(network: str, target: Target, folder: Path, forms: dict[str, frozenset[Approximation]]) -> dict[str, Path]:
    """The graphs of every candidate, by name."""
    model, images = untrained_network(network)
    np.save(folder / "images.npy", images.numpy())
    paths = {FLOAT: folder / "float.onnx", PEER: folder / "peer.onnx"}
    _export_float(model, images, paths[FLOAT])
    _quantize_static(paths[FLOAT], paths[PEER], images.numpy())
    return paths | ours(model, images, target, folder, forms)


def ours(
    model: nn.Module,
    images: Tensor,
    target: Target,
    folder: Path,
    forms: dict[str, frozenset[Approximation]],
    widths: Sequence[int] = WIDTHS,
) -> dict[str, Path]:
    """Those that this package makes. model: as `untrained_network` gives it, which is used up."""
    paths = {}
    master = untrained_master(model, images, WIDTHS)
    for bits in widths:
        canonical = canonical_graph(master, WidthAssignment(default=bits))
        for suffix, approximations in forms.items():
            names = calibrated_tensors(canonical, target, approximations)
            ranges = _ranges(canonical, names, images.numpy())
            path = folder / f"w{bits}{suffix.strip()}.onnx"
            onnx.save(lower(canonical, target, ranges=ranges, approximations=approximations).model, str(path))
            paths[f"w{bits}{suffix}"] = path
    return paths


def _export_float(model: nn.Module, images: Tensor, path: Path) -> None:
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        model,
        (images[:2],),
        str(path),
        dynamo=True,
        verbose=False,
        external_data=False,
        dynamic_shapes=({0: batch},),
        input_names=["input"],
        output_names=["logits"],
    )


def _quantize_static(source: Path, destination: Path, images: np.ndarray) -> None:
    prepared = source.with_name("prepared.onnx")
    # its symbolic shape inference gives up on a detector, and leaves a file in the folder of the caller; the other one,
    # which follows, knows all shapes of these networks
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(destination),
        Noise(images),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


def _modelopt(python: str, source: Path, destination: Path) -> str | None:
    """Write ModelOpt's file; or say why there is none that onnxruntime runs."""
    script, images = Path(__file__).with_name("modelopt_file.py"), source.with_name("images.npy")
    command = [python, str(script), str(source), str(images), str(destination)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        return (made.stderr.strip().splitlines() or [f"exit code {made.returncode}"])[-1]
    try:
        optimized_operators(destination, session_options={})
    except GraphError as error:
        return f"onnxruntime does not load it: {error.got}"
    return None


def _ranges(canonical: CanonicalGraph, names: tuple[str, ...], images: np.ndarray) -> dict[str, TensorRange]:
    model = onnx.ModelProto()
    model.CopyFrom(canonical.model)
    inputs = {value.name for value in model.graph.input}
    for name in names:
        if name not in inputs:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    seen = {"input": images, **ReferenceSession(model.SerializeToString(), threads=1).run_all({"input": images})}
    ranges = {}
    for name in names:
        observer = RangeObserver()
        observer.observe(seen[name])
        ranges[name] = observer.result()
    return ranges


def measure(candidates: dict[str, Path], batch: int, threads: int, turns: int) -> dict[str, list[float]]:
    """Seconds for one run in each turn, by candidate."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for first in range(0, turns, TURNS_OF_A_PROCESS):
        with ExitStack() as stack:
            workers = {name: stack.enter_context(_worker(path, batch, threads)) for name, path in candidates.items()}
            for name, worker in workers.items():
                if (said := _line(worker)) != "ready":
                    raise RuntimeError(f"{name} did not load: {said!r}")
            for _ in range(first, min(turns, first + TURNS_OF_A_PROCESS)):
                for name, worker in workers.items():
                    seconds[name].append(float(_line(worker, "go\n")))
    return seconds


def _worker(path: Path, batch: int, threads: int) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("latency_worker.py")
    command = [sys.executable, str(script), str(path), str(batch), str(threads), str(TURN_SECONDS)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _line(worker: subprocess.Popen[str], word: str = "") -> str:
    """What a worker says next, after `word` was said to it."""
    if worker.stdin is None or worker.stdout is None:
        raise AssertionError("made with pipes")
    worker.stdin.write(word)
    worker.stdin.flush()
    return worker.stdout.readline().strip()


def _rows(
    network: str, batch: int, threads: int, seconds: dict[str, list[float]], operators: dict[str, dict[str, int]]
) -> list[Row]:
    medians = {name: statistics.median(turns) for name, turns in seconds.items()}
    rows = []
    for name, turns in seconds.items():
        first, _, third = statistics.quantiles(turns, n=4)
        rows.append(
            Row(
                network=network,
                batch=batch,
                threads=threads,
                candidate=name,
                turns=len(turns),
                median_ms=1e3 * medians[name],
                ratio_to_quantize_static=medians[name] / medians[PEER],
                ratio_to_float32=medians[name] / medians[FLOAT],
                spread=(third - first) / medians[name],
                operators=operators[name],
            )
        )
    return rows


def _print(rows: list[Row], absent: list[Absent]) -> None:
    first = rows[0]
    print(f"\n{first.network}, batch {first.batch}, threads {first.threads}")
    print(f"{'candidate':<16} {'ms':>9} {'of quantize_static':>19} {'of float32':>11} {'spread':>7}")
    for row in rows:
        print(
            f"{row.candidate:<16} {row.median_ms:>9.3f} {row.ratio_to_quantize_static:>19.2f}"
            f" {row.ratio_to_float32:>11.2f} {row.spread:>7.0%}"
        )
    for each in absent:
        if each.network == first.network:
            print(f"{each.candidate:<16} not measured: {each.reason}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
