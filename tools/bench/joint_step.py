"""What a joint training step costs, beside separate LSQ steps and a float step, on ResNet-20 for 32 x 32 images.

    pip install -e '.[train]' && python tools/bench/joint_step.py [--device cuda] [--fast] [--precision bfloat16]

Candidates: `float`, a step of the float network; `joint`, one at 8, 6, 4 and 2 bits (for each width forward, backward
and update); `mixtures`, the same with a width drawn for each layer in each pass, as a supernet is trained; `lsq8`, ...,
`lsq2`, a step of a network of its own that is quantized at that width alone (LSQ, Esser et al., arXiv 1902.08153). All
with Adam and the trainer's own stages, random weights and random images. Each candidate has
a process of its own; they take turns, a turn is one step, and a figure is a ratio of medians. Memory is the peak during
the steps above what the process held before it made its network: resident bytes on a CPU, allocated ones on a GPU;
compare it without --fast, since on a CPU the compiler works in the same process, and on a GPU torch does not count what
a recorded step uses. The share of the quantizers is that of their forward and backward operators in a joint step that
is not compiled, as torch's profiler sees it: compiled, they are parts of larger kernels.

Goals: joint <= 5.0 x float on a CPU, <= 4.6 x on a GPU; peak memory <= 1.15 x that of one width.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from bitswitch_deploy.training.batches import Batch
from bitswitch_deploy.training.execution import Execution, Precision, choose_execution, settle_torch
from bitswitch_deploy.training.metrics_log import host_text
from bitswitch_deploy.training.networks import build_network
from bitswitch_deploy.training.prepare import PrepareOptions, prepare, set_width
from bitswitch_deploy.training.quantizers import ActivationQuantizer, WeightQuantizer
from bitswitch_deploy.training.recipe import JointSettings, StageSettings, SupernetSettings
from bitswitch_deploy.training.schedule import Position
from bitswitch_deploy.training.stages import FloatStage, JointStage, Stage
from bitswitch_deploy.training.supernet import SupernetStage

NETWORK, SIDE = "cifar10-resnet20", 32
WIDTHS = (8, 6, 4, 2)
FLOAT, JOINT, MIXTURES = "float", "joint", "mixtures"
SINGLE = tuple(f"lsq{bits}" for bits in WIDTHS)
WARM_UP = 6  # on CUDA compiled steps are recorded behind the fourth
_STEP, _QUANTIZERS, _BACKWARD = "joint step", "quantizers", "_DequantizeBackward"
_RANGES: list[ExitStack] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One candidate. spread: (third - first quartile) / median of its turns. peak_bytes: see above."""

    candidate: str
    median_ms: float
    images_per_s: float
    ratio_to_float: float
    spread: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What every process is told."""

    batch_size: int
    threads: int
    device: str
    fast: bool
    precision: Precision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fast", action="store_true", help="compiled steps")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--turns", type=int, default=15, help="of each candidate; at least 5")
    parser.add_argument("--json", type=Path, help="write the rows and the versions here as well")
    options = parser.parse_args()
    work = Work(**{field.name: getattr(options, field.name) for field in fields(Work)})
    rows = _rows(*measure(work, max(5, options.turns)), work.batch_size)
    by_name = {row.candidate: row for row in rows}
    single_ms = sum(by_name[name].median_ms for name in SINGLE)
    summary = {
        "joint_to_float": by_name[JOINT].ratio_to_float,
        "joint_to_four_lsq": by_name[JOINT].median_ms / single_ms,
        "mixtures_to_joint": by_name[MIXTURES].median_ms / by_name[JOINT].median_ms,
        "joint_peak_to_lsq8": by_name[JOINT].peak_bytes / by_name[SINGLE[0]].peak_bytes,
    }
    summary["quantizer_share"] = quantizer_share(work)
    versions = {"torch": torch.__version__, "numpy": metadata.version("numpy"), "python": platform.python_version()}
    _print(rows, summary)
    print(f"\n{host_text()}; {work}; " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    if options.json:
        result = {"work": asdict(work), "summary": summary, "versions": versions, "rows": list(map(asdict, rows))}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(work: Work, turns: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each turn, and the peak bytes, by candidate."""
    context = get_context("spawn")
    workers = {}
    for name in (FLOAT, JOINT, MIXTURES, *SINGLE):
        here, there = context.Pipe()
        process = context.Process(target=_run, args=(there, name, work), daemon=True)
        process.start()
        workers[name] = (process, here)
    for _, here in workers.values():
        here.recv()  # warm
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(turns):
        for name, (_, here) in workers.items():
            here.send(True)
            seconds[name].append(here.recv())
    peaks = {}
    for name, (process, here) in workers.items():
        here.send(False)
        peaks[name] = here.recv()
        process.join()
    return seconds, peaks


def _run(pipe: Connection, name: str, work: Work) -> None:
    execution = choose_execution(work.device, precision=work.precision, fast=work.fast)
    settle_torch(execution.device, seed=0, threads=work.threads)
    torch.set_flush_denormal(
        True
    )  # mixtures of random weights have gradients so small that a CPU takes longer for them
    before = _held_bytes(execution.device)
    stage = make_stage(name, execution)
    batch = _batch(work, execution)
    stage.model.train()
    for step in range(WARM_UP):
        _timed_step(stage, batch, step, execution.device)
    _forget_peak(execution.device)
    pipe.send(True)
    step = WARM_UP
    while pipe.recv():
        pipe.send(_timed_step(stage, batch, step, execution.device))
        step += 1
    pipe.send(_peak_bytes(execution.device) - before)


