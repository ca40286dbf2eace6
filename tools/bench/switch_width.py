"""What it costs to switch the width of a running network, beside opening that width's own file with onnxruntime.

    python tools/bench/switch_width.py [--master FILE [--data FILE] | --network resnet18] [--approximate NAME ...]
        [--repeats 15] [--json results.json]

Exports the master (default: the bundled digits; with --network one that is not trained) twice for this CPU, with shared
weights and without, into a temporary folder. What is not trained is calibrated on noise and keeps every approximation:
its answers mean nothing, its graphs are those of a trained network. Times: openings and switches take turns in one
process, which is timed in seconds of its CPU, since others share the machine; a figure is the ratio of medians. `open`
is onnxruntime alone on the width's own file; `replace` also lets go of the session that was there before, as every
switch does. Memory: one process for each candidate, resident bytes after the work, as the application has them, less
those after the imports; for a switcher the work is 24 switches, `released` with RuntimeOptions(release_memory=True).
`peak` is the most there were on the way, while a width was opened; medians.

Goals, for shared weights: cached switch < 1 ms; cold switch <= 1.0 x opening the file; memory with all widths usable
<= 1.3 x the int8 session + the active session; graphs and weights <= 1.05 x the bytes of the int8 graph alone. `own` is
the package with graphs of their own, where the runtime can be no faster than onnxruntime, which does all the work.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from bitswitch_deploy.catalogue import bundled_master, load_target
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.master import write_master
from bitswitch_deploy.pipeline.exporting.export import ExportRequest, export
from bitswitch_deploy.pipeline.inputs import parse_bits
from bitswitch_deploy.runtime import RuntimeOptions, Switcher, load

WIDTHS = (8, 6, 4, 2)
CACHED_SWITCHES = 1000
MEMORY_RUNS = 5
MEMORY_ROUNDS = 6
THREADS = 1
_ANY_AGREEMENT = 1e-6
_NOISE_IMAGES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One width. Times in ms of CPU, medians; ratios are to `replace_ms`, but for `cold_to_open`.

    cold: a switch on the package with shared weights; own: on the other one; plain: the shared graph, unpacked and
    opened by onnxruntime alone, which folds the derivation. spread: (third - first quartile) / median of `cold`.
    """

    bits: int
    open_ms: float
    replace_ms: float
    cold_ms: float
    cold: float
    own: float
    plain: float
    cold_to_open: float
    spread: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subject = parser.add_mutually_exclusive_group()
    subject.add_argument("--master", type=Path)
    subject.add_argument("--network", help="one of tools/bench/untrained.py, which needs torch")
    parser.add_argument("--data", type=Path, help="samples for the master, as for export")
    parser.add_argument("--approximate", nargs="*", default=[], choices=[each.value for each in Approximation])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the rows and the versions here as well")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(*_memory_bytes(*options.memory_of))
        return
    with tempfile.TemporaryDirectory(prefix="bitswitch-bench-") as folder:
        approximations = frozenset(map(Approximation, options.approximate))
        request = ExportRequest(
            master=options.master or bundled_master(),
            target=load_target("cpu"),
            output=Path(folder),
            widths=parse_bits(",".join(map(str, WIDTHS))),
            data=options.data,
            approximations=approximations,
        )
        if options.network:
            request = _untrained(request, options.network, Path(folder))
        packages = {
            name: _exported(replace(request, output=Path(folder, name), shared_weights=name == "shared"))
            for name in ("shared", "own")
        }
        sizes = _bytes(packages)
        _unpack(packages["shared"])
        result = {
            "master": str(options.master or options.network or "digits"),
            "approximations": sorted(options.approximate),
            "bytes": sizes,
            "rows": [asdict(row) for row in _cold(packages, options.repeats)],
            "cached_switch_ms": _cached(packages["shared"]),
            "cached_own_ms": _cached(packages["own"]),
            "memory": _memory(packages),
            "repeats": options.repeats,
            "threads": THREADS,
            "versions": {"onnxruntime": ort.__version__, "numpy": np.__version__, "machine": platform.machine()},
        }
    _print(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _untrained(request: ExportRequest, network: str, folder: Path) -> ExportRequest:
    """The request for a network of random weights, which no disagreement takes an approximation from."""
    from tools.bench.untrained import untrained_master, untrained_network

    master, noise = folder / f"{network}.safetensors", folder / "noise.npz"
    model, images = untrained_network(network)
    write_master(untrained_master(model, images, WIDTHS), master)
    np.savez(noise, x=images[:_NOISE_IMAGES].numpy())
    return replace(request, master=master, calibration=noise, min_agreement=_ANY_AGREEMENT)


def _exported(request: ExportRequest) -> Path:
    export(request)
    return request.output


def _graph(package: Path, bits: int) -> Path:
    return next(package.glob(f"*-w{bits}.onnx"))


def _compressed(package: Path) -> list[Path]:
    return sorted(package.glob("*.onnx.gz"))


def _unpack(package: Path) -> None:
    """Lay every compressed graph beside itself as other programs open it."""
    for path in _compressed(package):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))


