"""How much memory the export of a large master takes: a synthetic transformer, sharded, at one width, no data.

    python tools/bench/export_large.py [--weights 1e9] [--bits 4] [--target x86-cpu] [--json results.json]

The export runs in a process of its own, which is asked for three peaks:

* rss: all memory of the process, counting the pages of the mapped master that the system has read in for it. The system
  takes those back when it needs them, so this is an upper bound (getrusage, of the child).
* pss: the same, a page shared with others counted in part (smaps_rollup, sampled every 20 ms by the parent).
* anonymous: what nobody but the process has, in the way of what malloc returned (smaps_rollup as well).

Everything is compared with the size of the master's files. Needs disk space for three times the weights, and Linux.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bitswitch_deploy.master import assemble_master, write_master
from bitswitch_deploy.master.spec import LayerSpec, MasterSpec, ValueSpec
from bitswitch_deploy.tensors import Granularity, Rounding

Array = np.ndarray[Any, np.dtype[Any]]

WIDTHS = (8, 6, 4, 2)
_TOKENS = 16
_SAMPLE_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Size of the network: `blocks` transformer blocks of width `dim`; one has 12 * dim^2 weights.

    weight_only: inputs of layers stay float.
    """

    dim: int
    blocks: int
    weight_only: bool = False

    @property
    def weights(self) -> int:
        """Quantized weights in all."""
        return 12 * self.dim**2 * self.blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """Highest values seen, in bytes; see the module docstring."""

    rss: int
    pss: int
    anonymous: int


def shape_for(weights: int) -> Shape:
    """A network of about that many weights, in the proportions that are usual: the wider, the more blocks."""
    dim = max(64, round((weights / 12 / 0.0117) ** (1 / 3) / 64) * 64)
    return Shape(dim=dim, blocks=max(1, round(weights / (12 * dim**2))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=float, default=1e9, help="how many, about")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--target", default="x86-cpu")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder, removed at the end")
    parser.add_argument("--json", type=Path, help="write the results here as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = run(Path(folder), shape_for(int(options.weights)), bits=options.bits, target=options.target)
    _print(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def run(folder: Path, shape: Shape, *, bits: int, target: str) -> dict[str, Any]:
    """Make the master, export it, look at what came out."""
    index = folder / "synthetic.safetensors.index.json"
    started = time.monotonic()
    write_synthetic(index, shape)
    made_s = time.monotonic() - started
    master_bytes = sum(path.stat().st_size for path in folder.glob("synthetic*.safetensors*"))
    command = [sys.executable, "-m", "bitswitch_deploy", "export", "--json", "--target", target]
    command += ["--master", str(index), "--bits", str(bits), "--output", str(folder / "package")]
    started = time.monotonic()
    report, peaks = watch(command)
    export_s = time.monotonic() - started
    files = {path.name: path.stat().st_size for path in sorted((folder / "package").iterdir())}
    return {
        "weights": shape.weights,
        "shape": asdict(shape),
        "bits": bits,
        "target": target,
        "master_bytes": master_bytes,
        "package_files": files,
        "peaks": asdict(peaks),
        "ratios": {name: value / master_bytes for name, value in asdict(peaks).items()},
        "not_done": [entry["what"] for entry in report["not_done"]],
        "seconds": {"make": round(made_s, 1), "export": round(export_s, 1)},
        "versions": {name: metadata.version(name) for name in ("bitswitch-deploy", "numpy", "onnx")}
        | {"python": platform.python_version()},
    }


def watch(command: list[str]) -> tuple[dict[str, Any], Peaks]:
    """Run a command that prints JSON, and note how much memory it takes."""
    pss = anonymous = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            now = _rollup(process.pid)
            pss, anonymous = max(pss, now.get("Pss", 0)), max(anonymous, now.get("Anonymous", 0))
            time.sleep(_SAMPLE_S)
        output = process.stdout.read() if process.stdout is not None else ""
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    rss = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return json.loads(output), Peaks(rss=rss, pss=pss, anonymous=anonymous)


def _rollup(pid: int) -> dict[str, int]:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:  # it has just ended
        return {}
    lines = (line.split() for line in text.splitlines()[1:])
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) == 3}


# --- the synthetic master -------------------------------------------------------------------------------------------


def write_synthetic(index: Path, shape: Shape, *, shard_size_bytes: int = 1 << 28) -> None:
    """A master of random codes, sharded. Its weights go through a file, not through memory."""
    layers = [layer for block in range(shape.blocks) for layer in _layers(block, shape.dim)]
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=index.parent) as folder:
        tensors = {name: tensor for layer in layers for name, tensor in _tensors(layer, Path(folder), random)}
        tensors |= {f"{name}.bias": np.zeros(n, np.float32) for name, _, n in layers}
        if not shape.weight_only:
            steps = np.array([4 / 2 ** (bits - 1) for bits in WIDTHS], np.float32)
            tensors |= {f"{name}.input.scale": steps for name, _, _ in layers}
        spec = _spec(layers, shape)
        write_master(
            assemble_master(spec=spec, tensors=tensors, skeleton=_skeleton(shape, layers)),
            index,
            shard_size_bytes=shard_size_bytes,
        )


def _layers(block: int, dim: int) -> Iterator[tuple[str, int, int]]:
    """(name, inputs, outputs) of the four products of a block."""
    for name, rows, columns in (
        ("qkv", dim, 3 * dim),
        ("proj", dim, dim),
        ("fc1", dim, 4 * dim),
        ("fc2", 4 * dim, dim),
    ):
        yield f"block{block}.{name}", rows, columns