def _batch(work: Work, execution: Execution) -> Batch:
    return Batch(
        inputs=torch.randn(work.batch_size, 3, SIDE, SIDE, device=execution.device),
        labels=torch.randint(10, (work.batch_size,), device=execution.device),
        indices=torch.arange(work.batch_size, device=execution.device),
    )


def make_stage(name: str, execution: Execution) -> Stage:
    """The stage of one candidate, ready for its first step."""
    model = build_network(NETWORK)
    if name == FLOAT:
        return FloatStage(
            model, StageSettings(epochs=1, batch_size=1, learning_rate=1e-3, weight_decay=5e-5), execution=execution
        )
    widths = (int(name.removeprefix("lsq")),) if name.startswith("lsq") else WIDTHS
    network = prepare(model, (torch.zeros(2, 3, SIDE, SIDE),), PrepareOptions(widths=widths), check_export=False)
    if name != MIXTURES:
        settings = JointSettings(epochs=1, batch_size=1, learning_rate=1e-3, weight_decay=5e-5)
        return JointStage(network, settings, samples=1, execution=execution)
    for bits in widths:  # as joint training leaves it: every width has its scales
        set_width(network.model, bits)
        network.model(torch.randn(128, 3, SIDE, SIDE))
    always = SupernetSettings(
        epochs=1, batch_size=1, learning_rate=1e-3, weight_decay=5e-5, draw="uniform", threshold=1.0, warmup_epochs=0
    )
    return SupernetStage(network, always, samples=1, seed=0, execution=execution)


def quantizer_share(work: Work) -> float:
    """Time of the quantizers' operators, forward and backward, in that of a joint step; kernel time on a GPU."""
    execution = choose_execution(work.device, precision=work.precision, fast=False)
    settle_torch(execution.device, seed=0, threads=work.threads)
    stage, batch = make_stage(JOINT, execution), _batch(work, execution)
    stage.model.train()
    for module in stage.model.modules():
        if isinstance(module, (WeightQuantizer, ActivationQuantizer)):
            # each range is closed by the hook behind: calls of one module do not overlap
            module.register_forward_pre_hook(lambda module, _: _RANGES.append(_open_range()))
            module.register_forward_hook(lambda module, *_: _RANGES.pop().close())
    for step in range(WARM_UP):
        _timed_step(stage, batch, step, execution.device)
    on_gpu = execution.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler, record_function(_STEP):
        _timed_step(stage, batch, WARM_UP, execution.device)
    times = {
        event.key: event.device_time_total if on_gpu else event.cpu_time_total for event in profiler.key_averages()
    }
    if _BACKWARD not in times:
        raise RuntimeError(f"the profiler saw no {_BACKWARD}: has the quantizers' autograd function another name?")
    return float(times[_QUANTIZERS] + times[_BACKWARD]) / float(times[_STEP])


def _open_range() -> ExitStack:
    opened = ExitStack()
    opened.enter_context(record_function(_QUANTIZERS))
    return opened


def _timed_step(stage: Stage, batch: Batch, step: int, device: torch.device) -> float:
    start = time.perf_counter()
    # in the last epoch, in which every layer of a mixture draws
    stage.step(batch, Position(step=990_000 + step, total=1_000_000, per_epoch=10_000))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _held_bytes(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status_bytes("VmRSS")


def _peak_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status_bytes("VmHWM")


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: VmHWM starts again at VmRSS


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _rows(seconds: dict[str, list[float]], peaks: dict[str, int], batch_size: int) -> list[Row]:
    medians = {name: statistics.median(turns) for name, turns in seconds.items()}
    rows = []
    for name, turns in seconds.items():
        first, _, third = statistics.quantiles(turns, n=4)
        rows.append(
            Row(
                candidate=name,
                median_ms=1e3 * medians[name],
                images_per_s=batch_size / medians[name],
                ratio_to_float=medians[name] / medians[FLOAT],
                spread=(third - first) / medians[name],
                peak_bytes=peaks[name],
            )
        )
    return rows


def _print(rows: list[Row], summary: dict[str, float]) -> None:
    print(f"{'candidate':<10} {'ms':>9} {'images/s':>9} {'of float':>9} {'spread':>7} {'peak MB':>8}")
    for row in rows:
        print(
            f"{row.candidate:<10} {row.median_ms:>9.1f} {row.images_per_s:>9.0f} {row.ratio_to_float:>9.2f}"
            f" {row.spread:>7.0%} {row.peak_bytes / 1e6:>8.0f}"
        )
    print(f"\njoint step against a float step: {summary['joint_to_float']:.2f}")
    print(f"joint step against the sum of the four LSQ steps: {summary['joint_to_four_lsq']:.2f}")
    print(f"step of mixtures against the joint step: {summary['mixtures_to_joint']:.2f}")
    print(f"peak memory of the joint step against the LSQ step at 8 bits: {summary['joint_peak_to_lsq8']:.2f}")
    print(f"share of the quantizers in a joint step: {summary['quantizer_share']:.0%}")


if __name__ == "__main__":
    main()