def _bytes(packages: dict[str, Path]) -> dict[str, float]:
    alone = _graph(packages["own"], 8).stat().st_size
    shared = sum(
        path.stat().st_size for path in packages["shared"].iterdir() if ".onnx" in path.name or ".weights" in path.name
    )
    saved = sum(
        len(gzip.decompress(path.read_bytes())) - path.stat().st_size for path in _compressed(packages["shared"])
    )
    separate = sum(path.stat().st_size for path in packages["own"].glob("*.onnx"))
    return {
        "int8_alone": alone,
        "shared": shared,
        "shared_ratio": shared / alone,
        "unpacked_ratio": (shared + saved) / alone,
        "separate_ratio": separate / alone,
    }


def _open(path: Path) -> object:
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _cold(packages: dict[str, Path], repeats: int) -> list[Row]:
    kept = RuntimeOptions(threads=THREADS, max_sessions=1)
    with load(packages["shared"], options=kept) as shared, load(packages["own"], options=kept) as own:
        return [_row(bits, _cold_times(packages, bits, {"shared": shared, "own": own}, repeats)) for bits in WIDTHS]


def _cold_times(
    packages: dict[str, Path], bits: int, switchers: dict[str, Switcher], repeats: int
) -> dict[str, list[float]]:
    """CPU milliseconds [repeats] of each way to get from another width to this one."""
    other = 2 if bits == 8 else 8
    times: dict[str, list[float]] = {name: [] for name in ("open", "replace", "plain", *switchers)}
    for _ in range(repeats):
        times["open"].append(_cpu_milliseconds(lambda: _open(_graph(packages["own"], bits))))
        for name, package in (("replace", "own"), ("plain", "shared")):
            slot = [_open(_graph(packages[package], other))]

            def replace(slot: list[object] = slot, package: str = package) -> None:
                slot[0] = _open(_graph(packages[package], bits))

            times[name].append(_cpu_milliseconds(replace))
        for name, switcher in switchers.items():
            switcher.switch(other)
            times[name].append(_cpu_milliseconds(lambda switcher=switcher: switcher.switch(bits)))  # type: ignore[misc]
    return times


def _row(bits: int, times: dict[str, list[float]]) -> Row:
    medians = {name: statistics.median(values) for name, values in times.items()}
    first, _, third = statistics.quantiles(times["shared"], n=4)
    return Row(
        bits=bits,
        open_ms=medians["open"],
        replace_ms=medians["replace"],
        cold_ms=medians["shared"],
        cold=medians["shared"] / medians["replace"],
        own=medians["own"] / medians["replace"],
        plain=medians["plain"] / medians["replace"],
        cold_to_open=medians["shared"] / medians["open"],
        spread=(third - first) / medians["shared"],
    )


def _cached(package: Path) -> float:
    options = RuntimeOptions(threads=THREADS, max_sessions=len(WIDTHS), warm=WIDTHS)
    with load(package, options=options) as switcher:
        turns = [WIDTHS[index % len(WIDTHS)] for index in range(CACHED_SWITCHES)]
        return statistics.median(_wall_milliseconds(switcher, bits) for bits in turns)


def _wall_milliseconds(switcher: Switcher, bits: int) -> float:
    start = time.perf_counter()
    switcher.switch(bits)
    return (time.perf_counter() - start) * 1e3


def _cpu_milliseconds(work: Callable[[], object]) -> float:
    gc.collect()
    start = time.process_time()
    kept = work()
    elapsed = (time.process_time() - start) * 1e3
    del kept
    return elapsed