def _tensors(layer: tuple[str, int, int], folder: Path, random: np.random.Generator) -> Iterator[tuple[str, Array]]:
    name, rows, columns = layer
    weight = np.memmap(folder / name, np.int8, "w+", shape=(rows, columns))
    weight[:] = random.integers(-128, 128, (rows, columns), dtype=np.int8)
    yield f"{name}.weight", np.asarray(weight)
    yield f"{name}.weight.scale", np.full(columns, 1 / 128 / rows**0.5, np.float32)


def _spec(layers: list[tuple[str, int, int]], shape: Shape) -> MasterSpec:
    per_output = Granularity(kind="per_channel", axis=1)
    value = ("n", _TOKENS, shape.dim)
    return MasterSpec(
        bits=8,
        widths=WIDTHS,
        rounding=Rounding.HALF_EVEN,
        activation_container="int8",
        layers=tuple(
            LayerSpec(
                name=name,
                operator="MatMul",
                weight=f"{name}.weight",
                granularity=per_output,
                activation="none" if shape.weight_only else "signed",
            )
            for name, _, _ in layers
        ),
        switchable=(),
        parameters=tuple(f"{name}.bias" for name, _, _ in layers),
        inputs=(ValueSpec(name="x", dtype="float", shape=value),),
        outputs=(ValueSpec(name="y", dtype="float", shape=value),),
        preprocessing=None,
        accuracy=(),
        provenance=(("recipe", "synthetic, random codes"), ("seed", "0")),
    )


def _skeleton(shape: Shape, layers: list[tuple[str, int, int]]) -> onnx.ModelProto:
    """Blocks of single-head attention and a two-layer perceptron, each behind a normalisation and beside a shortcut."""
    make, dim = onnx.helper.make_node, shape.dim
    nodes: list[onnx.NodeProto] = []

    def linear(name: str, source: str) -> str:
        nodes.append(make("MatMul", [source, f"{name}.weight"], [f"{name}.product"], name=name))
        nodes.append(make("Add", [f"{name}.product", f"{name}.bias"], [f"{name}.out"], name=f"{name}.add"))
        return f"{name}.out"

    def norm(name: str, source: str) -> str:
        nodes.append(make("LayerNormalization", [source, "ones"], [name], name=name, axis=-1))
        return name

    x = "x"
    for block in range(shape.blocks):
        name = f"block{block}"
        qkv = linear(f"{name}.qkv", norm(f"{name}.norm1", x))
        q, k, v = (f"{name}.{part}" for part in "qkv")
        nodes.append(make("Split", [qkv], [q, k, v], name=f"{name}.split", axis=-1, num_outputs=3))
        nodes.append(make("Transpose", [k], [f"{k}.t"], name=f"{name}.transpose", perm=[0, 2, 1]))
        nodes.append(make("MatMul", [q, f"{k}.t"], [f"{name}.scores"], name=f"{name}.attend"))
        nodes.append(make("Softmax", [f"{name}.scores"], [f"{name}.shares"], name=f"{name}.softmax"))
        nodes.append(make("MatMul", [f"{name}.shares", v], [f"{name}.mixed"], name=f"{name}.mix"))
        nodes.append(make("Add", [x, linear(f"{name}.proj", f"{name}.mixed")], [f"{name}.middle"], name=f"{name}.add1"))
        hidden = linear(f"{name}.fc1", norm(f"{name}.norm2", f"{name}.middle"))
        nodes.append(make("Gelu", [hidden], [f"{name}.gelu"], name=f"{name}.gelu"))
        x = "y" if block == shape.blocks - 1 else f"{name}.output"
        outer = linear(f"{name}.fc2", f"{name}.gelu")
        nodes.append(make("Add", [f"{name}.middle", outer], [x], name=f"{name}.add2"))
    value = onnx.helper.make_tensor_value_info
    parameters: Mapping[str, list[int]] = {f"{name}.weight": [rows, columns] for name, rows, columns in layers}
    parameters = {**parameters, **{f"{name}.bias": [columns] for name, _, columns in layers}}
    inputs = [value(name, onnx.TensorProto.FLOAT, dims) for name, dims in parameters.items()]
    tokens: list[str | int | None] = ["n", _TOKENS, dim]
    graph = onnx.helper.make_graph(
        nodes,
        "synthetic",
        [value("x", onnx.TensorProto.FLOAT, tokens), *inputs],
        [value("y", onnx.TensorProto.FLOAT, tokens)],
        [onnx.numpy_helper.from_array(np.ones(dim, np.float32), "ones")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


def _print(results: dict[str, Any]) -> None:
    mib = 1 << 20
    print(f"{results['weights']:,} weights, master of {results['master_bytes'] / mib:,.0f} MiB in several files")
    print(f"export at {results['bits']} bits for {results['target']}: {results['seconds']['export']} s")
    for name, size in results["package_files"].items():
        print(f"  {name:<40} {size / mib:>9,.1f} MiB")
    print("peak          MiB   of the master")
    for name, value in results["peaks"].items():
        print(f"{name:<10} {value / mib:>6,.0f} {results['ratios'][name]:>14.2f}")
    print("not done:", "; ".join(results["not_done"]))
    print(", ".join(f"{name} {version}" for name, version in results["versions"].items()))


if __name__ == "__main__":
    main()
