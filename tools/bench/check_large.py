"""How `check` fares with many images: memory, what it does again, and what a kill costs. Synthetic, at four widths.

    python tools/bench/check_large.py [--samples 50000] [--small 5000] [--json results.json]

Images are random bytes [n, 64, 64, 3] in an uncompressed .npz, the network is one quantized product: what is measured
is everything around a network. Runs, each in a process of its own with an empty cache unless said otherwise:

* small, large: `check --update-baseline` on few samples and on all. Memory is flat if both peaks are the same.
* again: `check` with the cache of the run before.
* resumed: the same after a run that was killed (SIGKILL) with about half of the outcomes in the cache.

anonymous: highest memory that nobody but the process has (smaps_rollup, sampled every 20 ms); rss counts the pages of
the mapped data as well, which the system takes back when it needs them. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bitswitch_deploy.engines.cpu_features import usable_cores
from bitswitch_deploy.gate.outcome_cache import RANGE_SAMPLES
from bitswitch_deploy.master import assemble_master, write_master
from bitswitch_deploy.master.spec import LayerSpec, MasterSpec, ValueSpec
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.tensors import Granularity, Rounding

WIDTHS = (8, 6, 4, 2)
_SIDE, _CLASSES = 64, 10
_INPUTS = 3 * _SIDE * _SIDE
_SAMPLE_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the command. computed: outcomes that were not in the cache."""

    seconds: float
    computed: int
    rss: int
    anonymous: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--small", type=int, default=5_000)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder, removed at the end")
    parser.add_argument("--json", type=Path, help="write the results here as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = measure(Path(folder), samples=options.samples, small=options.small)
    _print(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def measure(folder: Path, *, samples: int, small: int) -> dict[str, Any]:
    """All runs."""
    _write_master(folder / "synthetic.safetensors")
    runs = {}
    for name, n in (("small", small), ("large", samples)):
        _write_samples(folder / "data.npz", n)
        text = f"masters: [synthetic.safetensors]\ntargets: [x86-cpu]\nwidths: {list(WIDTHS)}\ndata: data.npz\n"
        (folder / "bitswitch.yaml").write_text(text, encoding="utf-8")
        shutil.rmtree(folder / ".bitswitch-cache", ignore_errors=True)
        runs[name] = watch(folder, "--update-baseline")
    runs["again"] = watch(folder)
    shutil.rmtree(folder / ".bitswitch-cache")
    half = len(WIDTHS) * samples // RANGE_SAMPLES // 2
    _kill_when(folder, lambda: len(list((folder / ".bitswitch-cache").rglob("*.npy"))) >= half)
    runs["resumed"] = watch(folder)
    return {
        "samples": samples,
        "small": small,
        "widths": WIDTHS,
        "data_bytes": (folder / "data.npz").stat().st_size,
        "baseline_bytes": (folder / "bitswitch-baseline.json").stat().st_size,
        "cores": usable_cores(),
        "runs": {name: asdict(run) for name, run in runs.items()},
        "versions": {name: metadata.version(name) for name in ("bitswitch-deploy", "numpy", "onnxruntime")}
        | {"python": platform.python_version()},
    }


def watch(folder: Path, *words: str) -> Run:
    """Run `check` and note how much memory it takes."""
    started, rss, anonymous = time.monotonic(), 0, 0
    with subprocess.Popen(_command(folder, *words), stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            now = _rollup(process.pid)
            rss, anonymous = max(rss, now.get("Rss", 0)), max(anonymous, now.get("Anonymous", 0))
            time.sleep(_SAMPLE_S)
        output = process.stdout.read() if process.stdout is not None else ""
    if process.returncode != 0:
        raise SystemExit(f"check ended with {process.returncode}")
    computed = sum(case["computed"] for case in json.loads(output)["cases"])
    return Run(seconds=time.monotonic() - started, computed=computed, rss=rss, anonymous=anonymous)


def _kill_when(folder: Path, is_time: Callable[[], bool]) -> None:
    with subprocess.Popen(_command(folder), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not is_time():
            time.sleep(_SAMPLE_S)
        process.send_signal(signal.SIGKILL)


def _command(folder: Path, *words: str) -> list[str]:
    # verdicts are no matter here, and random labels are told apart badly: no failure below a hundred points
    limits = ("--max-drop", "100", "--effect", "1")
    return [
        sys.executable,
        "-m",
        "bitswitch_deploy",
        "check",
        str(folder / "bitswitch.yaml"),
        "--json",
        *limits,
        *words,
    ]


def _rollup(pid: int) -> dict[str, int]:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:  # it has just ended
        return {}
    lines = (line.split() for line in text.splitlines()[1:])
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) == 3}


def _write_samples(path: Path, n: int) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (n, _SIDE, _SIDE, 3), dtype=np.uint8)
    np.savez(path, x=pixels, y=random.integers(_CLASSES, size=n))


def _write_master(path: Path) -> None:
    """Flatten, one product of random codes."""
    random = np.random.default_rng(0)
    tensors: dict[str, np.ndarray[Any, np.dtype[Any]]] = {
        "fc.weight": random.integers(-128, 128, (_INPUTS, _CLASSES), dtype=np.int8),
        "fc.weight.scale": np.full(_CLASSES, 1e-3, np.float32),
        "fc.input.scale": np.array([4 / 2 ** (bits - 1) for bits in WIDTHS], np.float32),
    }
    layer = LayerSpec(
        name="fc",
        operator="MatMul",
        weight="fc.weight",
        granularity=Granularity(kind="per_channel", axis=1),
        activation="signed",
    )
    image, mean = ("n", 3, _SIDE, _SIDE), (0.5, 0.5, 0.5)
    spec = MasterSpec(
        bits=8,
        widths=WIDTHS,
        rounding=Rounding.HALF_EVEN,
        activation_container="int8",
        layers=(layer,),
        switchable=(),
        parameters=(),
        inputs=(ValueSpec(name="x", dtype="float", shape=image),),
        outputs=(ValueSpec(name="y", dtype="float", shape=("n", _CLASSES)),),
        preprocessing=Preprocessing(colour="RGB", size=(_SIDE, _SIDE), divide_by=255.0, mean=mean, std=mean),
        accuracy=(),
        provenance=(("recipe", "synthetic, random codes"), ("seed", "0")),
    )
    write_master(assemble_master(spec=spec, tensors=tensors, skeleton=_skeleton()), path)


def _skeleton() -> onnx.ModelProto:
    value, make = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    nodes = [
        make("Flatten", ["x"], ["flat"], name="flatten"),
        make("MatMul", ["flat", "fc.weight"], ["y"], name="fc"),
    ]
    inputs = [
        value("x", onnx.TensorProto.FLOAT, ["n", 3, _SIDE, _SIDE]),
        value("fc.weight", onnx.TensorProto.FLOAT, [_INPUTS, _CLASSES]),
    ]
    outputs = [value("y", onnx.TensorProto.FLOAT, ["n", _CLASSES])]
    graph = onnx.helper.make_graph(nodes, "synthetic", inputs, outputs)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


def _print(results: dict[str, Any]) -> None:
    mib = 1 << 20
    print(f"{results['samples']:,} images, {results['data_bytes'] / mib:,.0f} MiB, at {len(results['widths'])} widths")
    print(f"on {results['cores']} cores; baseline of {results['baseline_bytes'] / 1000:,.0f} kB")
    print("run       seconds   evaluated  anonymous MiB   rss MiB")
    for name, run in results["runs"].items():
        memory = f"{run['anonymous'] / mib:>14,.0f} {run['rss'] / mib:>9,.0f}"
        print(f"{name:<9} {run['seconds']:>7.1f} {run['computed']:>11,} {memory}")
    print(", ".join(f"{name} {version}" for name, version in results["versions"].items()))


if __name__ == "__main__":
    main()