def _memory(packages: dict[str, Path]) -> dict[str, float]:
    candidates = {
        "int8_session": ("session", str(_graph(packages["own"], 8))),
        "active_session": ("session", str(_graph(packages["own"], 4))),
        "switcher_1_session": ("switcher1", str(packages["shared"])),
        "switcher_2_sessions": ("switcher2", str(packages["shared"])),
        "switcher_2_sessions_released": ("switcher2released", str(packages["shared"])),
        "own_switcher_2_sessions": ("switcher2", str(packages["own"])),
        "own_switcher_2_sessions_released": ("switcher2released", str(packages["own"])),
        "four_sessions": ("switcher4", str(packages["own"])),
    }
    runs: dict[str, list[float]] = {f"{name}{kind}_bytes": [] for name in candidates for kind in ("", "_peak")}
    for _ in range(MEMORY_RUNS):
        for name, words in candidates.items():
            command = [sys.executable, __file__, "--memory-of", *words]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            for kind, value in zip(("", "_peak"), printed, strict=True):
                runs[f"{name}{kind}_bytes"].append(float(value))
    found = {name: statistics.median(values) for name, values in runs.items()}
    limit = 1.3 * found["int8_session_bytes"] + found["active_session_bytes"]
    shares = {f"{name}_of_limit": found[f"{name}_bytes"] / limit for name in candidates if "switcher" in name}
    return {**found, "limit_bytes": limit, **shares}


def _memory_bytes(kind: str, path: str) -> tuple[int, int]:
    """Resident bytes that the work adds in the end and at most; every session has answered, the one at 4 bits last."""
    before = _status_bytes("VmRSS")
    if kind == "session":
        kept = _open(Path(path))
        _answer(kept.get_inputs()[0].name, kept.get_inputs()[0].shape, lambda feeds: kept.run(None, feeds))  # type: ignore[attr-defined]
    else:
        count, released = int(kind[len("switcher")]), kind.endswith("released")
        options = RuntimeOptions(threads=THREADS, max_sessions=count, release_memory=released)
        kept = load(path, options=options)
        for bits in (8, 6, 2, 4) * MEMORY_ROUNDS:
            kept.switch(bits)
            _answer(kept.inputs[0].name, kept.inputs[0].shape, kept.run_all)
    gc.collect()
    return _status_bytes("VmRSS") - before, _status_bytes("VmHWM") - before


def _answer(
    name: str, shape: list[object] | tuple[object, ...], run: Callable[[dict[str, np.ndarray]], object]
) -> None:
    run({name: np.zeros([size if isinstance(size, int) else 1 for size in shape], np.float32)})


def _status_bytes(field: str) -> int:
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields[field].split()[0]) * 1024


def _print(result: dict[str, Any]) -> None:
    asked = f", with {', '.join(result['approximations'])}" if result["approximations"] else ""
    print(f"{result['master']}{asked}")
    print(f"{result['threads']} thread, medians of {result['repeats']} interleaved runs, ms of CPU")
    print("width   open  replace  cold switch  ratio  spread  to open  own files  plain onnxruntime")
    for row in result["rows"]:
        print(
            f"w{row['bits']}    {row['open_ms']:>6.2f} {row['replace_ms']:>8.2f} {row['cold_ms']:>12.2f}"
            f" {row['cold']:>6.2f} {row['spread']:>7.0%} {row['cold_to_open']:>8.2f} {row['own']:>10.2f}"
            f" {row['plain']:>18.2f}"
        )
    sizes, memory = result["bytes"], result["memory"]
    print(f"cached switch  {result['cached_switch_ms']:.4f} ms, own {result['cached_own_ms']:.4f} ms")
    print(
        f"bytes          shared {sizes['shared']:,} = {sizes['shared_ratio']:.3f} x the int8 graph alone "
        f"({sizes['int8_alone']:,}), {sizes['unpacked_ratio']:.2f} x with its graphs unpacked; "
        f"separate files {sizes['separate_ratio']:.2f} x"
    )
    for name, value in memory.items():
        print(f"{name:<40} {value / 2**20:.1f} MiB" if name.endswith("_bytes") else f"{name:<40} {value:.2f}")
    print(", ".join(f"{name} {version}" for name, version in result["versions"].items()))


if __name__ == "__main__":
    main()
